"""The precision of a training run: on CPUs, whichever of float32 and bfloat16 multiplies matrices faster.

Neither always does: bfloat16 ran at half of float32's rate on an Intel processor with AVX-512, at twice on AMD ones
(Zen 4, Zen 5), and at eight times on an Intel one with AMX.
"""

from __future__ import annotations

import functools
import time
from typing import NamedTuple

import torch

from bgpt_fast.kernels.matrix_product.op import matrix_product
from bgpt_fast.training.config import Precision

MIN_GAIN = 1.3
"""How many times as fast bfloat16's products must be: half-precision tensors also have to be converted."""
_REPEATS = 5
_ROWS = 1024


class ProductRates(NamedTuple):
    """Rates of a matrix product on the CPU, FLOP/s, with torch's present number of threads."""

    float32: float
    bfloat16: float

    @property
    def text(self) -> str:
        """The rates for people to read."""
        return f"products: float32 {self.float32 / 1e9:,.0f}, bfloat16 {self.bfloat16 / 1e9:,.0f} GFLOP/s"


def resolve_precision(precision: Precision, width: int, device: torch.device) -> Precision:
    """The precision in which a run computes, "fp32" or "bf16".

    Args:
        precision: "auto" is "bf16" on GPUs of compute capability 8.0 and later and where a CPU's bfloat16 products are
            `MIN_GAIN` times as fast as float32 ones, measured in some milliseconds; others are returned as they are.
        width: the model's.
        device: where the run computes.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    rates = product_rates(width)
    return "bf16" if rates.bfloat16 > MIN_GAIN * rates.float32 else "fp32"


@functools.cache
def product_rates(width: int) -> ProductRates:
    """Measures the product of an MLP's first layer, [1,024, width] times [width, 4 · width], in both dtypes."""
    return ProductRates(*(_rate(width, dtype) for dtype in (torch.float32, torch.bfloat16)))


def _rate(width: int, dtype: torch.dtype) -> float:
    x = torch.ones(_ROWS, width, dtype=dtype, device="cpu")
    weight = torch.ones(width, 4 * width, dtype=dtype, device="cpu")
    seconds = []
    for _ in range(1 + _REPEATS):  # the first makes the kernel
        start = time.perf_counter()
        matrix_product(x, weight)
        seconds.append(time.perf_counter() - start)
    return 2 * _ROWS * width * 4 * width / min(seconds[1:])
