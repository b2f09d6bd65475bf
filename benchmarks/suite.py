"""The suite's one way to measure an item: times, rates, shares of the machine's limits, and memory.

Every item's `extra_info` holds: `what` is measured, the `implementation`, `dtype`, p20, median, p80 and calls; `units`
of work a call with their `unit` and `units_per_s`; gb_per_s and tflop_per_s of the least work, with the limit that
binds and the share of it that is reached; `peak_bytes`, the most that tensors took beyond what was there before the
call; and whatever else the item says of itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from op_cases import Work
from op_measure import figures
from optional_peers import OURS
from scales import Scale
from timing import sample, summarise
from torch.profiler import ProfilerActivity, profile

from bgpt_fast.flops import peak_flops

_NO_WORK = Work(0)


def tensor_peak(call: Callable[[], object], device: torch.device) -> int:
    """The most bytes that tensors took during a call, beyond those there before.

    On the CPU it counts what torch's allocator hands out; memory of other libraries is not in it.
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
    results = profiler.profiler.kineto_results if profiler.profiler is not None else None
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
        scale: how large.
        limits: measured, by dtype.
    """

    benchmark: Any
    device: torch.device
    scale: Scale
    limits: dict[str, dict[str, float]]

    def __call__(
        self,
        calls: Sequence[Callable[[], object]],
        what: str,
        *,
        implementation: str = OURS,
        dtype: torch.dtype = torch.float32,
        work: Work = _NO_WORK,
        units: int = 0,
        unit: str = "",
        memory: bool = True,
        **details: Any,
    ) -> None:
        """Times calls in turn and hands the samples to pytest-benchmark.

        Args:
            calls: the same work on different inputs.
            what: is measured; implementations of the same in the same dtype are compared.
            implementation: who does it.
            dtype: of the computation.
            work: the least that a call must do.
            units, unit: how much a call does, and of what.
            memory: whether to measure the peak of one more call.
            details: more for the receipt.
        """
        times = sample(calls, self.device, seconds=self.scale.seconds)
        peak = tensor_peak(calls[0], self.device) if memory else None
        self.record(
            times,
            what,
            implementation=implementation,
            dtype=dtype,
            work=work,
            units=units,
            unit=unit,
            peak_bytes=peak,
            **details,
        )

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
        """Takes times that were measured elsewhere; arguments as in `__call__`.

        `computed_in` is the dtype whose limit binds, where that is another one than what the item is compared in.
        """
        name = str(dtype).removeprefix("torch.")
        timing = summarise(times)
        limits = self.limits.get(str(computed_in or dtype).removeprefix("torch."), {})
        found = figures(timing, work, limits) if work.bytes else timing._asdict()
        if work.flops and (peak := peak_flops(self.device, dtype)):
            found["mfu_of_datasheet"] = work.flops / timing.median / peak
        if units:
            found |= {"units": units, "unit": unit, "units_per_s": units / timing.median}
        self.benchmark.group = f"{what}, {name}"
        self.benchmark.extra_info.update(
            what=what, implementation=implementation, device=self.device.type, dtype=name, bytes=work.bytes
        )
        self.benchmark.extra_info.update(flops=work.flops, peak_bytes=peak_bytes, **found, **details)
        # pytest-benchmark knows no device events and no inputs that rotate: the samples are put where its own would be.
        self.benchmark._mode = "bgpt_fast"
        if self.benchmark.enabled:
            stats = self.benchmark._make_stats(1)
            for seconds in times:
                stats.update(seconds)
