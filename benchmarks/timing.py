"""How long a call takes: medians with p20 and p80, by device events on a GPU and by the clock on a CPU."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

L2_BYTES = 60 << 20  # the largest second-level cache among the GPUs that are measured (H200)
_SLEEP_CYCLES = 40_000_000  # about 20 ms of an idle GPU, in which the host queues calls ahead of it


class Timing(NamedTuple):
    """Seconds of one call, and how many calls were measured."""

    p20: float
    median: float
    p80: float
    calls: int


def summarise(seconds: Sequence[float]) -> Timing:
    """The quantiles of measured times."""
    times = sorted(seconds)
    return Timing(times[len(times) // 5], times[len(times) // 2], times[len(times) * 4 // 5], len(times))


def measure(calls: Sequence[Callable[[], object]], device: torch.device, *, seconds: float = 0.15) -> Timing:
    """The quantiles of `sample`."""
    return summarise(sample(calls, device, seconds=seconds))


def sample(calls: Sequence[Callable[[], object]], device: torch.device, *, seconds: float = 0.15) -> list[float]:
    """Times calls that do the same on different inputs, in turn.

    On a GPU the inputs of all calls together should be several times `L2_BYTES`, or the cache is measured. The device
    sleeps before the first measured call while the host queues the first ones, so that short kernels are not hidden
    behind the launches of their own measurement.

    Args:
        calls: at least one.
        device: where they compute.
        seconds: about how long to measure, after a warm-up of two rounds; where the first round takes longer than
            that, it is the whole warm-up.

    Returns:
        The seconds of each measured call.
    """
    began = time.perf_counter()
    for call in calls:
        call()
    if time.perf_counter() - began < seconds:
        for call in calls:
            call()
    turn = itertools.cycle(calls)
    if device.type != "cuda":
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < 3 or (time.perf_counter() < end and len(times) < 1000):
            call = next(turn)
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
        return times
    torch.cuda.synchronize()
    began = time.perf_counter()
    for call in calls:
        call()
    torch.cuda.synchronize()
    estimate = (time.perf_counter() - began) / len(calls)
    count = min(200, max(5, int(seconds / estimate)))
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
    torch.cuda._sleep(_SLEEP_CYCLES)
    for before, after in events:
        call = next(turn)
        before.record()
        call()
        after.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1e3 for before, after in events]


def poison(tensors: Sequence[Tensor]) -> None:
    """Leaves NaN in memory that the next outputs of these shapes are likely to get, so that unwritten elements show."""
    filled = [torch.full_like(tensor, torch.nan) for tensor in tensors if tensor.is_floating_point()]
    del filled
