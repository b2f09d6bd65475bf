"""The training loop: steps, evaluations, checkpoints, and termination by budget, signal or error."""

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
from typing import Any, NamedTuple

import torch

from bgpt_fast.data.prefetch import Prefetcher, WorkerError
from bgpt_fast.data.source import BatchSource, DataError
from bgpt_fast.device import default_cpu
from bgpt_fast.files import write_json
from bgpt_fast.flops import peak_flops
from bgpt_fast.folder_lock import FolderInUseError, FolderLock
from bgpt_fast.memory import OutOfMemoryError
from bgpt_fast.training.allocator import reused_memory
from bgpt_fast.training.checkpoint_store import CheckpointStore, CheckpointWriteError
from bgpt_fast.training.checkpointer import Checkpointer
from bgpt_fast.training.config import Precision, TrainConfig
from bgpt_fast.training.dashboards import Dashboards
from bgpt_fast.training.distributed import Ranks
from bgpt_fast.training.errors import NonFiniteLossError, RankFailedError, TrainingInterrupted
from bgpt_fast.training.interrupts import Interrupts, StopEvaluation
from bgpt_fast.training.logs import RunLog
from bgpt_fast.training.objectives import Model, check_labels
from bgpt_fast.training.optimizer import Optimizers
from bgpt_fast.training.parallel.parallelize import parallelize
from bgpt_fast.training.precision import resolve_precision
from bgpt_fast.training.profiling import StepProfiler, phase, profiled_run
from bgpt_fast.training.progress import ProgressBar, figures_text
from bgpt_fast.training.random_state import random_state, restore_random_state
from bgpt_fast.training.reports import StepReports
from bgpt_fast.training.schedule import schedule_factor, step_progress, time_progress
from bgpt_fast.training.step import LaunchedStep, TrainStep

Evaluate = Callable[[Any], dict[str, float]]
Sample = Callable[[Any, int], str]


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Args:
        steps: steps done, earlier sessions included.
        seconds: training time, earlier sessions included.
        loss: the last step's loss in nats per position.
        patches_per_second: throughput of this session, excluding evaluations and checkpoints.
        data_wait_share: share of this session's steps that was spent waiting for batches, from 0 to 1.
        stopped_by: "steps", "time", or "target".
        evaluation: the last evaluation's figures.
        log_path: the run's log.jsonl.
        checkpoint_path: the last checkpoint's folder.
    """

    steps: int
    seconds: float
    loss: float
    patches_per_second: float
    data_wait_share: float
    stopped_by: str
    evaluation: dict[str, float]
    log_path: Path
    checkpoint_path: Path


class _UnreadStep(NamedTuple):
    """A step whose figures have not been read: its number from 1, when it began, how long it waited for its batches,
    its learning rate, and its work."""

    step: int
    start: float
    wait_seconds: float
    rate: float
    launched: LaunchedStep


class Trainer:
    """Trains a model on a source until its budget of steps or minutes is used up; resumes from the run folder.

    With a step schedule, a run that is stopped and resumed ends with bit-identical weights, optimiser state, random
    states and losses to an uninterrupted one on the same machine with the same numbers of threads and ranks.

    If `torchrun` started several processes, or torch.distributed is initialised, each process is one rank of the run:
    all make the same calls with the same settings and run folder, and each passes a source for its shard of the data
    (`rank_and_world_size`). A step's gradient is that of the mean over all ranks' positions. Rank 0 logs and writes.

    Args:
        model: `BGPT`, trained to predict bytes, or `BGPTForClassification`, trained to predict classes; trained in
            place; moved to the config's device; with several ranks it starts with rank 0's weights.
        source: yields `PackedPatches`, or `LabelledBatch` for a classifier; its position is part of every
            checkpoint. Its attribute `task`, if it has one, is stored with the weights.
        config: see `TrainConfig`.
        run_dir: the run's folder: `run.json`, `log.jsonl`, `checkpoints/`, and depending on `TrainConfig`
            `tensorboard/`, `trace.json.gz` and `profile.json`. Created if missing; if it holds checkpoints, the run
            resumes from the latest intact one.
        evaluate: called with the model in evaluation mode, under no_grad and with a separate random state; returns
            figures for the log; with several ranks each calls it, and rank 0's figures are used.
        sample: called by rank 0 every `TrainConfig.sample_every` steps with the model, as `evaluate`, and the step; its
            text is shown. If it raises an exception, that is shown instead, and training goes on.
        show_progress: whether to show a bar, or plain lines if standard error is not a terminal.

    Raises:
        ValueError: `run_dir` holds a run of another model, or is not the same folder on all ranks; `device` does not
            exist; `model` is on the device meta; `source` has other classes than the model; `best_metric` is set
            without `evaluate`.
        CheckpointDamagedError: `run_dir` holds checkpoints, but none is intact.
        FolderInUseError: another process is training in `run_dir`.
    """

    @default_cpu()
    def __init__(
        self,
        model: Model,
        source: BatchSource[Any],
        config: TrainConfig,
        run_dir: str | os.PathLike[str],
        evaluate: Evaluate | None = None,
        *,
        sample: Sample | None = None,
        show_progress: bool = True,
    ) -> None:
        if config.best_metric and evaluate is None:
            raise ValueError(f"best_metric: expected evaluate with it, one of its figures, got {config.best_metric!r}")
        if any(parameter.is_meta for parameter in model.parameters()):
            raise ValueError(
                "model: expected weights, got a model without any, on the device meta; make it with another default "
                "device, or load it by from_pretrained"
            )
        check_labels(model, source)
        model.task = getattr(source, "task", None)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.ranks = Ranks(config.device, config.timeout_seconds, Path(run_dir))
        self.device = self.ranks.device
        self.model = model.to(self.device)
        self.model.patch_level_decoder.base.activation_checkpointing = config.activation_checkpointing
        self._parallel = parallelize(self.model, self.ranks, config.parallel)
        self.store = CheckpointStore(Path(run_dir) / "checkpoints", config.keep_last)
        config = dataclasses.replace(config, precision=self._resolve_precision(config))
        self.source = source
        self._feed: BatchSource[Any] = source
        precision = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self._peak = (peak_flops(self.device, precision) or 0.0) * self.ranks.world_size
        self.config = config
        self.run_dir = Path(run_dir)
        self._evaluate = evaluate
        self._sample = sample
        self._show_progress = show_progress and self.ranks.is_main
        self._log = RunLog(self.run_dir / "log.jsonl", enabled=self.ranks.is_main)
        self._optimizers = Optimizers(model.named_parameters(), config)
        self._max_patches: int | None = getattr(source, "patches_per_batch", None)
        self._train_step = TrainStep(self._parallel, self._optimizers, config, self.run_dir, self._max_patches)
        self._checkpointer = Checkpointer(self.store, self._parallel, self._optimizers, config)
        self._unread: list[_UnreadStep] = []
        self._last_read = 0.0
        self._lock: FolderLock | None = None
        self._lock_folder()
        try:
            self._progress = self._checkpointer.resume(source)
        except BaseException:
            self._unlock_folder()
            raise

    def _resolve_precision(self, config: TrainConfig) -> Precision:
        """The precision of the run; "auto" is that of the run's latest checkpoint, or is measured by rank 0."""
        precision = self.store.latest_settings().get("precision") if config.precision == "auto" else None
        if precision is None:
            precision = resolve_precision(config.precision, self.model.config.hidden_size, self.device)
        resolved: Precision = self.ranks.broadcast(precision)
        return resolved

    @property
    def step(self) -> int:
        """Steps done."""
        return self._progress.step

    @property
    def seconds(self) -> float:
        """Training time, earlier sessions included."""
        return self._progress.seconds

    @property
    def resumed(self) -> bool:
        """Whether the run continues from a checkpoint."""
        return self._checkpointer.step is not None

    @property
    def stopped_by(self) -> str:
        """The limit that the run has reached, "steps", "time" or "target"; "" if it has reached none."""
        return self._progress.stopped_by(self.config)

    @default_cpu()
    def train(self) -> TrainResult:
        """Trains until the budget is used up, then evaluates and saves.

        Raises:
            TrainingInterrupted: SIGTERM or SIGINT arrived on any rank; the step was finished and saved. A second
                signal ends the process at once.
            NonFiniteLossError: a loss or gradient was not finite; neither that step nor a later one changed weights.
            CheckpointWriteError: a checkpoint could not be written; the earlier ones are intact.
            RankFailedError: another rank failed, was killed or does not respond.
            DataError, WorkerError: the source failed; a run with a single process was saved in its state after the
                last step, and resumes there when restarted.
            OutOfMemoryError: a batch needs more memory than there is; likewise saved, and resumes with smaller batches.
            FolderInUseError: another process is training in `run_dir`.
        """
        raised_by_all = (TrainingInterrupted, NonFiniteLossError, CheckpointWriteError, FolderInUseError)
        memory = reused_memory() if self.device.type == "cpu" else contextlib.nullcontext()
        with self.ranks.watched(raised_by_all), memory:
            self._lock_folder()
            try:
                return self._train()
            finally:
                self._unlock_folder()

    def _lock_folder(self) -> None:
        """Locks the run folder against other runs; raises on all ranks or on none."""
        problem: OSError | None = None
        if self.ranks.is_main and (self._lock is None or not self._lock.is_held):
            try:
                self._lock = FolderLock(self.run_dir, "a training run")
                self.ranks.remove_old_reports()
            except OSError as error:
                problem = error
        text = self.ranks.broadcast(problem and str(problem))
        if text:
            raise problem or FolderInUseError(text)

    def _unlock_folder(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _train(self) -> TrainResult:
        self._started = time.monotonic() - self.seconds
        self._checkpointer.restore_random_state(self.step)
        self._describe()
        self._log.open_at(self.step, self._progress.evaluated_step)
        with contextlib.ExitStack() as stack:
            stack.callback(self._close)
            if self.config.prefetch:
                self._feed = Prefetcher(
                    self.source,
                    self.config.prefetch,
                    process=self.config.prefetch_process,
                    pin_memory=self.device.type == "cuda",
                )
            boards = self._open_dashboards()
            stack.callback(boards.close)
            profiler = self._open_profiler(stack)
            interrupts = stack.enter_context(Interrupts())
            bar = stack.enter_context(ProgressBar(self.config.steps, enabled=self._show_progress))
            capacity = (self._max_patches or 0) * self.config.accumulation * self.ranks.world_size
            self._reports = StepReports(self.config, bar, self._log, boards, capacity, self._peak)
            self._at_boundary(interrupts, bar, boards)
            while not self.stopped_by:
                self._step_or_save()
                if self._sample is not None and self.config.sample_every and not self.step % self.config.sample_every:
                    self._read()
                    self._show_sample(self._sample, bar)
                self._at_boundary(interrupts, bar, boards)
                if profiler is not None:
                    profiler.step()
        assert self._checkpointer.step is not None
        return TrainResult(
            steps=self.step,
            seconds=self.seconds,
            loss=self._progress.loss,
            patches_per_second=self._reports.patches / self._reports.seconds if self._reports.seconds else 0.0,
            data_wait_share=self._reports.wait_seconds / self._reports.seconds if self._reports.seconds else 0.0,
            stopped_by=self.stopped_by,
            evaluation=dict(self._progress.evaluation),
            log_path=self._log.path,
            checkpoint_path=self.store.path(self._checkpointer.step),
        )

    def _settings(self) -> dict[str, Any]:
        return {"model": self.model.config.to_dict(), "training": self.config.to_dict()}

    def _open_dashboards(self) -> Dashboards:
        return Dashboards(
            self.run_dir,
            tensorboard=self.config.tensorboard and self.ranks.is_main,
            wandb=self.config.wandb and self.ranks.is_main,
            project=self.config.wandb_project,
            config=self._settings(),
            step=self.step,
        )

    def _open_profiler(self, stack: contextlib.ExitStack) -> StepProfiler | None:
        if not (self.config.profile_steps and self.ranks.is_main):
            return None
        return stack.enter_context(profiled_run(self.run_dir, self.config.profile_after, self.config.profile_steps))

    def _close(self) -> None:
        """Stops a session's threads and closes its files; leaves the source after the last trained batch."""
        self._checkpointer.close()
        self._log.close()
        # A failure here, e.g. on a full disk or of data read ahead, must neither hide the error that ended the run nor
        # be one of a run that is complete.
        with contextlib.suppress(OSError, DataError):
            self._describe()
        if isinstance(self._feed, Prefetcher):
            position = self._feed.state_dict()
            self._feed.close()
            self._feed = self.source
            problem = self._set_back(position)
            if problem:
                warnings.warn(problem, stacklevel=2)

    def _set_back(self, position: dict[str, Any]) -> str:
        """Sets the data back to a position; returns why that is impossible, "" if it is not."""
        try:
            self._feed.load_state_dict(position)
        except Exception as error:
            return f"the data could not be set back to where training ended: {type(error).__name__}: {error}"
        return ""

    def _describe(self) -> None:
        """Writes run.json: the settings and the source's description, including the files that it skipped."""
        if self.ranks.is_main:
            write_json(self.run_dir / "run.json", {**self._settings(), "source": self._feed.describe()})

    def _step(self) -> None:
        """Runs a step and reports its figures, or on a GPU those of the step before: so the host never waits for the
        step that it has just launched."""
        start = time.monotonic()
        with phase("data"), self._train_step.data_memory():
            batches = [self._feed.next_batch() for _ in range(self.config.accumulation)]
        wait_seconds = time.monotonic() - start
        if self.config.schedule_by == "time":
            done = time_progress(self.config, self.step, self.seconds, self._progress.last_step_seconds)
        else:
            done = step_progress(self.config, self.step)
        rate = self._optimizers.set_factor(schedule_factor(self.config, done))
        launched = self._train_step(batches, self.step)
        self._progress.step += 1
        self._progress.seconds = time.monotonic() - self._started
        self._unread.append(_UnreadStep(self.step, start, wait_seconds, rate, launched))
        self._read(keep=1 if self._train_step.is_late else 0)

    def _read(self, keep: int = 0) -> None:
        """Waits for the figures of all steps but the last `keep`, and reports them.

        Raises:
            NonFiniteLossError: a step's are not finite; neither it nor a later step has changed the weights.
        """
        progress = self._progress
        while len(self._unread) > keep:
            step, start, wait_seconds, rate, launched = self._unread[0]
            try:
                result = launched.result()
            except NonFiniteLossError:
                progress.step = step - 1
                self._unread.clear()
                raise
            del self._unread[0]
            now = time.monotonic()
            progress.loss = result.loss
            progress.seconds = now - self._started
            progress.last_step_seconds = now - max(start, self._last_read)
            self._last_read = now
            is_last = bool(self.stopped_by) and step == self.step
            self._reports.add(step, rate, result, progress, wait_seconds, is_last=is_last)

    def _agree(self, interrupts: Interrupts) -> int:
        """The signal received by any rank, or 0; sets the elapsed time to rank 0's, so that all ranks end together.

        Raises:
            CheckpointWriteError: a background save failed, on any rank.
        """
        progress = self._progress
        table = self.ranks.all_gather_floats(
            [progress.seconds, progress.last_step_seconds, interrupts.received, self._checkpointer.failed]
        )
        progress.seconds, progress.last_step_seconds, _, _ = table[0]
        if any(row[3] for row in table):
            self._checkpointer.finish()
        return int(max(row[2] for row in table))

    def _step_or_save(self) -> None:
        """Runs a step; if the source fails or memory runs out, first saves the run in its state before the step."""
        position, rng = self._feed.state_dict(), random_state(self.device)
        try:
            self._step()
        except NonFiniteLossError:
            if self._train_step.is_late:  # this step has followed the one that failed
                restore_random_state(rng, self.device)
                self._set_back(position)
            raise
        except (DataError, WorkerError, OutOfMemoryError) as error:
            restore_random_state(rng, self.device)
            # So that a new call of `train` repeats the step with all its batches.
            problem = self._set_back(position)
            if self._train_step.updating:
                error.add_note(
                    "the update was not complete: make a new Trainer, which goes on from the last checkpoint"
                )
            # With several ranks, the others are already in the step, and a checkpoint needs all of them.
            elif self.ranks.world_size == 1 and self.step:
                self._read()
                error.add_note(self._saved_at(position))
            if problem:
                error.add_note(problem)
            raise

    def _saved_at(self, position: dict[str, Any]) -> str:
        """Saves the last step, waits for the checkpoint, and returns the outcome as text."""
        if self._checkpointer.step != self.step and not all(
            bool(one.isfinite().all()) for one in self.model.parameters()
        ):
            return "the weights are no longer finite and were not saved"
        self._log.sync()
        try:
            self._checkpointer.save(self._progress, position, best=False, wait=True)
        except (CheckpointWriteError, OutOfMemoryError) as failure:
            return str(failure)
        return f"saved in {self.store.path(self.step)}: start the same run again to go on"

    def _at_boundary(self, interrupts: Interrupts, bar: ProgressBar, boards: Dashboards) -> None:
        """Between steps: evaluates and saves when due, and raises if a signal has arrived."""
        received = self._agree(interrupts)
        is_best = False
        if self.stopped_by or received or self._is_due(self.config.eval_every) or self._is_due(self.config.save_every):
            self._read()
        due = self.stopped_by or self._is_due(self.config.eval_every)
        if self._evaluate is not None and due and self._progress.evaluated_step != self.step and not received:
            is_best = self._run_evaluation(interrupts, bar)
            if self._progress.evaluated_step == self.step:
                boards.write(self.step, self._progress.evaluation, "eval")
            received = self._agree(interrupts)
        ends = bool(self.stopped_by or received)
        if ends or is_best or self._is_due(self.config.save_every):
            boards.flush()
            self._save(is_best, wait=ends)
        if received:
            raise TrainingInterrupted(received, self.step, self.store.path(self.step))

    def _is_due(self, every: int) -> bool:
        """Whether what happens every so many steps, 0 for never, happens after this one."""
        return bool(every and self.step and self.step % every == 0)

    def _show_sample(self, sample: Sample, bar: ProgressBar) -> None:
        """Shows what the model generates; the random states are unchanged, as by an evaluation."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices), self._parallel.whole_model() as model:
            if not self.ranks.is_main:
                return
            model.eval()
            try:
                text = sample(model, self.step)
            except Exception as error:  # a sample is no reason to lose a run
                text = f"step {self.step}: no sample: {type(error).__name__}: {error}"
        bar.message(text)

    def _run_evaluation(self, interrupts: Interrupts, bar: ProgressBar) -> bool:
        """Evaluates and logs; returns whether this is the best so far, False if interrupted by a signal."""
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
        outcomes = self.ranks.all_gather((stopped, failure and f"{type(failure).__name__}: {failure}", figures))
        failures = {rank: text for rank, (_, text, _) in enumerate(outcomes) if text}
        if failures:
            # Save first, so that a failing evaluation does not lose the training so far.
            self._save(is_best=False, wait=True)
            raise failure or RankFailedError(self.ranks.rank, failures, "evaluation")
        if any(stopped for stopped, _, _ in outcomes):
            bar.message("evaluation cut short by a signal; it is repeated on resume")
            return False
        figures = outcomes[0][2]
        self._progress.seconds = time.monotonic() - self._started
        self._progress.evaluation = figures
        self._progress.evaluated_step = self.step
        self._log.write({"kind": "eval", "step": self.step, "seconds": self.seconds, **figures})
        bar.message(f"step {self.step}: " + figures_text(figures))
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
        best = self._progress.best
        if not math.isfinite(value) or (best is not None and sign * value <= sign * best):
            return False
        self._progress.best = value
        return True

    def _save(self, is_best: bool, *, wait: bool) -> None:
        self._log.sync()
        self._checkpointer.save(self._progress, self._feed.state_dict(), best=is_best, wait=wait)
