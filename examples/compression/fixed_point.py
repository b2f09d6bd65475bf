"""Integer frequencies from logits, by steps that round alike on every processor.

Each step is one operation of IEEE 754 (a difference, a product with a power of two, a truncation) or of integers.
numpy's exp and its sums of floats would not do: their last bits depend on the width of the processor's vectors.
"""

from __future__ import annotations

from decimal import Context, Decimal, localcontext

import numpy as np
from numpy.typing import NDArray

TOTAL = 1 << 24
"""Sum of the frequencies of all bytes."""
FLOOR = TOTAL // 64 // 256
"""Frequency that every byte has at least: 1/64 of TOTAL in equal parts, so that no byte takes more than 14 bits."""

_UNIT = 31  # e^x is held in units of 2^-31
_LIMIT = 22  # e^-22 is below that unit
_COARSE, _FINE = 8, 16  # x is held in units of 2^-16, looked up in steps of 2^-8 and the rest


def _exponentials(count: int, bits: int) -> NDArray[np.int64]:
    """int64 [count]: e^(-i / 2^bits) in units of 2^-_UNIT, from decimal arithmetic, defined to the last digit."""
    with localcontext(Context(prec=30)):
        return np.array([int((Decimal(-i) / 2**bits).exp() * 2**_UNIT) for i in range(count)], np.int64)


_COARSE_TABLE = _exponentials((_LIMIT << _COARSE) + 1, _COARSE)
_FINE_TABLE = _exponentials(1 << (_FINE - _COARSE), _FINE)


def cumulative_frequencies(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """Returns int64 [N, 257]: byte b of row n has the interval [c[n, b], c[n, b + 1]) of TOTAL.

    A row depends only on the same row of logits.

    Args:
        logits: finite float32 [N, 257]; the end-of-file logit is ignored, since the size is known.
    """
    scores = logits[:, :256].astype(np.float64)
    below = np.minimum(scores.max(1, keepdims=True) - scores, _LIMIT) * 2**_FINE
    steps = below.astype(np.int64)
    fine_steps = (1 << (_FINE - _COARSE)) - 1
    weights = _COARSE_TABLE[steps >> (_FINE - _COARSE)] * _FINE_TABLE[steps & fine_steps] >> _UNIT
    frequencies = FLOOR + weights * (TOTAL - 256 * FLOOR) // weights.sum(1, keepdims=True)
    # What the divisions left over goes to the first of the likeliest bytes.
    frequencies[np.arange(len(logits)), weights.argmax(1)] += TOTAL - frequencies.sum(1)
    cumulative = np.zeros((len(logits), 257), np.int64)
    np.cumsum(frequencies, 1, out=cumulative[:, 1:])
    return cumulative
