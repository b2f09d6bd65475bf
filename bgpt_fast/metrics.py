"""Bits per byte in both common definitions, byte accuracy, and confidence intervals."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bgpt_fast.config import BGPTConfig


class BitsPerByte:
    """Accumulates negative log-likelihoods over batches; both figures are exact for any batch sizes.

    `per_position` is the released training loss in bits: the mean over all S positions of every target patch, `<eop>`
    padding and end-of-file patches included. `per_byte` is the cost for a compressor: all bits, including those of
    padding and end of file, divided by the number of real bytes. More padding makes the first look better.

    Source: arXiv 2402.19155, section 3, and the released code for `per_position`.
    """

    def __init__(self) -> None:
        self.nats = 0.0
        self.positions = 0
        self.bytes = 0

    def update(self, nats: Tensor, patches: Tensor, config: BGPTConfig | None = None) -> None:
        """Adds one batch.

        Args:
            nats: float [T, S], negative log-likelihood of each position in nats.
            patches: int [T, S], the target patches.
            config: of the model, for its alphabet; None means bGPT's. Positions with its `pad` do not count.

        Raises:
            ValueError: the shapes differ.
        """
        if nats.shape != patches.shape:
            raise ValueError(
                f"BitsPerByte: expected nats and patches of one shape, got {tuple(nats.shape)} "
                f"and {tuple(patches.shape)}"
            )
        alphabet = config or BGPTConfig()
        is_real = (patches != alphabet.eop) & (patches != alphabet.fill)
        positions = nats.numel() if alphabet.pad is None else int((patches != alphabet.pad).sum())
        self.add(float(nats.detach().sum(dtype=torch.float64)), positions, int(is_real.sum()))

    def add(self, nats: float, positions: int, num_bytes: int) -> None:
        """Adds the sums of a batch: nats, number of positions, number of real bytes among them."""
        self.nats += nats
        self.positions += positions
        self.bytes += num_bytes

    @property
    def per_position(self) -> float:
        """Bits per position, padding included; NaN without positions."""
        return self.nats / math.log(2) / self.positions if self.positions else math.nan

    @property
    def per_byte(self) -> float:
        """Bits per real byte; NaN without real bytes."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    def to_dict(self) -> dict[str, float]:
        """Both figures by name, and the number of real bytes."""
        return {"bits_per_position": self.per_position, "bits_per_byte": self.per_byte, "bytes": float(self.bytes)}


class ByteScores(BitsPerByte):
    """Bits per byte by both definitions, and top-1 accuracy.

    `accuracy` is over real bytes; `accuracy_positions` is over all positions, padding and end of file included, and
    looks better with more padding.
    """

    COUNTS = ("nats", "positions", "bytes", "right_positions", "right_bytes")

    def __init__(self) -> None:
        super().__init__()
        self.right_positions = 0
        self.right_bytes = 0

    @classmethod
    def of(cls, row: NDArray[np.float64]) -> ByteScores:
        """Scores from their sums, float64 [5] in the order of `COUNTS`."""
        scores = cls()
        scores.add(float(row[0]), int(row[1]), int(row[2]))
        scores.right_positions, scores.right_bytes = int(row[3]), int(row[4])
        return scores

    @property
    def row(self) -> NDArray[np.float64]:
        """The sums in the format that `of` takes."""
        return np.array([getattr(self, name) for name in self.COUNTS], np.float64)

    @property
    def accuracy(self) -> float:
        """Share of real bytes predicted correctly; NaN without real bytes."""
        return self.right_bytes / self.bytes if self.bytes else math.nan

    @property
    def accuracy_positions(self) -> float:
        """Share of all positions predicted correctly; NaN without positions."""
        return self.right_positions / self.positions if self.positions else math.nan

    def figures(self) -> dict[str, float | int | None]:
        """All figures by name, JSON-serialisable: None instead of NaN."""
        ratios = {
            "bits_per_position": self.per_position,
            "bits_per_byte": self.per_byte,
            "accuracy": self.accuracy,
            "accuracy_positions": self.accuracy_positions,
        }
        known = {name: None if math.isnan(value) else value for name, value in ratios.items()}
        return {**known, "bytes": self.bytes, "positions": self.positions}


class Interval(NamedTuple):
    """A confidence interval, both ends included."""

    low: float
    high: float


def bootstrap_interval(
    numerators: NDArray[np.float64],
    denominators: NDArray[np.float64],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval | None:
    """Percentile bootstrap, resampling files, of a ratio of sums such as total bits / total bytes.

    Args:
        numerators, denominators: float [N], one value per file.
        resamples: number of times that N files are drawn with replacement.
        confidence: share of the resampled ratios inside the interval.
        seed: seed of the resampling.

    Returns:
        The interval; None for fewer than two files, or if all denominators are 0.

    Raises:
        ValueError: different shapes, or a number out of range.

    Source: Efron, "Bootstrap methods: another look at the jackknife", 1979, percentile form.
    """
    if numerators.shape != denominators.shape or numerators.ndim != 1:
        raise ValueError(
            f"bootstrap_interval: expected numerators and denominators of one shape [N], got "
            f"{numerators.shape} and {denominators.shape}"
        )
    if resamples < 1:
        raise ValueError(f"bootstrap_interval: resamples: expected at least 1, got {resamples}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"bootstrap_interval: confidence: expected a share between 0 and 1, got {confidence}")
    N = len(numerators)
    if N < 2:
        return None
    stream = np.random.default_rng(seed)
    ratios = []
    for _ in range(resamples):
        sample = stream.integers(0, N, N)
        total = float(denominators[sample].sum())
        if total:
            ratios.append(float(numerators[sample].sum()) / total)
    if not ratios:
        return None
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
    return Interval(low, high)
