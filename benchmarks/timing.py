"""How long a call takes: `triton.testing.do_bench` on a GPU, `torch.utils.benchmark` on a CPU."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch.utils.benchmark import Timer

Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "thread": time.thread_time}
"""Clocks of the CPU: the elapsed time, and the CPU time of the calling thread. On a machine that others use too, the
latter is the time that a call would take alone, if it shares its work evenly among its threads."""


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


def sample(
    call: Callable[[], object], device: torch.device, *, seconds: float = 0.15, clock: Clock = time.perf_counter
) -> list[float]:
    """Measures a call repeatedly, after a warm-up.

    On a GPU the times come from device events, and the L2 cache is cleared before each call. On a CPU short calls are
    measured in blocks, and a sample is a block's mean.

    Args:
        call: the function to measure.
        device: the device that it runs on.
        seconds: approximate measuring time; on a CPU there are at least 4 samples, within 10 seconds.
        clock: the clock on a CPU.

    Returns:
        The samples, in seconds of one call.
    """
    if device.type == "cuda":
        from triton.testing import do_bench

        return [milliseconds / 1e3 for milliseconds in do_bench(call, rep=1e3 * seconds, return_mode="all")]
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads(), timer=clock)
    return timer.adaptive_autorange(math.inf, min_run_time=seconds).times


def sample_in_turn(
    calls: Mapping[str, Callable[[], object]], device: torch.device, *, seconds: float, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Measures several calls by turns, so that what else the machine does meets all of them alike.

    Args:
        calls: what to measure, by name; each runs once before.
        device: the device that they run on; on a GPU a turn is a `sample`.
        seconds: approximate measuring time of each; there are at least 4 turns, or one if it is 0.
        clock: the clock on a CPU.

    Returns:
        The samples of each, in seconds of one call.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    turns = 0
    while not turns or (seconds and (turns < 4 or sum(map(sum, times.values())) < seconds * len(calls))):
        turns += 1
        for name, call in calls.items():
            if device.type == "cuda":
                times[name] += sample(call, device, seconds=seconds / 4)
            else:
                start = clock()
                call()
                times[name].append(clock() - start)
    return times


def measure(call: Callable[[], object], device: torch.device, *, seconds: float = 0.15) -> Timing:
    """The quantiles of `sample`."""
    return summarise(sample(call, device, seconds=seconds))
