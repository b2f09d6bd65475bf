"""Choosing a byte from logits; each file has its own random stream.

Shape letters: N rows, V tokens.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bgpt_fast.config import VOCAB_SIZE

_STRUCT = "<dqdQ"
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


@dataclass(frozen=True)
class Sampling:
    """How a byte is chosen: top-k, then top-p over the remaining tokens, then temperature (as in the released code).

    Args:
        temperature: 0 takes the most likely byte; T > 0 samples in proportion to p^(1/T).
        top_k: keeps the k most likely tokens; 0 means off.
        top_p: keeps the fewest most likely tokens whose probabilities sum to more than p; 1 or more means off.
        seed: 0 … 2⁶⁴-1.

    Ties between equally likely tokens go to the lower token.

    Raises:
        TypeError, ValueError: a field has a wrong type or is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise TypeError(f"Sampling: {name}: expected a number, got {type(value).__name__}")
        for name in ("top_k", "seed"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"Sampling: {name}: expected an int, got {type(value).__name__}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"Sampling: temperature: expected 0 (greedy) or a positive number, got {self.temperature}")
        if not self.top_p > 0:
            raise ValueError(f"Sampling: top_p: expected a number over 0 (1 or more means off), got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"Sampling: top_k: expected 0 (off) or a positive int, got {self.top_k}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"Sampling: seed: expected 0 ≤ seed < 2⁶⁴, got {self.seed}")

    def to_tensor(self) -> Tensor:
        """The four fields, 8 bytes each, as the C++ and CUDA struct `Sampling` stores them: int64 [4] on the CPU."""
        top_k = min(self.top_k, VOCAB_SIZE)
        content = struct.pack(_STRUCT, self.temperature, top_k, self.top_p, self.seed)
        return torch.frombuffer(bytearray(content), dtype=torch.int64)

    @classmethod
    def from_tensor(cls, fields: Tensor) -> Sampling:
        """The inverse of `to_tensor`, from any device."""
        return cls(*struct.unpack(_STRUCT, fields.cpu().numpy().tobytes()))


def choose(logits: Tensor, sampling: Sampling, rng_streams: Sequence[int], positions: Sequence[int]) -> list[int]:
    """Chooses one token for each row of logits.

    Args:
        logits: float [N, V], finite.
        sampling: how to choose.
        rng_streams: N; each row's random stream.
        positions: N; the byte's position in its file, which is also its position in the random stream.

    Returns:
        N tokens; each depends only on its row of logits, the sampling, its random stream and its position.
    """
    if sampling.temperature == 0:
        return logits.argmax(1).tolist()
    cumulative = probabilities(logits, sampling).cumsum(1)
    total = cumulative[:, -1:]
    draw = torch.from_numpy(uniform(sampling.seed, rng_streams, positions))[:, None] * total
    # The second condition matters only where rounding makes the draw equal to the total.
    return ((cumulative <= draw) & (cumulative < total)).sum(1).tolist()


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that `choose` samples from at a temperature above 0: float64 [N, V] on the CPU."""
    scores = _filtered(logits.double().cpu(), sampling)
    return ((scores - scores.amax(1, keepdim=True)) / sampling.temperature).softmax(1)


def _filtered(scores: Tensor, sampling: Sampling) -> Tensor:
    """Replaces the scores that top-k and top-p exclude by -inf."""
    use_top_k = 0 < sampling.top_k < scores.shape[1]
    if not use_top_k and sampling.top_p >= 1:
        return scores
    ranked, order = scores.sort(dim=1, descending=True, stable=True)
    drop = torch.zeros_like(ranked, dtype=torch.bool)
    if use_top_k:
        drop[:, sampling.top_k :] = True
    if sampling.top_p < 1:
        remaining = ranked.masked_fill(drop, -torch.inf).softmax(1)
        drop[:, 1:] |= remaining.cumsum(1)[:, :-1] > sampling.top_p
    return scores.masked_fill(torch.empty_like(drop).scatter_(1, order, drop), -torch.inf)


def uniform(seed: int, rng_streams: Sequence[int], positions: Sequence[int]) -> np.ndarray:
    """A number in [0, 1) for each (seed, stream, position): float64 [N], 53 random bits each.

    Philox4x32-10 with the seed as its key and (position, stream) as its counter: no number depends on another one.

    Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011.
    """
    position, stream = np.array(positions, dtype=np.uint64), np.array(rng_streams, dtype=np.uint64)
    counter = (position & _LOW, position >> _SHIFT, stream & _LOW, stream >> _SHIFT)
    words = philox(counter, (np.uint64(seed) & _LOW, np.uint64(seed) >> _SHIFT))
    return ((words[0] << _SHIFT | words[1]) >> np.uint64(11)) * 2.0**-53


def philox(
    counter: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], key: tuple[np.uint64, np.uint64]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Philox4x32-10: maps a counter and a key of 32-bit words (in uint64 arrays) to four random 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = int(key[0]), int(key[1])
    for _ in range(10):
        product0, product1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3
