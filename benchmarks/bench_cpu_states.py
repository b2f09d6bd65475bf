"""CPU-state instances: the released generator's stream byte for byte, the parallel stream, and running one program.

    pytest benchmarks/bench_cpu_states.py

Instances are made in batches whose memory is reused, as in training and in writing to disk.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from benchmarks.op_cases import Work
from benchmarks.suite import Bench
from bgpt_fast.tasks.cpu_states import ReleasedStream, StreamOptions, generate, run

_INSTANCES: dict[str, Any] = {"unit": "instances", "kind": "cpu states", "memory": False}


def test_released_stream(bench: Bench) -> None:
    stream, count = ReleasedStream(StreamOptions(), seed=0), bench.scale.documents
    size = len(b"".join(trace.to_bytes() for trace in stream.take(count)))
    what = "CPU states, released stream, one thread"
    bench(lambda: stream.take(count), what, work=Work(size), units=count, **_INSTANCES)


@pytest.mark.parametrize("threads", [1, 2])
def test_parallel_stream(bench: Bench, threads: int) -> None:
    count = bench.scale.documents
    size = len(b"".join(trace.to_bytes() for trace in generate(count, stream="philox")))
    starts = itertools.count(0, count)
    bench(
        lambda: generate(count, stream="philox", start=next(starts), threads=threads),
        f"CPU states, parallel stream, {threads} {'thread' if threads == 1 else 'threads'}",
        work=Work(size),
        units=count,
        **_INSTANCES,
    )


def test_one_program(bench: Bench) -> None:
    [trace] = generate(1, seed=0)
    what = "CPU states, one program by run()"
    bench(lambda: run(trace.program), what, units=len(trace.states), **_INSTANCES | {"unit": "states"})


def test_on_a_gpu(bench: Bench) -> None:
    """The Philox stream generated on the GPU, after a comparison with the CPU's."""
    if bench.device.type != "cuda":
        pytest.skip("instances on a GPU: needs a GPU")
    from bgpt_fast.tasks.cpu_states import generate_on_gpu

    options, device = StreamOptions(), bench.device
    data, _, _ = generate_on_gpu(1000, options=options, seed=1, device=device)
    assert bytes(data.cpu().numpy()) == b"".join(t.to_bytes() for t in generate(1000, seed=1, stream="philox"))
    count = 100 * bench.scale.documents
    bench(
        lambda: generate_on_gpu(count, options=options, seed=1, device=device),
        "CPU states, parallel stream, on the GPU",
        work=Work(len(data) * count // 1000),
        units=count,
        **_INSTANCES | {"memory": True},
    )
