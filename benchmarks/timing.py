"""How long a call takes: `triton.testing.do_bench` on a GPU, `torch.utils.benchmark` on a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.utils.benchmark import Timer


class Timing(NamedTuple):
    """Quantiles of the seconds of one call, and the number of samples."""

    p20: float
    median: float
    p80: float
    calls: int


def summarise(seconds: Sequence[float]) -> Timing:
    """The quantiles of measured times."""
    times = sorted(seconds)
    return Timing(times[len(times) // 5], times[len(times) // 2], times[len(times) * 4 // 5], len(times))


def sample(call: Callable[[], object], device: torch.device, *, seconds: float = 0.15) -> list[float]:
    """Measures a call repeatedly, after a warm-up.

    On a GPU the times come from device events, and the L2 cache is cleared before each call. On a CPU short calls are
    measured in blocks, and a sample is a block's mean.

    Args:
        call: the function to measure.
        device: the device that it runs on.
        seconds: approximate measuring time; on a CPU there are at least 4 samples, within 10 seconds.

    Returns:
        The samples, in seconds of one call.
    """
    if device.type == "cuda":
        from triton.testing import do_bench

        return [milliseconds / 1e3 for milliseconds in do_bench(call, rep=1e3 * seconds, return_mode="all")]
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return timer.adaptive_autorange(math.inf, min_run_time=seconds).times


def measure(call: Callable[[], object], device: torch.device, *, seconds: float = 0.15) -> Timing:
    """The quantiles of `sample`."""
    return summarise(sample(call, device, seconds=seconds))
