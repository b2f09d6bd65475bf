"""The step loop: batches in, updates out, and everything needed to go on after a stop."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bgpt_fast.data.prefetch import Prefetcher
from bgpt_fast.data.source import BatchSource
from bgpt_fast.files import write_json
from bgpt_fast.flops import peak_flops
from bgpt_fast.training.checkpointing import CheckpointStore, CheckpointWriteError, RunState
from bgpt_fast.training.config import TrainConfig
from bgpt_fast.training.dashboards import Dashboards
from bgpt_fast.training.distributed import Ranks
from bgpt_fast.training.errors import NonFiniteLossError, RankFailedError, TrainingInterrupted
from bgpt_fast.training.interrupts import Interrupts, StopEvaluation
from bgpt_fast.training.log import RunLog
from bgpt_fast.training.objectives import Model, check_labels, labels_of
from bgpt_fast.training.optimizer import Optimizers
from bgpt_fast.training.parallel import in_parts, parallel_model, set_activation_checkpointing
from bgpt_fast.training.profiling import StepProfiler, phase, profiled_run
from bgpt_fast.training.progress import StepFigures, TrainProgress
from bgpt_fast.training.random_state import join_ranks, random_state, restore_random_state, seed_rank, states_of
from bgpt_fast.training.saves import BackgroundSaves, snapshot
from bgpt_fast.training.schedule import schedule_factor, step_progress, time_progress
from bgpt_fast.training.update import Update

if TYPE_CHECKING:
    from bgpt_fast.training.sharded import ShardWriter

Evaluate = Callable[[Any], dict[str, float]]


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Args:
        steps: steps done, earlier sessions included.
        seconds: training time, earlier sessions included.
        loss: the last step's loss in nats a position.
        patches_per_second: of this session, its evaluations and checkpoints left out.
        stopped_by: "steps", "time", or "target".
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
    losses, bit for bit, as one that ran through on the same machine with the same number of threads and of ranks.

    Where `torchrun` started several processes, or torch.distributed is initialised, each is one rank of the run: all
    make the same calls with the same settings and run folder, and each gives a source of its own share
    (`rank_and_world_size`). A step's gradient is that of the mean over all ranks' positions. Rank 0 logs and writes.

    Args:
        model: `BGPT`, trained to predict bytes, or `BGPTForClassification`, trained to tell classes; in place; moved to
            the config's device; with several ranks it starts as rank 0's.
        source: batches of `PackedPatches`, or for a classifier of `LabelledBatch`; its position is part of every
            checkpoint.
        config: see `TrainConfig`.
        run_dir: the run's folder: `run.json`, `log.jsonl`, `checkpoints/`, and what `TrainConfig` asks for:
            `tensorboard/`, `trace.json.gz` and `profile.json`. Made if missing; if it holds checkpoints, the run goes
            on from the latest intact one.
        evaluate: called with the model in evaluation mode, under no_grad and with a random state of its own; returns
            figures for the log; with several ranks each calls it, and rank 0's figures count.
        show_progress: whether to show a bar, or lines where standard error is no terminal.

    Raises:
        ValueError: `run_dir` holds a run of another model, or is not the same folder for all ranks; `device` is not
            there; `source` has other classes than the model; `best_metric` is named and there is no `evaluate`.
        CheckpointDamagedError: `run_dir` holds checkpoints, and none is intact.
    """

    def __init__(
        self,
        model: Model,
        source: BatchSource[Any],
        config: TrainConfig,
        run_dir: str | os.PathLike[str],
        evaluate: Evaluate | None = None,
        *,
        show_progress: bool = True,
    ) -> None:
        if config.best_metric and evaluate is None:
            raise ValueError(f"best_metric: expected evaluate with it, one of its figures, got {config.best_metric!r}")
        check_labels(model, source)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.ranks = Ranks(config.device, config.timeout_seconds, Path(run_dir))
        self.device = self.ranks.device
        self.model = model.to(self.device)
        set_activation_checkpointing(self.model, config.activation_checkpointing)
        self._parallel = parallel_model(self.model, self.ranks, config.parallel)
        self.source = source
        self._feed: BatchSource[Any] = source
        precision = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self._peak = (peak_flops(self.device, precision) or 0.0) * self.ranks.world_size
        self.config = config
        self.run_dir = Path(run_dir)
        self.store = CheckpointStore(self.run_dir / "checkpoints", config.keep_last)
        self.step = 0
        self.seconds = 0.0
        self._evaluate = evaluate
        self._show_progress = show_progress and self.ranks.is_main
        self._evaluated_step = 0
        self._evaluation: dict[str, float] = {}
        self._best: float | None = None
        self._saved_step: int | None = None
        self._saves = BackgroundSaves()
        self._loss = math.nan
        self._last_step_seconds = 0.0
        self._log = RunLog(self.run_dir / "log.jsonl", enabled=self.ranks.is_main)
        self._optimizers = Optimizers(model.named_parameters(), config)
        room = getattr(source, "patches_per_batch", None)
        self._update = Update(self._parallel, self._optimizers, config, self.run_dir, room)
        self._rng: dict[str, Tensor] = {}
        self._resume()

    @property
    def resumed(self) -> bool:
        """Whether the run goes on from a checkpoint."""
        return self._saved_step is not None

    def train(self) -> TrainResult:
        """Trains to the end of the budget, evaluates, saves.

        Raises:
            TrainingInterrupted: SIGTERM or SIGINT came, on any rank; the step was finished and saved. A second signal
                ends at once.
            NonFiniteLossError: a loss or gradient was not finite; raised before the update.
            CheckpointWriteError: a checkpoint could not be written; the earlier ones are intact.
            RankFailedError: another rank failed, was killed or does not answer.
            DataError: the source cannot go on.
        """
        with self.ranks.watched((TrainingInterrupted, NonFiniteLossError, CheckpointWriteError)):
            return self._train()

    def _train(self) -> TrainResult:
        self._started = time.monotonic() - self.seconds
        self._restore_rng()
        self._describe()
        self._log.open_at(self.step, self._evaluated_step)
        patches = 0
        training_seconds = 0.0
        with contextlib.ExitStack() as stack:
            stack.callback(self._close)
            self._open_feed()
            boards = self._open_dashboards()
            stack.callback(boards.close)
            profiler = self._open_profiler(stack)
            interrupts = stack.enter_context(Interrupts())
            progress = stack.enter_context(TrainProgress(self.config.steps, enabled=self._show_progress))
            self._at_boundary(interrupts, progress, boards)
            while not self._stopped_by():
                figures = self._train_step()
                patches += figures.patches
                training_seconds += self._last_step_seconds
                done, left = self._done_and_left()
                progress.update(figures, done, left)
                if self.step % self.config.log_every == 0 or self._stopped_by():
                    known = {k: v for k, v in dataclasses.asdict(figures).items() if v is not None}
                    self._log.write({"kind": "train", **known})
                    boards.write(self.step, {k: v for k, v in known.items() if k != "step"}, "train")
                self._at_boundary(interrupts, progress, boards)
                if profiler is not None:
                    profiler.step()
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

    def _open_feed(self) -> None:
        if self.config.prefetch:
            self._feed = Prefetcher(self.source, self.config.prefetch, process=self.config.prefetch_process)

    def _open_dashboards(self) -> Dashboards:
        settings = {"model": self.model.config.to_dict(), "training": self.config.to_dict()}
        return Dashboards(
            self.run_dir,
            tensorboard=self.config.tensorboard and self.ranks.is_main,
            wandb=self.config.wandb and self.ranks.is_main,
            project=self.config.wandb_project,
            config=settings,
            step=self.step,
        )

    def _open_profiler(self, stack: contextlib.ExitStack) -> StepProfiler | None:
        if not (self.config.profile_steps and self.ranks.is_main):
            return None
        return stack.enter_context(profiled_run(self.run_dir, self.config.profile_after, self.config.profile_steps))

    def _close(self) -> None:
        """Ends what a session started; the source then stands after the last batch that was used."""
        self._saves.close()
        self._log.close()
        # On a full disk the error that ended the run matters, not this one.
        with contextlib.suppress(OSError):
            self._describe()
        if isinstance(self._feed, Prefetcher):
            position = self._feed.state_dict()
            self._feed.close()
            self._feed = self.source
            self.source.load_state_dict(position)

    def _describe(self) -> None:
        """Writes run.json: the settings, and what the source holds and had to skip so far."""
        if not self.ranks.is_main:
            return
        settings = {"model": self.model.config.to_dict(), "training": self.config.to_dict()}
        write_json(self.run_dir / "run.json", {**settings, "source": self._feed.describe()})

    def _stopped_by(self) -> str:
        if self.config.steps and self.step >= self.config.steps:
            return "steps"
        if self.config.max_minutes and self.seconds >= 60.0 * self.config.max_minutes:
            return "time"
        value = self._evaluation.get(self.config.best_metric, math.nan)
        target = self.config.stop_at
        if target is not None and (value >= target if self.config.best_is == "highest" else value <= target):
            return "target"
        return ""

    def _done_and_left(self) -> tuple[float, float]:
        shares = []
        if self.config.steps:
            shares.append(self.step / self.config.steps)
        if self.config.max_minutes:
            shares.append(self.seconds / (60.0 * self.config.max_minutes))
        done = min(max(shares), 1.0)
        return done, self.seconds * (1.0 - done) / done if done else 0.0

    def _train_step(self) -> StepFigures:
        """One update; returns its figures."""
        start = time.monotonic()
        with phase("data"):
            batches = [self._feed.next_batch() for _ in range(self.config.accumulation)]
        if self.config.schedule_by == "time":
            progress = time_progress(self.config, self.step, self.seconds, self._last_step_seconds)
        else:
            progress = step_progress(self.config, self.step)
        rate = self._optimizers.set_factor(schedule_factor(self.config, progress))
        done = self._update(batches, self.step)
        self.step += 1
        self._loss = done.loss
        now = time.monotonic()
        self.seconds = now - self._started
        self._last_step_seconds = now - start
        room = getattr(self.source, "patches_per_batch", None)
        batches_a_step = self.config.accumulation * self.ranks.world_size
        return StepFigures(
            step=self.step,
            loss=done.loss,
            bits_per_byte=done.bits_per_byte,
            accuracy=done.accuracy,
            learning_rate=rate,
            grad_norm=done.grad_norm,
            patches=done.work.patches,
            documents=done.work.documents,
            fill=done.work.patches / (room * batches_a_step) if room else None,
            patches_per_second=done.work.patches / self._last_step_seconds,
            tflops=done.work.flops / self._last_step_seconds / 1e12,
            mfu=done.work.flops / self._last_step_seconds / self._peak if self._peak else None,
            seconds=self.seconds,
        )

    def _agree(self, interrupts: Interrupts) -> int:
        """The signal that any rank received, or 0; the time is rank 0's from here on, so that all end together.

        Raises:
            CheckpointWriteError: a save in the background failed, on any rank.
        """
        table = self.ranks.table([self.seconds, self._last_step_seconds, interrupts.received, self._saves.failed])
        self.seconds, self._last_step_seconds, _, _ = table[0]
        if any(row[3] for row in table):
            self._finish_saves()
        return int(max(row[2] for row in table))

    def _finish_saves(self) -> None:
        """Waits for what is being saved, on all ranks: none goes on, or ends, before the checkpoint is there."""
        failure: BaseException | None = None
        try:
            self._saves.wait()
        except (CheckpointWriteError, RuntimeError) as error:
            failure = error
        problems = [text for text in self.ranks.gather(failure and str(failure)) if text]
        if problems:
            self._saved_step = None
            raise failure or CheckpointWriteError(problems[0])

    def _at_boundary(self, interrupts: Interrupts, progress: TrainProgress, boards: Dashboards) -> None:
        """Between steps: evaluates and saves when due, and stops if a signal came."""
        received = self._agree(interrupts)
        is_best = False
        every = self.config.eval_every
        due = self._stopped_by() or (every and self.step and self.step % every == 0)
        if self._evaluate is not None and due and self._evaluated_step != self.step and not received:
            is_best = self._run_evaluation(interrupts, progress)
            if self._evaluated_step == self.step:
                boards.write(self.step, self._evaluation, "eval")
            received = self._agree(interrupts)
        every = self.config.save_every
        ends = bool(self._stopped_by() or received)
        if ends or is_best or (every and self.step and self.step % every == 0):
            boards.flush()
            self._save(is_best, wait=ends)
        if received:
            raise TrainingInterrupted(received, self.step, self.store.path(self.step))

    def _run_evaluation(self, interrupts: Interrupts, progress: TrainProgress) -> bool:
        """Evaluates, logs, and says whether this is the best so far; not if a signal cuts it short."""
        assert self._evaluate is not None
        devices = [self.device] if self.device.type == "cuda" else []
        figures: dict[str, float] = {}
        stopped = False
        failure: Exception | None = None
        with torch.no_grad(), torch.random.fork_rng(devices=devices), self._parallel.whole_model() as model:
            model.eval()
            try:
                with interrupts.stopping_evaluation():
                    figures = {name: float(value) for name, value in self._evaluate(model).items()}
            except StopEvaluation:
                stopped = True
            except Exception as error:
                failure = error
        outcomes = self.ranks.gather((stopped, failure and f"{type(failure).__name__}: {failure}", figures))
        failures = {rank: text for rank, (_, text, _) in enumerate(outcomes) if text}
        if failures:
            # What was trained is not lost with it.
            self._save(is_best=False, wait=True)
            raise failure or RankFailedError(self.ranks.rank, failures, "evaluation")
        if any(stopped for stopped, _, _ in outcomes):
            progress.message("evaluation cut short by a signal; it will be made again on resume")
            return False
        figures = outcomes[0][2]
        self.seconds = time.monotonic() - self._started
        self._evaluation = figures
        self._evaluated_step = self.step
        self._log.write({"kind": "eval", "step": self.step, "seconds": self.seconds, **figures})
        progress.message(f"step {self.step}: " + " · ".join(f"{name} {value:.4f}" for name, value in figures.items()))
        return self._is_best(figures)

    def _is_best(self, figures: dict[str, float]) -> bool:
        name = self.config.best_metric
        if not name:
            return False
        if name not in figures:
            self._save(is_best=False, wait=True)
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
        if self._rng:
            restore_random_state(self._rng, self.device)
        else:
            seed_rank(self.config.seed, self.ranks.rank, self.step)

    def _save(self, is_best: bool, *, wait: bool) -> None:
        """Saves in the background, from copies; `wait` returns when the checkpoint is there, on all ranks."""
        if self._saved_step != self.step or is_best:
            with phase("save"):
                self._start_save(is_best)
        if wait or not self.config.async_saves:
            self._finish_saves()

    def _start_save(self, is_best: bool) -> None:
        self._finish_saves()
        self._rng = random_state(self.device)
        ranks = self.ranks.gather((self._rng, self._feed.state_dict()))
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "last_step_seconds": self._last_step_seconds,
            "loss": self._loss if math.isfinite(self._loss) else None,
            "evaluated_step": self._evaluated_step,
            "evaluation": {name: value for name, value in self._evaluation.items() if math.isfinite(value)},
            "best": self._best,
            "source": ranks[0][1],
            "config": self.config.to_dict(),
        }
        if len(ranks) > 1:
            state["sources"] = [position for _, position in ranks]
        self._log.sync()
        weights, optimizer = self._parallel.weights(), snapshot(self._optimizers.state_tensors())
        parts = {name: optimizer.pop(name) for name in list(optimizer) if in_parts(optimizer[name])}
        writer = self._parallel.writer(parts)
        if self.ranks.is_main:
            run = RunState(
                self.model.config,
                snapshot(weights),
                optimizer,
                join_ranks([own for own, _ in ranks]),
                state,
                writer,
                labels_of(self.model),
            )
            self._saves.start(functools.partial(self._write, self.step, run, is_best, writer))
        elif writer is not None:
            self._saves.start(writer.follow)
        self._saved_step = self.step

    def _write(self, step: int, run: RunState, is_best: bool, writer: ShardWriter | None) -> None:
        try:
            self.store.save(step, run, best=is_best)
        finally:
            if writer is not None:
                writer.abandon()

    def _resume(self) -> None:
        found = self.store.load_latest()
        steps = [int(step) for (step,) in self.ranks.table([found[0] if found else -1])]
        if len(set(steps)) > 1:
            raise ValueError(
                f"{self.run_dir}: expected one folder that all ranks share, got latest checkpoints of steps {steps} on "
                "ranks 0, 1, …; put run_dir on a file system that all machines mount"
            )
        if found is None:
            return
        step, checkpoint = found
        if checkpoint.labels != labels_of(self.model):
            raise ValueError(
                f"{self.run_dir}: holds a run with other classes: expected {labels_of(self.model)}, got "
                f"{checkpoint.labels}; use another run folder or the run's own labels"
            )
        if checkpoint.model_config != self.model.config:
            raise ValueError(
                f"{self.run_dir}: holds a run of another model: expected {self.model.config}, "
                f"got {checkpoint.model_config}; use another run folder or the run's own model config"
            )
        state = checkpoint.state
        saved = state["config"]
        # A checkpoint from before a setting was there was written with what is its default now.
        before = TrainConfig().to_dict() | saved
        changed = {k: (before[k], v) for k, v in self.config.to_dict().items() if before[k] != v}
        if changed:
            text = ", ".join(f"{name} {old!r} → {new!r}" for name, (old, new) in changed.items())
            warnings.warn(f"{self.run_dir}: resuming with other settings than the run's: {text}", stacklevel=3)
        self._parallel.load_weights(checkpoint.weights)
        self._optimizers.load_state_tensors(checkpoint.optimizer)
        self._resume_rank(state.get("sources", [state["source"]]), checkpoint.rng)
        self.step = step
        self.seconds = state["seconds"]
        self._last_step_seconds = state["last_step_seconds"]
        self._loss = math.nan if state["loss"] is None else state["loss"]
        self._evaluated_step = state["evaluated_step"]
        self._evaluation = state["evaluation"]
        # Another metric's best is no measure.
        self._best = None if {"best_metric", "best_is"} & changed.keys() else state["best"]
        self._saved_step = step

    def _resume_rank(self, positions: list[dict[str, Any]], rng: dict[str, Tensor]) -> None:
        """This rank's own position and random state; with another number of ranks, rank 0's position and a new seed."""
        if len(positions) == self.ranks.world_size:
            self.source.load_state_dict(positions[self.ranks.rank])
            self._rng = states_of(rng, self.ranks.rank)
            return
        self.source.load_state_dict(positions[0])
        if self.ranks.is_main:
            warnings.warn(
                f"{self.run_dir}: the run had {len(positions)} ranks and goes on with {self.ranks.world_size}: "
                "weights, optimiser state and the place in the data go on; the random states of dropout start anew",
                stacklevel=4,
            )
