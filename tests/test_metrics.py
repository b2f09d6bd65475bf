"""Bits per byte in both forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bgpt_fast.metrics import BitsPerByte, ByteScores, bootstrap_interval


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


def test_byte_scores_from_their_sums() -> None:
    scores = ByteScores.of(np.array([8 * math.log(2), 8.0, 3.0, 6.0, 2.0]))
    assert scores.figures() == {
        "bits_per_position": pytest.approx(1.0),
        "bits_per_byte": pytest.approx(8 / 3),
        "accuracy": pytest.approx(2 / 3),
        "accuracy_positions": pytest.approx(6 / 8),
        "bytes": 3,
        "positions": 8,
    }
    empty = ByteScores().figures()
    assert empty["bits_per_byte"] is empty["accuracy"] is empty["accuracy_positions"] is None


def test_the_bootstrap_is_as_wide_as_theory_says() -> None:
    stream = np.random.default_rng(0)
    values = stream.normal(5.0, 2.0, 400)
    interval = bootstrap_interval(values, np.ones(400), resamples=4000)
    assert interval is not None
    error = values.std() / math.sqrt(400)
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    narrow = bootstrap_interval(values, np.ones(400), resamples=4000, confidence=0.5)
    assert narrow is not None
    assert narrow.high - narrow.low == pytest.approx(2 * 0.674 * error, rel=0.15)


def test_the_bootstrap_weights_files_by_their_size() -> None:
    # Ten bytes at 1 bit in one file, 1,000 at 3 bits in another: the ratio of sums, never the mean of ratios.
    interval = bootstrap_interval(np.array([10.0, 3000.0]), np.array([10.0, 1000.0]))
    assert interval is not None
    assert interval == (1.0, 3.0)
    again = bootstrap_interval(np.array([10.0, 3000.0]), np.array([10.0, 1000.0]), seed=0)
    assert again == interval


def test_the_bootstrap_of_too_little_and_wrong_arguments() -> None:
    assert bootstrap_interval(np.ones(1), np.ones(1)) is None
    assert bootstrap_interval(np.ones(0), np.ones(0)) is None
    assert bootstrap_interval(np.ones(3), np.zeros(3)) is None
    with pytest.raises(ValueError, match="one shape"):
        bootstrap_interval(np.ones(3), np.ones(2))
    with pytest.raises(ValueError, match="confidence: expected a share between 0 and 1, got 1"):
        bootstrap_interval(np.ones(3), np.ones(3), confidence=1.0)
    with pytest.raises(ValueError, match="resamples"):
        bootstrap_interval(np.ones(3), np.ones(3), resamples=0)
