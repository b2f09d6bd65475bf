"""Measures the machine's peak rates: a large matrix product, and a large copy, whose reads and writes both count.

A peak is the best of many calls; all other figures are medians.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.timing import Clock, sample, summarise


def matrix_product(
    device: torch.device, dtype: torch.dtype, size: int, seconds: float, clock: Clock = time.perf_counter
) -> dict[str, Any]:
    """The peak `rate` of a product of two square matrices, in FLOP/s."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = sample(lambda: a @ b, device, seconds=seconds, clock=clock)
    details = {"size": size, "dtype": str(dtype).removeprefix("torch."), "rate": 2 * size**3 / min(times)}
    return {**summarise(times)._asdict(), **details}


def copy(device: torch.device, count: int, seconds: float, clock: Clock = time.perf_counter) -> dict[str, Any]:
    """The peak `rate` of copying `count` bytes, in bytes read and written per second."""
    source = torch.randint(256, (count,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = sample(lambda: target.copy_(source), device, seconds=seconds, clock=clock)
    return {**summarise(times)._asdict(), "bytes": 2 * count, "rate": 2 * count / min(times)}


def measured_peak(
    device: torch.device,
    dtypes: tuple[torch.dtype, ...],
    size: int,
    seconds: float,
    clock: Clock = time.perf_counter,
) -> dict[str, dict[str, float]]:
    """The peak rates by dtype, as `op_measure.figures` takes them.

    Args:
        device: the device to measure.
        dtypes: dtypes of the matrix product.
        size: side of the product's matrices; the copy is of 64 · size² bytes.
        seconds: about how long each is measured.
        clock: the clock on a CPU.
    """
    bandwidth = copy(device, 64 * size * size, seconds, clock)["rate"]
    return {
        str(dtype).removeprefix("torch."): {
            "matmul_flops": matrix_product(device, dtype, size, seconds, clock)["rate"],
            "copy_bytes_per_s": bandwidth,
        }
        for dtype in dtypes
    }
