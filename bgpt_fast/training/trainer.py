"""The step loop: batches in, updates out, and everything needed to go on after a stop."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bgpt_fast.config import EOP
from bgpt_fast.data.source import DataError, Source
from bgpt_fast.device import resolve_device
from bgpt_fast.files import write_json
from bgpt_fast.metrics import BitsPerByte
from bgpt_fast.model import BGPT
from bgpt_fast.patches import PackedPatches
from bgpt_fast.training.checkpointing import CheckpointStore, RunState
from bgpt_fast.training.config import TrainConfig
from bgpt_fast.training.errors import NonFiniteLossError, TrainingInterrupted
from bgpt_fast.training.interrupts import Interrupts, StopEvaluation
from bgpt_fast.training.log import RunLog, write_batches
from bgpt_fast.training.optimizer import Optimizers
from bgpt_fast.training.progress import StepFigures, TrainProgress
from bgpt_fast.training.schedule import schedule_factor, step_progress, time_progress

Evaluate = Callable[[BGPT], dict[str, float]]


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Args:
        steps: steps done, earlier sessions included.
        seconds: training time, earlier sessions included.
        loss: the last step's loss in nats a position.
        patches_per_second: of this session, its evaluations and checkpoints left out.
        stopped_by: "steps" or "time".
        evaluation: the last evaluation's figures.
        log_path: the run's log.jsonl.
        checkpoint_path: the last checkpoint's folder.
    """

    steps: int
    seconds: float
    loss: float
    patches_per_second: float
    stopped_by: str
    evaluation: dict[str, float]
    log_path: Path
    checkpoint_path: Path


class Trainer:
    """Trains a model on a source until its steps or minutes are used up, and resumes where a run folder stopped.

    A run of a step schedule that is stopped and resumed ends with the same weights, optimiser state, random states and
    losses, bit for bit, as one that ran through on the same machine with the same number of threads.

    Args:
        model: trained in place; moved to the config's device.
        source: batches; its position is part of every checkpoint.
        config: see `TrainConfig`.
        run_dir: the run's folder: `run.json`, `log.jsonl`, `checkpoints/`. Made if missing; if it holds checkpoints,
            the run goes on from the latest intact one.
        evaluate: called with the model in evaluation mode, under no_grad and with a random state of its own; returns
            figures for the log.
        show_progress: whether to show a bar, or lines where standard error is no terminal.

    Raises:
        ValueError: `run_dir` holds a run of another model; `device` is not there.
        CheckpointDamagedError: `run_dir` holds checkpoints, and none is intact.
    """

    def __init__(
        self,
        model: BGPT,
        source: Source,
        config: TrainConfig,
        run_dir: str | os.PathLike[str],
        evaluate: Evaluate | None = None,
        *,
        show_progress: bool = True,
    ) -> None:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.device = resolve_device(config.device)
        self.model = model.to(self.device)
        self.source = source
        self.config = config
        self.run_dir = Path(run_dir)
        self.store = CheckpointStore(self.run_dir / "checkpoints", config.keep_last)
        self.step = 0
        self.seconds = 0.0
        self._evaluate = evaluate
        self._show_progress = show_progress
        self._evaluated_step = 0
        self._evaluation: dict[str, float] = {}
        self._best: float | None = None
        self._saved_step: int | None = None
        self._loss = math.nan
        self._last_step_seconds = 0.0
        self._log = RunLog(self.run_dir / "log.jsonl")
        self._optimizers = Optimizers(model.named_parameters(), config)
        self._rng: dict[str, Tensor] = {}
        self._resume()

    @property
    def resumed(self) -> bool:
        """Whether the run goes on from a checkpoint."""
        return self._saved_step is not None

    def train(self) -> TrainResult:
        """Trains to the end of the budget, evaluates, saves.

        Raises:
            TrainingInterrupted: SIGTERM or SIGINT came; the step was finished and saved. A second signal ends at once.
            NonFiniteLossError: a loss or gradient was not finite; raised before the update.
            CheckpointWriteError: a checkpoint could not be written; the earlier ones are intact.
            DataError: the source cannot go on.
        """
        self._started = time.monotonic() - self.seconds
        self._restore_rng()
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._describe()
        self._log.open_at(self.step, self._evaluated_step)
        patches = 0
        training_seconds = 0.0
        try:
            with Interrupts() as interrupts, TrainProgress(self.config.steps, enabled=self._show_progress) as progress:
                self._at_boundary(interrupts, progress)
                while not self._stopped_by():
                    figures, count = self._train_step()
                    patches += count
                    training_seconds += self._last_step_seconds
                    done, left = self._done_and_left()
                    progress.update(figures, done, left)
                    if self.step % self.config.log_every == 0 or self._stopped_by():
                        self._log.write({"kind": "train", **dataclasses.asdict(figures)})
                    self._at_boundary(interrupts, progress)
        finally:
            self._log.close()
            # On a full disk the error that ended the run matters, not this one.
            with contextlib.suppress(OSError):
                self._describe()
        assert self._saved_step is not None
        return TrainResult(
            steps=self.step,
            seconds=self.seconds,
            loss=self._loss,
            patches_per_second=patches / training_seconds if training_seconds else 0.0,
            stopped_by=self._stopped_by(),
            evaluation=dict(self._evaluation),
            log_path=self._log.path,
            checkpoint_path=self.store.path(self._saved_step),
        )

    def _describe(self) -> None:
        """Writes run.json: the settings, and what the source holds and had to skip so far."""
        settings = {"model": self.model.config.to_dict(), "training": self.config.to_dict()}
        write_json(self.run_dir / "run.json", {**settings, "source": self.source.describe()})

    def _stopped_by(self) -> str:
        if self.config.steps and self.step >= self.config.steps:
            return "steps"
        if self.config.max_minutes and self.seconds >= 60.0 * self.config.max_minutes:
            return "time"
        return ""

    def _done_and_left(self) -> tuple[float, float]:
        shares = []
        if self.config.steps:
            shares.append(self.step / self.config.steps)
        if self.config.max_minutes:
            shares.append(self.seconds / (60.0 * self.config.max_minutes))
        done = min(max(shares), 1.0)
        return done, self.seconds * (1.0 - done) / done if done else 0.0

    def _train_step(self) -> tuple[StepFigures, int]:
        """One update; returns its figures and how many patches went through the model."""
        start = time.monotonic()
        batches = [self.source.next_batch() for _ in range(self.config.accumulation)]
        drawn = [self._draw_targets(batch, index) for index, batch in enumerate(batches)]
        total = sum(len(indices) for indices in drawn)
        if total == 0:
            raise DataError(f"step {self.step + 1}: expected at least one target patch in its batches, got none")
        if self.config.schedule_by == "time":
            progress = time_progress(self.config, self.step, self.seconds, self._last_step_seconds)
        else:
            progress = step_progress(self.config, self.step)
        rate = self._optimizers.set_factor(schedule_factor(self.config, progress))
        self.model.train()
        self._optimizers.zero_grad()
        bits = BitsPerByte()
        sums: list[Tensor] = []
        for batch, indices in zip(batches, drawn, strict=True):
            if not len(indices):
                continue
            real = int((batch.patches[indices] != EOP).sum())
            nats = self._backward(batch, indices, len(indices) / total)
            sums.append(nats)
            bits.add(0.0, len(indices) * batch.patches.shape[1], real)
        norm = self._clip()
        # The one wait for the device in a step.
        values = torch.stack([torch.stack(sums).sum(), norm.double()]).tolist()
        bits.nats, grad_norm = values
        loss = bits.nats / bits.positions
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            path = self.run_dir / f"nonfinite-step-{self.step + 1:08d}.safetensors"
            write_batches(
                path, batches, drawn, {"step": self.step + 1, "loss": repr(loss), "grad_norm": repr(grad_norm)}
            )
            raise NonFiniteLossError(self.step + 1, loss, grad_norm, path)
        self._optimizers.step()
        self.step += 1
        self._loss = loss
        now = time.monotonic()
        self.seconds = now - self._started
        self._last_step_seconds = now - start
        patches = sum(len(batch.patches) for batch in batches)
        figures = StepFigures(
            step=self.step,
            loss=loss,
            bits_per_byte=bits.per_byte,
            learning_rate=rate,
            patches_per_second=patches / self._last_step_seconds,
            grad_norm=grad_norm,
            seconds=self.seconds,
        )
        return figures, patches

    def _draw_targets(self, batch: PackedPatches, index: int) -> Tensor:
        indices = batch.target_indices()
        wanted = self.config.targets_per_step
        if wanted == 0 or len(indices) <= wanted:
            return indices
        # A stream of its own for each batch: nothing to save, and the same draw after a resume.
        generator = np.random.default_rng([self.config.seed, self.step, index])
        chosen = generator.choice(len(indices), wanted, replace=False, shuffle=False)
        return indices[torch.from_numpy(np.sort(chosen))]

    def _backward(self, batch: PackedPatches, indices: Tensor, weight: float) -> Tensor:
        """Adds `weight` × the mean loss's gradient; returns the sum of nats, float64 on the device."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.precision == "bf16"):
            output = self.model(batch.to(self.device), indices.to(self.device))
        (output.loss * weight).backward()
        return output.nats.detach().sum(dtype=torch.float64)

    def _clip(self) -> Tensor:
        limit = self.config.grad_clip or math.inf
        return torch.nn.utils.clip_grad_norm_(self._optimizers.parameters, limit)

    def _at_boundary(self, interrupts: Interrupts, progress: TrainProgress) -> None:
        """Between steps: evaluates and saves when due, and stops if a signal came."""
        ended = bool(self._stopped_by())
        is_best = False
        every = self.config.eval_every
        due = ended or (every and self.step and self.step % every == 0)
        if self._evaluate is not None and due and self._evaluated_step != self.step and not interrupts.received:
            try:
                with interrupts.stopping_evaluation():
                    is_best = self._run_evaluation(progress)
            except StopEvaluation:
                progress.message("evaluation cut short by a signal; it will be made again on resume")
            except Exception:
                # What was trained is not lost with it.
                self._save(is_best=False)
                raise
        every = self.config.save_every
        if ended or is_best or interrupts.received or (every and self.step and self.step % every == 0):
            self._save(is_best)
        if interrupts.received:
            raise TrainingInterrupted(interrupts.received, self.step, self.store.path(self.step))

    def _run_evaluation(self, progress: TrainProgress) -> bool:
        """Evaluates, logs, and says whether this is the best so far."""
        assert self._evaluate is not None
        devices = [self.device] if self.device.type == "cuda" else []
        self.model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            figures = {name: float(value) for name, value in self._evaluate(self.model).items()}
        self.seconds = time.monotonic() - self._started
        self._evaluation = figures
        self._evaluated_step = self.step
        self._log.write({"kind": "eval", "step": self.step, "seconds": self.seconds, **figures})
        progress.message(f"step {self.step}: " + " · ".join(f"{name} {value:.4f}" for name, value in figures.items()))
        name = self.config.best_metric
        if not name:
            return False
        if name not in figures:
            raise ValueError(
                f"TrainConfig.best_metric: expected one of {sorted(figures)}, which evaluate returns, got {name!r}"
            )
        value = figures[name]
        sign = 1.0 if self.config.best_is == "highest" else -1.0
        if not math.isfinite(value) or (self._best is not None and sign * value <= sign * self._best):
            return False
        self._best = value
        return True

    def _restore_rng(self) -> None:
        # At the start of training, not before: whatever was drawn since, such as another model's weights, is no matter.
        if not self._rng:
            torch.manual_seed(self.config.seed)
            return
        torch.set_rng_state(self._rng["torch"])
        if self.device.type == "cuda" and "cuda" in self._rng:
            torch.cuda.set_rng_state(self._rng["cuda"], self.device)

    def _save(self, is_best: bool) -> None:
        if self._saved_step == self.step and not is_best:
            return
        self._rng = {"torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            self._rng["cuda"] = torch.cuda.get_rng_state(self.device)
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "last_step_seconds": self._last_step_seconds,
            "loss": self._loss if math.isfinite(self._loss) else None,
            "evaluated_step": self._evaluated_step,
            "evaluation": {name: value for name, value in self._evaluation.items() if math.isfinite(value)},
            "best": self._best,
            "source": self.source.state_dict(),
            "config": self.config.to_dict(),
        }
        self._log.sync()
        self.store.save(
            self.step,
            RunState(self.model.config, self.model.state_dict(), self._optimizers.state_tensors(), self._rng, state),
            best=is_best,
        )
        self._saved_step = self.step

    def _resume(self) -> None:
        found = self.store.load_latest()
        if found is None:
            return
        step, checkpoint = found
        if checkpoint.model_config != self.model.config:
            raise ValueError(
                f"{self.run_dir}: holds a run of another model: expected {self.model.config}, "
                f"got {checkpoint.model_config}; use another run folder or the run's own model config"
            )
        state = checkpoint.state
        saved = state["config"]
        changed = {k: (saved.get(k), v) for k, v in self.config.to_dict().items() if saved.get(k) != v}
        if changed:
            text = ", ".join(f"{name} {old!r} → {new!r}" for name, (old, new) in changed.items())
            warnings.warn(f"{self.run_dir}: resuming with other settings than the run's: {text}", stacklevel=3)
        self.model.load_state_dict(checkpoint.weights)
        self._optimizers.load_state_tensors(checkpoint.optimizer)
        self.source.load_state_dict(state["source"])
        self._rng = checkpoint.rng
        self.step = step
        self.seconds = state["seconds"]
        self._last_step_seconds = state["last_step_seconds"]
        self._loss = math.nan if state["loss"] is None else state["loss"]
        self._evaluated_step = state["evaluated_step"]
        self._evaluation = state["evaluation"]
        self._best = state["best"]
        self._saved_step = step
