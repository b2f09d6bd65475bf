"""The gradient of a step: which targets are drawn, and the mean over all batches and ranks."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bgpt_fast.patches import PackedPatches
from bgpt_fast.training.config import TrainConfig
from bgpt_fast.training.parallel import Parallel


def draw_targets(batch: PackedPatches, config: TrainConfig, step: int, place: int) -> Tensor:
    """The target patches that `config.targets_per_step` allows: int64 [T], rising.

    Args:
        batch: on the CPU.
        config: `targets_per_step` and `seed` count.
        step: from 0.
        place: the batch's number among those of the step, on all ranks.
    """
    indices = batch.target_indices()
    wanted = config.targets_per_step
    if wanted == 0 or len(indices) <= wanted:
        return indices
    # A stream of its own for each batch: nothing to save, and the same draw after a resume.
    generator = np.random.default_rng([config.seed, step, place])
    chosen = generator.choice(len(indices), wanted, replace=False, shuffle=False)
    return indices[torch.from_numpy(np.sort(chosen))]


def accumulate_gradients(
    parallel: Parallel, batches: Sequence[PackedPatches], drawn: Sequence[Tensor], total: int, precision: str
) -> Tensor:
    """Makes the gradients of the mean loss over the targets of all batches and ranks.

    Args:
        parallel: the model on its ranks; each rank has equally many batches.
        batches: this rank's.
        drawn: the targets of each, maybe none.
        total: targets of all batches of all ranks.
        precision: as `TrainConfig.precision`.

    Returns:
        This rank's sum of nats, a float64 scalar on the device.
    """
    device = parallel.ranks.device
    sums = [torch.zeros((), dtype=torch.float64, device=device)]

    def loss(model: nn.Module, batch: PackedPatches, indices: Tensor, weight: float) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            output = model(batch.to(device), indices.to(device))
        if weight:
            sums.append(output.nats.detach().sum(dtype=torch.float64))
        return output.loss * weight

    parts = [
        functools.partial(loss, batch=batch, indices=indices, weight=len(indices) / total)
        for batch, indices in zip(batches, drawn, strict=True)
        if len(indices)
    ]
    if parallel.ranks.world_size > 1 and len(parts) < len(batches):
        # Ranks go through the model equally often; an empty document stands in for a batch without a target.
        blank = PackedPatches.from_bytes([("", b"")], parallel.model.config)
        stand_in = functools.partial(loss, batch=blank, indices=blank.target_indices(), weight=0.0)
        parts += [stand_in] * (len(batches) - len(parts))
    for place, part in enumerate(parts):
        parallel.backward(part, last=place == len(parts) - 1)
    return torch.stack(sums).sum()
