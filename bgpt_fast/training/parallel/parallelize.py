"""Chooses how a model is parallelised over the ranks of a run."""

from __future__ import annotations

from bgpt_fast.training.distributed import Ranks
from bgpt_fast.training.objectives import Model
from bgpt_fast.training.parallel.ddp import DataParallel


def parallelize(model: Model, ranks: Ranks, kind: str) -> DataParallel:
    """Parallelises a model; `kind` is `TrainConfig.parallel`, "ddp" or "fsdp", ignored with a single process."""
    if ranks.world_size > 1 and kind == "fsdp":
        # FSDP's imports take a second, and most runs do not need them.
        from bgpt_fast.training.parallel.fsdp import FullySharded

        return FullySharded(model, ranks)
    return DataParallel(model, ranks)
