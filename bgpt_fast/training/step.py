"""One update: gradients of a step's batches on all ranks, refused where they are not finite, then the optimisers."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from bgpt_fast.data.source import DataError
from bgpt_fast.metrics import BitsPerByte
from bgpt_fast.model import BGPT
from bgpt_fast.training.config import TrainConfig
from bgpt_fast.training.errors import NonFiniteLossError
from bgpt_fast.training.graphed import GraphedGradients
from bgpt_fast.training.logs import write_batches
from bgpt_fast.training.objectives import BatchStats, Objective, labels_of, objective_of
from bgpt_fast.training.optimizer import Optimizers
from bgpt_fast.training.parallel.ddp import DataParallel
from bgpt_fast.training.profiling import phase

CAN_GRAPH = ("cuda",)


class UpdateFigures(NamedTuple):
    """Of all ranks together: nats a position (or document), bits a real byte and the share of classes right where they
    mean something, the gradient norm before clipping, and what the batches held."""

    loss: float
    bits_per_byte: float | None
    accuracy: float | None
    grad_norm: float
    work: BatchStats


class TrainStep:
    """Makes updates of a model on its ranks.

    Args:
        parallel: the model.
        optimizers: of its parameters, their rates set.
        config: as the run's.
        run_dir: where batches that are not finite are written.
        room: most patches of a batch, where that is known.

    Raises:
        ValueError: `config.cuda_graph` is asked for where it cannot be; says why.
    """

    def __init__(
        self, parallel: DataParallel, optimizers: Optimizers, config: TrainConfig, run_dir: Path, room: int | None
    ) -> None:
        self.parallel = parallel
        self.graphed_batches = 0
        self._model = parallel.model
        self._ranks = parallel.ranks
        self._optimizers = optimizers
        self._config = config
        self._run_dir = run_dir
        self._objective = objective_of(self._model)
        self._graphed = self._graphed_gradients(room) if config.cuda_graph else None

    def __call__(self, batches: Sequence[Any], step: int) -> UpdateFigures:
        """Updates the model.

        Args:
            batches: this rank's, `config.accumulation` of them.
            step: from 0.

        Raises:
            DataError: there is nothing to predict in the batches of all ranks.
            NonFiniteLossError: a loss or gradient is not finite; no update was made.
        """
        first = self._ranks.rank * self._config.accumulation
        drawn = [
            self._objective.sample_targets(batch, self._config, step, first + index)
            for index, batch in enumerate(batches)
        ]
        work = self._work(batches, drawn, step)
        self._model.train()
        self._optimizers.zero_grad(keep=self._graphed is not None)
        sums = self._gradients(batches, drawn, work.units)
        with phase("clip"):
            norm = self.parallel.clip(self._optimizers.parameters, self._config.grad_clip or math.inf)
            # The one wait for the device in a step.
            table = self._ranks.table(torch.cat([sums, norm.double().reshape(1)]).tolist())
        bits = BitsPerByte()
        bits.add(sum(nats for nats, _, _ in table), work.positions, work.num_bytes)
        loss = bits.nats / bits.positions
        grad_norm = max((row[2] for row in table), key=lambda norm: (not math.isfinite(norm), norm))
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self._refuse(loss, grad_norm, batches, drawn, step)
        with phase("optimizer"):
            self._optimizers.step()
        right = sum(right for _, right, _ in table)
        return UpdateFigures(
            loss=loss,
            bits_per_byte=bits.per_byte if work.num_bytes else None,
            accuracy=right / work.units if labels_of(self._model) is not None else None,
            grad_norm=grad_norm,
            work=work,
        )

    def _gradients(self, batches: Sequence[Any], drawn: Sequence[Tensor], total: int) -> Tensor:
        """Makes a step's gradients; those of batches that fit it by the graph. Returns as `accumulate_gradients`."""
        graphed = self._graphed
        fits = [graphed is not None and graphed.fits(*each) for each in zip(batches, drawn, strict=True)]
        rest = [index for index, fit in enumerate(fits) if not fit]
        sums = accumulate_gradients(
            self.parallel,
            self._objective,
            [batches[index] for index in rest],
            [drawn[index] for index in rest],
            total,
            self._config.precision,
        )
        for batch, units, fit in zip(batches, drawn, fits, strict=True):
            if graphed is not None and fit:
                with phase("graph"):
                    sums[0] += graphed.add(batch, units, len(units) / total)
                self.graphed_batches += 1
        return sums

    def _work(self, batches: Sequence[Any], drawn: Sequence[Tensor], step: int) -> BatchStats:
        """What all ranks' batches of a step hold together."""
        config = self._model.config
        mine = [self._objective.work(batch, units, config) for batch, units in zip(batches, drawn, strict=True)]
        table = self._ranks.table([sum(column) for column in zip(*mine, strict=True)])
        work = BatchStats(*(int(sum(column)) for column in zip(*table, strict=True)))
        if work.units == 0:
            raise DataError(f"step {step + 1}: expected at least one target patch in its batches, got none")
        return work

    def _refuse(
        self, loss: float, grad_norm: float, batches: Sequence[Any], drawn: Sequence[Tensor], step: int
    ) -> NoReturn:
        """Writes out the batches of a step that is not finite, and raises."""
        rank = f"-rank{self._ranks.rank}" if self._ranks.world_size > 1 else ""
        path = self._run_dir / f"nonfinite-step-{step + 1:08d}{rank}.safetensors"
        tensors = [self._objective.tensors(batch, units) for batch, units in zip(batches, drawn, strict=True)]
        write_batches(path, tensors, {"step": step + 1, "loss": repr(loss), "grad_norm": repr(grad_norm)})
        raise NonFiniteLossError(step + 1, loss, grad_norm, path)

    def _graphed_gradients(self, room: int | None) -> GraphedGradients:
        device = self._ranks.device.type
        problems = {
            f"a CUDA device, got {device}": device not in CAN_GRAPH,
            f"a single process, got {self._ranks.world_size} ranks": self._ranks.world_size > 1,
            "a generative model, got a classifier": labels_of(self._model) is not None,
            f"no dropout, got {self._model.config.dropout}": self._model.config.dropout > 0.0,
            "no activation_checkpointing, got it": self._config.activation_checkpointing,
            "a source with patches_per_batch, got one without": room is None,
        }
        for problem, is_there in problems.items():
            if is_there:
                raise ValueError(f"TrainConfig.cuda_graph: expected {problem}; switch it off")
        assert isinstance(self._model, BGPT)
        assert room is not None
        return GraphedGradients(
            self._model, room, self._config.targets_per_step, autocast=self._config.precision == "bf16"
        )


def accumulate_gradients(
    parallel: DataParallel,
    objective: Objective[Any],
    batches: Sequence[Any],
    drawn: Sequence[Tensor],
    total: int,
    precision: str,
) -> Tensor:
    """Makes the gradients of the mean loss over the units of all batches and ranks.

    Args:
        parallel: the model on its ranks; each rank has equally many batches.
        objective: what a unit is and costs.
        batches: this rank's.
        drawn: the units of each, maybe none.
        total: units of all batches of all ranks.
        precision: as `TrainConfig.precision`.

    Returns:
        This rank's sum of nats and number of units right, float64 [2] on the device.
    """
    device = parallel.ranks.device
    sums = [torch.zeros(2, dtype=torch.float64, device=device)]

    def loss(model: nn.Module, batch: Any, indices: Tensor, weight: float) -> Tensor:
        with phase("forward"), torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            mean, found = objective.loss(model, batch, indices, device)
        if weight:
            sums.append(found)
        return mean * weight

    parts = [
        functools.partial(loss, batch=batch, indices=indices, weight=len(indices) / total)
        for batch, indices in zip(batches, drawn, strict=True)
        if len(indices)
    ]
    if parallel.ranks.world_size > 1 and len(parts) < len(batches):
        # Ranks go through the model equally often; an empty document stands in for a batch without a unit.
        dummy_batch = objective.dummy_batch(parallel.model.config)
        units = torch.ones(1, dtype=torch.int64)
        stand_in = functools.partial(loss, batch=dummy_batch, indices=units, weight=0.0)
        parts += [stand_in] * (len(batches) - len(parts))
    for place, part in enumerate(parts):
        parallel.backward(part, last=place == len(parts) - 1)
    return torch.stack(sums).sum(0)
