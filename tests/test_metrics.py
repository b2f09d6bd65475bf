"""Bits per byte in both forms."""

from __future__ import annotations

import math

import pytest
import torch

from bgpt_fast.metrics import BitsPerByte


def test_both_forms_on_a_worked_example() -> None:
    patches = torch.tensor([[1, 2, 3, 256], [256, 256, 256, 256]])
    nats = torch.full((2, 4), math.log(2))
    metric = BitsPerByte()
    metric.update(nats, patches)
    assert metric.per_position == pytest.approx(1.0)
    assert metric.per_byte == pytest.approx(8 / 3)
    assert metric.to_dict()["bytes"] == 3


def test_batches_add_up_whatever_their_sizes() -> None:
    generator = torch.Generator().manual_seed(0)
    nats = torch.rand(37, 16, generator=generator)
    patches = torch.randint(0, 257, (37, 16), generator=generator)
    patches[-5:] = 256
    whole = BitsPerByte()
    whole.update(nats, patches)
    parts = BitsPerByte()
    means = []
    for start, stop in ((0, 1), (1, 30), (30, 37), (37, 37)):
        parts.update(nats[start:stop], patches[start:stop])
        if stop > start:
            means.append(float(nats[start:stop].mean()) / math.log(2))
    assert parts.per_position == pytest.approx(whole.per_position, rel=1e-12)
    assert parts.per_byte == pytest.approx(whole.per_byte, rel=1e-12)
    # The mean of the batches' means, a common mistake, is another number.
    assert abs(sum(means) / len(means) - whole.per_position) > 1e-4


def test_nothing_is_nan_and_shapes_are_checked() -> None:
    metric = BitsPerByte()
    assert math.isnan(metric.per_byte)
    assert math.isnan(metric.per_position)
    with pytest.raises(ValueError, match="one shape"):
        metric.update(torch.zeros(2, 4), torch.zeros(2, 3))
