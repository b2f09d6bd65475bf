"""Evaluation of a model in bits per byte on held-out batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from bgpt_fast.metrics import BitsPerByte
from bgpt_fast.model import BGPT, batch_memory
from bgpt_fast.patches import PackedPatches


def likelihood_evaluation(batches: Sequence[PackedPatches]) -> Callable[[BGPT], dict[str, float]]:
    """An `evaluate` for `Trainer`: the model's bits per position and per byte over `batches`, teacher-forced.

    Args:
        batches: evaluation documents on any device, such as `list(FileSource(..., split="eval").one_pass())`.

    Returns:
        A function of the model that returns the figures of `BitsPerByte.to_dict`, and `loss` in nats per position.

    Raises:
        ValueError: there are no batches.
    """
    if not batches:
        raise ValueError("likelihood_evaluation: batches: expected at least one, got none")

    def evaluate(model: BGPT) -> dict[str, float]:
        device = next(model.parameters()).device
        totals = BitsPerByte()
        with torch.no_grad():
            for batch in batches:
                with batch_memory("the evaluation", model, batch, "patches_per_batch"):
                    output = model(batch.to(device))
                    targets = batch.patches.to(device)[output.indices]
                    totals.update(output.nats, targets, model.config)
        return {"loss": totals.nats / totals.positions, **totals.to_dict()}

    return evaluate
