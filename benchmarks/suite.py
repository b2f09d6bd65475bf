"""How the suite measures an item: times, rates, shares of the machine's peak rates, and memory.

Every item's `extra_info` contains: `what` is measured, the `implementation`, `dtype`, p20, median, p80 and calls; the
`units` of work per call with their `unit` and `units_per_s`; gb_per_s and tflop_per_s of the minimum work, with the
peak rate that is its `bound` and the share of it that is reached (`of_peak`); `peak_bytes`, the peak tensor memory
above that before the call; and further details of the item.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.names import OURS
from benchmarks.op_cases import Work
from benchmarks.op_measure import figures
from benchmarks.scales import Scale
from benchmarks.timing import Clock, sample, sample_in_turn, summarise
from bgpt_fast.flops import peak_flops

_NO_WORK = Work(0)


def tensor_peak(call: Callable[[], object], device: torch.device) -> int:
    """The peak tensor memory during a call, in bytes above that before the call.

    On the CPU it counts torch's allocator only, not the memory of other libraries.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    assert profiler.profiler is not None
    results = profiler.profiler.kineto_results
    assert results is not None
    changes = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    total = peak = 0
    for _, change in changes:
        total += change
        peak = max(peak, total)
    return peak


@dataclass(frozen=True)
class Bench:
    """Measures one item.

    Args:
        benchmark: pytest-benchmark's fixture.
        device: where to compute.
        scale: the sizes.
        peak: the machine's measured peak rates, by dtype.
        clock: the clock on a CPU.
    """

    benchmark: Any
    device: torch.device
    scale: Scale
    peak: dict[str, dict[str, float]]
    clock: Clock

    def __call__(self, call: Callable[[], object], what: str, *, memory: bool = True, **details: Any) -> None:
        """Times a call, and with `memory` measures the peak of one more; the other arguments are those of `record`."""
        times = sample(call, self.device, seconds=self.scale.seconds, clock=self.clock)
        self.record(times, what, peak_bytes=tensor_peak(call, self.device) if memory else None, **details)

    def in_turn(self, calls: Mapping[str, Callable[[], object]]) -> dict[str, tuple[list[float], int]]:
        """Measures calls by turns: the times in seconds and the peak memory in bytes of each, by name."""
        times = sample_in_turn(calls, self.device, seconds=self.scale.seconds, clock=self.clock)
        return {name: (times[name], tensor_peak(call, self.device)) for name, call in calls.items()}

    def record(
        self,
        times: Sequence[float],
        what: str,
        *,
        implementation: str = OURS,
        dtype: torch.dtype = torch.float32,
        work: Work = _NO_WORK,
        units: int = 0,
        unit: str = "",
        peak_bytes: int | None = None,
        computed_in: torch.dtype | None = None,
        **details: Any,
    ) -> None:
        """Writes an item's times, in seconds, into the result.

        Args:
            times: seconds of each call.
            what: the measured work; implementations of the same `what` in the same dtype are compared.
            implementation: name of the implementation.
            dtype: dtype of the computation.
            work: minimum work of a call.
            units, unit: number of units of work per call, and the unit's name.
            peak_bytes: peak memory of a call in bytes.
            computed_in: the dtype whose peak rate is the bound, if it is not `dtype`.
            details: further entries of the result.
        """
        name = str(dtype).removeprefix("torch.")
        timing = summarise(times)
        peak = self.peak.get(str(computed_in or dtype).removeprefix("torch."), {})
        values = figures(timing, work, peak) if work.bytes else timing._asdict()
        if work.flops and (datasheet := peak_flops(self.device, dtype)):
            values["mfu_of_datasheet"] = work.flops / timing.median / datasheet
        if units:
            values |= {"units": units, "unit": unit, "units_per_s": units / timing.median}
        self.benchmark.group = f"{what}, {name}"
        self.benchmark.extra_info.update(
            what=what, implementation=implementation, device=self.device.type, dtype=name, bytes=work.bytes
        )
        self.benchmark.extra_info.update(flops=work.flops, peak_bytes=peak_bytes, **values, **details)
        # pytest-benchmark cannot use device events: the samples replace its own.
        self.benchmark._mode = "bgpt_fast"
        if self.benchmark.enabled:
            stats = self.benchmark._make_stats(1)
            for seconds in times:
                stats.update(seconds)
