"""Predicts the time of recorded launches on an H200, and who waits for whom: the GPU for the host or the host for it.

A launch takes as long as the slowest of what it needs: bytes from memory at 4.3 TB/s, from L2 at 5.5 TB/s, operations
at 790 TFLOP/s, or 2 µs, which is what the smallest kernel takes. A matrix product is cut into tiles, and 132
multiprocessors compute a tile each at a time, so the last wave may be nearly empty. Attention reaches half the rate of
a product. What this cannot know: real kernels' efficiency, clocks, and work that overlaps on several streams.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tools.null_gpu.log import LAUNCHES, Event, Kind
from tools.null_gpu.recorder import Work

MEMORY, L2, FLOPS, FLOAT32_FLOPS = 4.3e12, 5.5e12, 790e12, 50e12
BUS = 50e9
"""Bytes a second between host and device."""
SHORTEST = 2e-6
LATENCY = 4e-6
"""Seconds from a launch on the host to the kernel's start on an idle GPU."""
MULTIPROCESSORS = 132
_TILES = ((128, 256), (256, 128), (128, 128), (128, 64), (64, 128), (64, 64))
_TILE_EFFICIENCY = {128 * 256: 1.0, 128 * 128: 0.9, 128 * 64: 0.7, 64 * 64: 0.5}
_SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)


def product_seconds(m: int, n: int, k: int, batch: int = 1, item_size: int = 2) -> float:
    """Predicted time of a matrix product: that of the best tiles and splits of k, and at least its memory traffic.

    Args:
        m, n, k: sizes.
        batch: number of products.
        item_size: bytes of an element; 4 is float32, which runs without tensor cores.
    """
    bytes_ = batch * item_size * (m * k + k * n + m * n)
    if item_size >= 4:
        return max(2.0 * batch * m * n * k / FLOAT32_FLOPS, bytes_ / MEMORY, SHORTEST)
    best = math.inf
    for rows, columns in _TILES:
        tiles = batch * math.ceil(m / rows) * math.ceil(n / columns)
        rate = FLOPS / MULTIPROCESSORS * _TILE_EFFICIENCY[rows * columns]
        for split in _SPLITS:
            if split > 1 and k // split < 256:
                break
            waves = math.ceil(tiles * split / MULTIPROCESSORS)
            seconds = waves * 2.0 * rows * columns * math.ceil(k / split) / rate
            if split > 1:
                # Partial sums in float32, written and read once.
                seconds += 8.0 * split * batch * m * n / L2 + SHORTEST
            best = min(best, seconds)
    return max(best, bytes_ / MEMORY, SHORTEST)


def gpu_seconds(event: Event, work: Work | None, graph: Callable[[int], float] = lambda number: 0.0) -> float:
    """Predicted time of an event on the GPU; 0 if it is none of the GPU's.

    Args:
        event: from the log.
        work: what it does, where that is known; a product's and a copy's are in the event.
        graph: the time of a graph, by its number.
    """
    if event.kind is Kind.GRAPH:
        return graph(event.graph)
    if event.kind is Kind.PRODUCT:
        return product_seconds(*event.product, event.item_size)
    if event.kind in (Kind.COPY_TO_DEVICE, Kind.COPY_PAGEABLE, Kind.COPY_TO_HOST):
        return max(event.bytes / BUS, SHORTEST)
    if event.kind is Kind.COPY_ON_DEVICE:
        return max(2 * event.bytes / MEMORY, SHORTEST)
    if event.kind is Kind.FILL:
        return max(event.bytes / MEMORY, SHORTEST)
    if event.kind is not Kind.KERNEL:
        return 0.0
    if work is None:
        return SHORTEST
    rate = FLOPS / 2 if "attn" in work.name or "flash" in work.name else FLOPS
    memory = work.bytes / MEMORY
    return max(memory, work.l2_bytes / L2, work.flops / rate, SHORTEST)


@dataclass
class Phase:
    """One phase of a step, in seconds.

    Args:
        launches: how often the host puts work on the GPU.
        gpu: predicted time of the work that the phase launches.
        host: CPU time of the host.
        gpu_waits: the GPU has nothing to do, because the host has not launched it yet.
        host_waits: the host waits for the GPU.
        waits: number of calls in which it would wait if the GPU were behind.
    """

    launches: int = 0
    gpu: float = 0.0
    host: float = 0.0
    gpu_waits: float = 0.0
    host_waits: float = 0.0
    waits: int = 0


@dataclass
class Step:
    """A step: its phases in order, and its length once steps follow each other."""

    seconds: float
    phases: dict[str, Phase]

    @property
    def total(self) -> Phase:
        """The sum over all phases."""
        fields = [field.name for field in dataclasses.fields(Phase)]
        return Phase(**{name: sum(getattr(phase, name) for phase in self.phases.values()) for name in fields})


def simulate(
    events: Sequence[Event], seconds: Sequence[float], phases: Sequence[str], length: float, repeats: int = 4
) -> Step:
    """Runs a step's events several times in a row on a GPU that takes them in order, and returns the last repetition.

    Args:
        events: of a step; `cpu_seconds` says when the host makes each call, from the step's beginning.
        seconds: of each on the GPU.
        phases: of each, the phase's name.
        length: CPU seconds of the whole step.
        repeats: how many times.
    """
    host = free = 0.0
    began = host
    ends: list[float] = []  # of all work so far, after each event
    result: dict[str, Phase] = {}
    for _ in range(repeats):
        began, result, clock = host, {name: Phase() for name in dict.fromkeys(phases)}, 0.0
        for event, duration, name in zip(events, seconds, phases, strict=True):
            phase = result[name]
            spent = event.cpu_seconds - clock
            clock = event.cpu_seconds
            host += spent
            phase.host += spent
            if event.kind is Kind.WAIT:
                phase.waits += 1
                end = ends[-1 - event.later] if event.later < len(ends) else 0.0
                phase.host_waits += max(end - host, 0.0)
                host = max(host, end)
            elif event.kind in LAUNCHES:
                start = max(free, host + LATENCY)
                phase.gpu_waits += start - free
                phase.gpu += duration
                phase.launches += 1
                free = start + duration
            ends.append(free)
        host += length - clock
    # A host that never waits runs ahead; what repeats is then the GPU's time.
    gpu = sum(phase.gpu + phase.gpu_waits for phase in result.values())
    return Step(max(host - began, gpu), result)
