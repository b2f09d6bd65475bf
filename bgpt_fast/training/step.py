"""One optimiser step: gradients over all batches and ranks, a check that they are finite, the update."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from bgpt_fast.data.source import DataError
from bgpt_fast.device import HostCopy
from bgpt_fast.memory import OutOfMemoryError, named_out_of_memory
from bgpt_fast.metrics import BitsPerByte
from bgpt_fast.model import BGPT
from bgpt_fast.training.config import TrainConfig
from bgpt_fast.training.errors import NonFiniteLossError
from bgpt_fast.training.graphed import GraphedGradients, GraphedUpdate
from bgpt_fast.training.logs import write_batches
from bgpt_fast.training.objectives import BatchStats, Objective, labels_of, objective_of
from bgpt_fast.training.optimizer import Optimizers
from bgpt_fast.training.parallel.ddp import DataParallel
from bgpt_fast.training.profiling import phase

CAN_GRAPH = ("cuda",)
CAN_READ_LATE = ("cuda",)
"""Kinds of devices on which a step's figures are read after the next step was launched."""


class StepResult(NamedTuple):
    """A step over all ranks: nats per position (classifier: per document), bits per real byte (None for a classifier),
    classification accuracy (None for a generative model), gradient norm before clipping, batch counts."""

    loss: float
    bits_per_byte: float | None
    accuracy: float | None
    grad_norm: float
    stats: BatchStats


class LaunchedStep(NamedTuple):
    """A step that the device may not have finished: its counts, and a function that waits for its figures and raises
    NonFiniteLossError if they are not finite."""

    stats: BatchStats
    result: Callable[[], StepResult]


class TrainStep:
    """Updates a model on its ranks, one call per step.

    On one GPU with AdamW the host does not wait for a step's figures: the device itself skips the update of a step
    whose loss or gradient is not finite, and all updates after it, until the host has read the figures and raises. With
    several ranks, with Muon and on a CPU the figures are read before the update.

    Args:
        parallel: the model on its ranks.
        optimizers: the optimisers of its parameters, with the learning rates set.
        config: the run's config.
        run_dir: folder for the batches of a step with a non-finite loss or gradient.
        max_patches: maximum number of patches in a batch; None if the source does not state it.

    Attributes:
        updating: whether the last call failed while it changed the weights, which are then unusable.
        is_late: whether the figures need not be read before the next call.

    Raises:
        ValueError: `config.cuda_graph` is set but a graph is impossible; says why.
    """

    def __init__(
        self,
        parallel: DataParallel,
        optimizers: Optimizers,
        config: TrainConfig,
        run_dir: Path,
        max_patches: int | None,
    ) -> None:
        self.parallel = parallel
        self.graphed_batches = 0
        self._model = parallel.model
        self._ranks = parallel.ranks
        self._optimizers = optimizers
        self._config = config
        self._run_dir = run_dir
        self._objective = objective_of(self._model)
        self._max_patches = max_patches
        # A source without a maximum number of patches has a number of documents.
        self._batch_settings: tuple[str, ...] = ("documents_per_batch" if max_patches is None else "patches_per_batch",)
        if labels_of(self._model) is None:
            self._batch_settings += ("targets_per_step",)
        self.updating = False
        device = self._ranks.device
        self.is_late = device.type in CAN_READ_LATE and self._ranks.world_size == 1 and optimizers.can_skip
        self._skip, self._one = torch.zeros((), device=device), torch.ones((), device=device)
        self._graphed = self._graphed_gradients(max_patches) if config.cuda_graph else None

    def __call__(self, batches: Sequence[Any], step: int) -> LaunchedStep:
        """Updates the model.

        Args:
            batches: this rank's batches, `config.accumulation` of them.
            step: from 0.

        Raises:
            DataError: the batches of all ranks contain nothing to predict.
            NonFiniteLossError: a loss or gradient is not finite; no update was made. If `is_late`, `result` raises it.
            OutOfMemoryError: the step needs more memory than there is; no update was made, unless `updating`.
        """
        first = self._ranks.rank * self._config.accumulation
        targets = [
            self._objective.sample_targets(batch, self._config, step, first + index)
            for index, batch in enumerate(batches)
        ]
        stats = self._stats(batches, targets, step)
        self._model.train()
        figures = self._launched(batches, targets, stats.units)
        result = functools.partial(self._result, HostCopy(figures), stats, batches, targets, step)
        if not self.is_late:
            result = functools.partial(_same, result())
            self._update_weights()
        return LaunchedStep(stats, result)

    def _launched(self, batches: Sequence[Any], targets: Sequence[Tensor], total: int) -> Tensor:
        """Computes and clips the gradients and, if `is_late`, updates the weights, without a wait.

        Returns:
            This rank's sums of nats and of correct units, and its gradient norm, float64 [3] on the device.
        """
        graphed = self._graphed
        try:
            with self._batch_memory(batches, targets):
                if graphed is not None and self.is_late and len(batches) == 1 and graphed.fits(batches[0], targets[0]):
                    self.graphed_batches += 1
                    with phase("graph"):
                        return graphed.step(batches[0], targets[0])
                self._optimizers.zero_grad(keep=graphed is not None)
                figures = self._clipped(self._gradients(batches, targets, total))
        except OutOfMemoryError:
            self._optimizers.zero_grad(keep=graphed is not None)
            raise
        return self._checked_update(figures) if self.is_late else figures

    def _clipped(self, sums: Tensor) -> Tensor:
        """Clips the gradients; returns `sums` and their norm, float64 [3]."""
        with phase("clip"):
            norm = self.parallel.clip(self._optimizers.parameters, self._config.grad_clip or math.inf)
            return torch.cat([sums, norm.double().reshape(1)])

    def _checked_update(self, figures: Tensor) -> Tensor:
        """Updates the weights unless a figure is not finite, of this step or of an earlier one that was not read."""
        # Sets `skip` to 1 if a figure is not finite, and never back to 0.
        torch._amp_foreach_non_finite_check_and_unscale_([figures], self._skip, self._one)
        self._update_weights(self._skip)
        return figures

    def _update_weights(self, skip: Tensor | None = None) -> None:
        self.updating = True
        with phase("optimizer"), named_out_of_memory(self._optimizer_text, advice="train a smaller model"):
            self._optimizers.step(skip)
        self.updating = False

    def _result(
        self, figures: HostCopy, stats: BatchStats, batches: Sequence[Any], targets: Sequence[Tensor], step: int
    ) -> StepResult:
        """Waits for a step's figures: this rank's sums of nats and of correct units, and its gradient norm."""
        with phase("clip"):
            # The only wait for the device in a step.
            table = self._ranks.all_gather_floats(figures.tolist())
        bits = BitsPerByte()
        bits.add(sum(nats for nats, _, _ in table), stats.positions, stats.num_bytes)
        loss = bits.nats / bits.positions
        grad_norm = max((row[2] for row in table), key=lambda norm: (not math.isfinite(norm), norm))
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self._skip.zero_()
            self._raise_non_finite(loss, grad_norm, batches, targets, step)
        right = sum(right for _, right, _ in table)
        return StepResult(
            loss=loss,
            bits_per_byte=bits.per_byte if stats.num_bytes else None,
            accuracy=right / stats.units if labels_of(self._model) is not None else None,
            grad_norm=grad_norm,
            stats=stats,
        )

    def _batch_memory(self, batches: Sequence[Any], targets: Sequence[Tensor]) -> AbstractContextManager[None]:
        """Names the sizes of the batches if memory runs out."""

        def what() -> str:
            config = self._model.config
            sizes = [self._objective.stats(batch, units, config) for batch, units in zip(batches, targets, strict=True)]
            largest = max(sizes, key=lambda stats: stats.patches)
            return (
                f"the gradients of a batch of {largest.patches:,} patches in {largest.documents:,} documents, "
                f"{largest.units:,} targets, with a model of {self._num_parameters():,} parameters"
            )

        advice = "" if self._config.activation_checkpointing else "set activation_checkpointing"
        return named_out_of_memory(what, *self._batch_settings, advice=advice)

    def data_memory(self) -> AbstractContextManager[None]:
        """Names the size of the batches if memory runs out while a source makes them."""
        most = "" if self._max_patches is None else f" of at most {self._max_patches:,} patches"
        return named_out_of_memory(lambda: f"the next batches{most}", self._batch_settings[0], "prefetch")

    def _optimizer_text(self) -> str:
        return f"the optimizer's update of {self._num_parameters():,} parameters"

    def _num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._model.parameters())

    def _gradients(self, batches: Sequence[Any], targets: Sequence[Tensor], total: int) -> Tensor:
        """As `accumulate_gradients`, but uses the CUDA graph for batches that fit it."""
        graphed = self._graphed
        fits = [graphed is not None and graphed.fits(*each) for each in zip(batches, targets, strict=True)]
        rest = [index for index, fit in enumerate(fits) if not fit]
        sums = accumulate_gradients(
            self.parallel,
            self._objective,
            [batches[index] for index in rest],
            [targets[index] for index in rest],
            total,
            self._config.precision,
        )
        for batch, units, fit in zip(batches, targets, fits, strict=True):
            if graphed is not None and fit:
                with phase("graph"):
                    sums[0] += graphed.add(
                        batch, units, self._objective.units(batch, units, self._model.config) / total
                    )
                self.graphed_batches += 1
        return sums

    def _stats(self, batches: Sequence[Any], targets: Sequence[Tensor], step: int) -> BatchStats:
        """Counts of a step's batches, summed over ranks."""
        config = self._model.config
        mine = [self._objective.stats(batch, units, config) for batch, units in zip(batches, targets, strict=True)]
        table = self._ranks.all_gather_floats([sum(column) for column in zip(*mine, strict=True)])
        stats = BatchStats(*(int(sum(column)) for column in zip(*table, strict=True)))
        if stats.units == 0:
            raise DataError(f"step {step + 1}: expected at least one target patch in its batches, got none")
        return stats

    def _raise_non_finite(
        self, loss: float, grad_norm: float, batches: Sequence[Any], targets: Sequence[Tensor], step: int
    ) -> NoReturn:
        """Saves the batches of a step with a non-finite loss or gradient, and raises."""
        rank = f"-rank{self._ranks.rank}" if self._ranks.world_size > 1 else ""
        path = self._run_dir / f"nonfinite-step-{step + 1:08d}{rank}.safetensors"
        tensors = [self._objective.tensors(batch, units) for batch, units in zip(batches, targets, strict=True)]
        write_batches(path, tensors, {"step": step + 1, "loss": repr(loss), "grad_norm": repr(grad_norm)})
        raise NonFiniteLossError(step + 1, loss, grad_norm, path)

    def _graphed_gradients(self, max_patches: int | None) -> GraphedGradients:
        device = self._ranks.device.type
        problems = {
            f"a CUDA device, got {device}": device not in CAN_GRAPH,
            f"a single process, got {self._ranks.world_size} ranks": self._ranks.world_size > 1,
            "a generative model, got a classifier": labels_of(self._model) is not None,
            f"no dropout, got {self._model.config.dropout}": self._model.config.dropout > 0.0,
            # In float32 attention groups the documents by length, which the host has to know.
            f"precision='bf16' on a GPU, got {self._config.precision!r}": device == "cuda"
            and self._config.precision != "bf16",
            "no activation_checkpointing, got True": self._config.activation_checkpointing,
            "a source with patches_per_batch, got one without": max_patches is None,
        }
        for problem, is_there in problems.items():
            if is_there:
                raise ValueError(f"TrainConfig.cuda_graph: expected {problem}; switch it off")
        assert isinstance(self._model, BGPT)
        assert max_patches is not None
        return GraphedGradients(
            self._model,
            max_patches,
            self._config.targets_per_step or max_patches,
            autocast=self._config.precision == "bf16",
            update=GraphedUpdate(lambda sums: self._checked_update(self._clipped(sums)), self._skip),
        )


def _same(result: StepResult) -> StepResult:
    return result


def accumulate_gradients(
    parallel: DataParallel,
    objective: Objective[Any],
    batches: Sequence[Any],
    targets: Sequence[Tensor],
    total: int,
    precision: str,
) -> Tensor:
    """Computes the gradients of the mean loss over the units of all batches and ranks.

    Args:
        parallel: the model on its ranks; each rank has the same number of batches.
        objective: defines units and their loss.
        batches: this rank's batches.
        targets: the units of each batch, possibly none.
        total: number of units in all batches of all ranks.
        precision: as `TrainConfig.precision`.

    Returns:
        This rank's sum of nats and number of correct units, float64 [2] on the device.
    """
    device, config = parallel.ranks.device, parallel.model.config
    sums = [torch.zeros(2, dtype=torch.float64, device=device)]

    def loss(model: nn.Module, batch: Any, indices: Tensor, weight: float) -> Tensor:
        with phase("forward"), torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            mean, nats_and_hits = objective.loss(model, batch, indices, device)
        if weight:
            sums.append(nats_and_hits)
        return mean * weight

    parts = [
        functools.partial(loss, batch=batch, indices=indices, weight=objective.units(batch, indices, config) / total)
        for batch, indices in zip(batches, targets, strict=True)
        if len(indices)
    ]
    if parallel.ranks.world_size > 1 and len(parts) < len(batches):
        # Ranks must call the model the same number of times; an empty document replaces a batch without units.
        dummy_batch = objective.dummy_batch(config)
        units = torch.ones(1, dtype=torch.int64, device="cpu")
        replacement = functools.partial(loss, batch=dummy_batch, indices=units, weight=0.0)
        parts += [replacement] * (len(batches) - len(parts))
    for index, part in enumerate(parts):
        parallel.backward(part, last=index == len(parts) - 1)
    return torch.stack(sums).sum(0)
