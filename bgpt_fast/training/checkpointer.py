"""Saves a run in the background and resumes it: progress, weights, optimiser, random states, data position."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bgpt_fast.data.source import BatchSource
from bgpt_fast.memory import named_out_of_memory
from bgpt_fast.training.checkpoint_store import CheckpointStore, CheckpointWriteError, RunState
from bgpt_fast.training.config import TrainConfig
from bgpt_fast.training.distributed import Ranks
from bgpt_fast.training.objectives import check_same_task, labels_of
from bgpt_fast.training.optimizer import Optimizers
from bgpt_fast.training.parallel.ddp import DataParallel
from bgpt_fast.training.parallel.dtensor import is_dtensor
from bgpt_fast.training.profiling import phase
from bgpt_fast.training.progress import Progress
from bgpt_fast.training.random_state import join_ranks, random_state, restore_random_state, seed_rank, states_of

if TYPE_CHECKING:
    from bgpt_fast.training.shards import ShardWriter


class Checkpointer:
    """The checkpoints of one run on all its ranks; a thread writes them from copies, one at a time.

    Args:
        store: the checkpoints on disk.
        parallel: the model on its ranks.
        optimizers: the optimisers of the model's parameters.
        config: the run's config.

    Attributes:
        step: step of the last checkpoint written or loaded; None if there is none.
    """

    def __init__(
        self, store: CheckpointStore, parallel: DataParallel, optimizers: Optimizers, config: TrainConfig
    ) -> None:
        self.step: int | None = None
        self._store = store
        self._parallel = parallel
        self._ranks = parallel.ranks
        self._model = parallel.model
        self._optimizers = optimizers
        self._config = config
        self._background = AsyncSaver()
        self._rng: dict[str, Tensor] = {}

    @property
    def failed(self) -> bool:
        """Whether the most recent save failed; False while it is running."""
        return self._background.failed

    def resume(self, source: BatchSource[Any]) -> Progress:
        """Loads the latest intact checkpoint into model, optimisers and source; returns a new `Progress` without one.

        Raises:
            ValueError: the checkpoint is of another model, or ranks see different checkpoints.
            CheckpointDamagedError: there are checkpoints, but none is intact.
        """
        run_dir = self._store.folder.parent
        latest = self._store.load_latest()
        steps = [int(step) for (step,) in self._ranks.all_gather_floats([latest[0] if latest else -1])]
        if len(set(steps)) > 1:
            raise ValueError(
                f"{run_dir}: expected one folder that all ranks share, got latest checkpoints of steps {steps} on "
                "ranks 0, 1, …; put run_dir on a file system that all machines mount"
            )
        if latest is None:
            return Progress()
        step, checkpoint = latest
        if checkpoint.labels != labels_of(self._model):
            raise ValueError(
                f"{run_dir}: holds a run with other classes: expected {labels_of(self._model)}, got "
                f"{checkpoint.labels}; use another run folder or the run's own labels"
            )
        check_same_task(checkpoint.task, self._model.task, f"{run_dir}: holds a run of another task")
        if checkpoint.model_config != self._model.config:
            raise ValueError(
                f"{run_dir}: holds a run of another model: expected {self._model.config}, "
                f"got {checkpoint.model_config}; use another run folder or the run's own model config"
            )
        state = checkpoint.state
        # Settings added after the checkpoint was written are taken to have had their default values.
        before = TrainConfig().to_dict() | state["config"]
        changed = {k: (before[k], v) for k, v in self._config.to_dict().items() if before[k] != v}
        if changed:
            text = ", ".join(f"{name} {old!r} → {new!r}" for name, (old, new) in changed.items())
            warnings.warn(f"{run_dir}: resuming with other settings than the run's: {text}", stacklevel=4)
        self._parallel.load_weights(checkpoint.weights)
        self._optimizers.load_state_tensors(checkpoint.optimizer)
        self._resume_rank(source, state.get("sources", [state["source"]]), checkpoint.rng)
        self.step = step
        progress = Progress.from_dict(state)
        if {"best_metric", "best_is"} & changed.keys():
            progress.best = None  # not comparable: it is a value of another metric
        return progress

    def restore_random_state(self, step: int) -> None:
        """Restores the random states of the checkpoint, or seeds the generators of a run that starts at `step`.

        Called when training starts, so that random numbers drawn since `resume`, such as for another model's initial
        weights, have no effect.
        """
        if self._rng:
            restore_random_state(self._rng, self._ranks.device)
        else:
            seed_rank(self._config.seed, self._ranks.rank, step)

    def save(self, progress: Progress, position: dict[str, Any], *, best: bool, wait: bool) -> None:
        """Saves in the background, from copies, unless this step has already been saved.

        Args:
            progress: the run's progress.
            position: the source's position.
            best: whether this is the best checkpoint so far.
            wait: whether to return only when the checkpoint is complete, on all ranks.

        Raises:
            CheckpointWriteError: this save or the one before it failed, on any rank.
            OutOfMemoryError: no memory for the copies.
        """
        if self.step != progress.step or best:
            with phase("save"), named_out_of_memory(lambda: "a checkpoint's copy of weights and optimizer state"):
                self._start(progress, position, best)
        if wait or not self._config.async_saves:
            self.finish()

    def finish(self) -> None:
        """Waits on all ranks until the running save is complete.

        Raises:
            CheckpointWriteError: the save failed, on any rank.
        """
        failure: BaseException | None = None
        try:
            self._background.wait()
        except Exception as error:  # the other ranks must learn of any
            failure = error
        text = None if failure is None else str(failure) or type(failure).__name__
        problems = [text for text in self._ranks.all_gather(text) if text]
        if problems:
            self.step = None
            raise failure or CheckpointWriteError(problems[0])

    def close(self) -> None:
        """Waits for the running save, and ends the thread."""
        self._background.close()

    def _start(self, progress: Progress, position: dict[str, Any], best: bool) -> None:
        self.finish()
        self._rng = random_state(self._ranks.device)
        ranks = self._ranks.all_gather((self._rng, position))
        state = {**progress.to_dict(), "source": ranks[0][1], "config": self._config.to_dict()}
        if len(ranks) > 1:
            state["sources"] = [own for _, own in ranks]
        weights, optimizer = self._parallel.weights(), snapshot(self._optimizers.state_tensors())
        parts = {name: optimizer.pop(name) for name in list(optimizer) if is_dtensor(optimizer[name])}
        writer = _shard_writer(parts, self._ranks) if parts else None
        if self._ranks.is_main:
            run = RunState(
                self._model.config,
                snapshot(weights),
                optimizer,
                join_ranks([own for own, _ in ranks]),
                state,
                writer,
                labels_of(self._model),
                self._model.task,
            )
            self._background.start(functools.partial(self._write, progress.step, run, best, writer))
        elif writer is not None:
            self._background.start(writer.follow)
        self.step = progress.step

    def _write(self, step: int, run: RunState, best: bool, writer: ShardWriter | None) -> None:
        try:
            self._store.save(step, run, best=best)
        finally:
            if writer is not None:
                writer.abandon()

    def _resume_rank(self, source: BatchSource[Any], positions: list[dict[str, Any]], rng: dict[str, Tensor]) -> None:
        """Restores this rank's position and random state; with a new rank count, rank 0's position and a new seed."""
        if len(positions) == self._ranks.world_size:
            source.load_state_dict(positions[self._ranks.rank])
            self._rng = states_of(rng, self._ranks.rank)
            return
        source.load_state_dict(positions[0])
        if self._ranks.is_main:
            warnings.warn(
                f"{self._store.folder.parent}: the run had {len(positions)} ranks and goes on with "
                f"{self._ranks.world_size}: weights, optimiser state and the position in the data go on; the random "
                "states of dropout start anew",
                stacklevel=5,
            )


def _shard_writer(parts: dict[str, Tensor], ranks: Ranks) -> ShardWriter:
    # Imported lazily: torch.distributed.checkpoint takes a second to import, and few runs use it.
    from bgpt_fast.training.shards import ShardWriter

    return ShardWriter(parts, ranks)


class AsyncSaver:
    """Runs one save at a time in a thread; `wait` re-raises its exception."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._last: Future[None] | None = None

    @property
    def failed(self) -> bool:
        """Whether the last save failed; False while it is running."""
        return self._last is not None and self._last.done() and self._last.exception() is not None

    def start(self, save: Callable[[], None]) -> None:
        """Waits for the running save, then starts this one.

        Raises:
            BaseException: the exception of the earlier save.
        """
        self.wait()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "bgpt-save")
        self._last = self._pool.submit(save)

    def wait(self) -> None:
        """Waits for the running save.

        Raises:
            BaseException: the exception of that save; raised only once.
        """
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """Waits for the running save, and ends the thread."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


@torch.no_grad()
def snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies tensors to the CPU, safe from later steps; tied tensors stay tied; DTensors are copied on their device."""
    copies: dict[object, Tensor] = {}
    snapshots = {}
    for name, tensor in tensors.items():
        if is_dtensor(tensor):
            snapshots[name] = tensor.clone()
            continue
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.device) if tensor.numel() else name
        if key not in copies:
            copies[key] = tensor.detach().to("cpu", copy=True)
        snapshots[name] = copies[key]
    return snapshots
