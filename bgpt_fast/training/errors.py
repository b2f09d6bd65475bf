"""The exceptions that end a training run early."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path


class TrainingInterrupted(RuntimeError):
    """A signal stopped the run after a finished step, and the run was saved; starting it again resumes it.

    Args:
        number: the signal number, SIGTERM or SIGINT.
        step: steps done.
        checkpoint: the checkpoint's folder.
    """

    def __init__(self, number: int, step: int, checkpoint: Path) -> None:
        self.signal = signal.Signals(number)
        self.step = step
        self.checkpoint = checkpoint
        super().__init__(
            f"training stopped by {self.signal.name} after step {step}; saved in {checkpoint}: "
            "start the same run again to go on"
        )

    @property
    def exit_code(self) -> int:
        """The exit code for a command, by shell convention: 128 + the signal number (SIGTERM 143, SIGINT 130)."""
        return 128 + self.signal.value


class NonFiniteLossError(FloatingPointError):
    """A loss or gradient was NaN or infinite; raised before the update, so weights and checkpoints are intact.

    Args:
        step: the step that failed, counted from 1.
        loss: its loss in nats per position.
        grad_norm: its gradient norm before clipping.
        batch_path: a `.safetensors` file with the step's batches.
    """

    def __init__(self, step: int, loss: float, grad_norm: float, batch_path: Path) -> None:
        self.step = step
        self.loss = loss
        self.grad_norm = grad_norm
        self.batch_path = batch_path
        super().__init__(
            f"step {step}: loss {loss}, gradient norm {grad_norm}: expected finite numbers; no update was made and the "
            f"last checkpoint is intact. The batch is in {batch_path}. Lower the learning rate, lengthen the warm-up "
            "or use fp32"
        )


class RankFailedError(RuntimeError):
    """Other ranks of a run failed, were killed or do not respond; raised on every remaining rank.

    Args:
        rank: this process's rank.
        ranks: the error of each failed rank, as far as known; empty if all respond, as after a network failure.
        reason: the message of the collective's error.
    """

    def __init__(self, rank: int, ranks: Mapping[int, str], reason: str) -> None:
        self.rank = rank
        self.ranks = dict(ranks)
        named = "; ".join(f"rank {number}: {text}" for number, text in sorted(self.ranks.items()))
        first_line = next(iter(reason.splitlines()), "")
        super().__init__(
            f"rank {rank} cannot go on: {named or 'all ranks answer: is the network down?'} ({first_line}). "
            "The last checkpoint is intact: start the run again to go on from it"
        )
