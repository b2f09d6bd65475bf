"""How a training run ends early."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path


class TrainingInterrupted(RuntimeError):
    """A signal stopped the run after a finished step, and the run was saved; starting it again resumes it.

    Args:
        number: the signal, SIGTERM or SIGINT.
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
        """What a command should exit with, as shells do: 128 + the signal's number (SIGTERM 143, SIGINT 130)."""
        return 128 + self.signal.value


class NonFiniteLossError(FloatingPointError):
    """A loss or gradient was NaN or infinite; raised before the update, so the weights and checkpoints are still good.

    Args:
        step: the step that failed, counted from 1.
        loss: its loss in nats a position.
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
            f"last checkpoint is good. The batch is in {batch_path}. Lower the learning rate, lengthen the warm-up "
            "or use fp32"
        )


class RankFailedError(RuntimeError):
    """Other ranks of a run failed, were killed or stopped answering; every rank left ends with this.

    Args:
        rank: this process's number.
        ranks: what is known of each rank that is missing; empty where all answer, as after a network failure.
        reason: what the collective said.
    """

    def __init__(self, rank: int, ranks: Mapping[int, str], reason: str) -> None:
        self.rank = rank
        self.ranks = dict(ranks)
        named = "; ".join(f"rank {number}: {text}" for number, text in sorted(self.ranks.items()))
        first_line = next(iter(reason.splitlines()), "")
        super().__init__(
            f"rank {rank} cannot go on: {named or 'no rank is missing: is the network whole?'} ({first_line}). "
            "The last checkpoint is good: start the run again to go on from it"
        )
