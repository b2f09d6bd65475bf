"""The host's share of generation and simulation, with an engine that returns at once, beside a plain loop.

    pytest benchmarks/bench_host.py

CPU seconds of one thread. Each item measures the plain loop in turn with `Generator` and fails if the ratio of the two
falls under its bound, but for tiny sizes, where the figures mean nothing.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable

import pytest

from benchmarks.instant import (
    generator_rounds,
    plain_rounds,
    plain_simulate_seconds,
    simulate_seconds,
    tiny_model,
)
from benchmarks.names import OURS, PLAIN_LOOP
from benchmarks.suite import Bench
from bgpt_fast import Prompt
from bgpt_fast.tasks.cpu_states import generate

BOUNDS = {1: 0.6, 256: 8.0, 4096: 15.0}
"""How many times as fast as the plain loop a round of this many files must be at least."""
SIMULATE_BOUND = 7.0
_REPEATS = 3
_ROUNDS = 40


@pytest.mark.parametrize("slots", BOUNDS)
def test_rounds(bench: Bench, slots: int) -> None:
    is_tiny = bench.scale.seconds == 0
    slots = min(slots, 8) if is_tiny else slots
    stream = random.Random(0)
    # Prompts that end inside a patch.
    prompts = [Prompt("bin", stream.randbytes(20)) for _ in range(slots)]
    model = tiny_model(16, 64)

    def seconds(rounds: Callable[..., tuple[list[float], list[bytes]]]) -> tuple[float, list[bytes]]:
        times, files = rounds(model, prompts, _ROUNDS)
        return statistics.median(times), files

    _measure(
        bench,
        [(seconds(generator_rounds), seconds(plain_rounds)) for _ in range(_REPEATS)],
        f"host, a round of {slots} {'file' if slots == 1 else 'files'}",
        units=slots,
        unit="patches",
        bound=0.0 if is_tiny else BOUNDS[slots],
    )


def test_simulate(bench: Bench) -> None:
    is_tiny = bench.scale.seconds == 0
    count = 20 if is_tiny else 4000
    machine = {"num_registers": 2, "memory_size": 64, "min_program": 1, "max_program": 15}
    traces = generate(count, seed=1, stream="philox", split="eval", **machine)  # type: ignore[arg-type]
    model = tiny_model(8, 64)
    _measure(
        bench,
        [(simulate_seconds(model, traces), plain_simulate_seconds(model, traces)) for _ in range(_REPEATS)],
        f"host, simulating {count} programs",
        units=count,
        unit="programs",
        bound=0.0 if is_tiny else SIMULATE_BOUND,
    )


Measured = tuple[float, list[bytes]]
"""Seconds, and what was generated."""


def _measure(
    bench: Bench, pairs: list[tuple[Measured, Measured]], what: str, *, units: int, unit: str, bound: float
) -> None:
    assert all(ours[1] == plain[1] for ours, plain in pairs), "the two do not write the same bytes"
    ratio = statistics.median(plain[0] / ours[0] for ours, plain in pairs)
    assert ratio >= bound, f"{what}: {ratio:.1f} times as fast as the plain loop, expected at least {bound}"
    bench.record(
        [ours[0] for ours, _ in pairs],
        what,
        implementation=OURS,
        units=units,
        unit=unit,
        kind="host",
        peer=PLAIN_LOOP,
        peer_seconds=statistics.median(plain[0] for _, plain in pairs),
        ratio=ratio,
        bound_of_ratio=bound,
    )
