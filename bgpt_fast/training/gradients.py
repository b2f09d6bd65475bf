"""The gradient of a step: the mean over all batches and ranks."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bgpt_fast.training.objectives import Objective
from bgpt_fast.training.parallel import DataParallel
from bgpt_fast.training.profiling import phase


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
