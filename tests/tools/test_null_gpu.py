"""The null GPU's model of time, without the null GPU: durations of launches, and who waits for whom."""

from __future__ import annotations

import pytest

from tools.null_gpu.log import Event, Kind
from tools.null_gpu.op_stream import LATENCY, SHORTEST, gpu_seconds, product_seconds, simulate
from tools.null_gpu.recorder import Recording, Work


def test_a_large_product_runs_at_the_peak_rate() -> None:
    m, n, k = 128 * 132, 256 * 8, 4096
    assert product_seconds(m, n, k) == pytest.approx(2 * m * n * k / 790e12, rel=0.01)


def test_one_tile_more_takes_a_wave_more() -> None:
    full, more = product_seconds(128 * 132, 256, 4096), product_seconds(128 * 132 + 1, 256, 4096)
    assert 1.2 * full < more <= 2.01 * full


def test_a_product_of_few_tiles_is_split_along_k() -> None:
    """A weight's gradient: 36 tiles of 128 × 128 would leave most multiprocessors idle."""
    seconds = product_seconds(768, 768, 131072)
    ideal = 2 * 768 * 768 * 131072 / 790e12
    assert ideal < seconds < 1.6 * ideal


def test_a_thin_product_is_bound_by_memory() -> None:
    assert product_seconds(1, 8192, 8192) >= 8192 * 8192 * 2 / 4.3e12


def test_the_slowest_need_decides() -> None:
    kernel = Event(Kind.KERNEL, "kernel")
    assert gpu_seconds(kernel, None) == SHORTEST
    assert gpu_seconds(kernel, Work("op", 4.3e9)) == pytest.approx(1e-3)
    assert gpu_seconds(kernel, Work("op", 4.3e6, flops=790e9)) == pytest.approx(1e-3)
    assert gpu_seconds(kernel, Work("op", 0, l2_bytes=5.5e9)) == pytest.approx(1e-3)
    assert gpu_seconds(Event(Kind.GRAPH, "", graph=7), None, lambda number: number * 1.0) == 7.0
    assert gpu_seconds(Event(Kind.WAIT, "cudaStreamSynchronize"), None) == 0.0


def launches_at(*times: float) -> list[Event]:
    return [Event(Kind.KERNEL, "kernel", cpu_seconds=time) for time in times]


def test_a_slow_host_lets_the_gpu_wait() -> None:
    step = simulate(launches_at(0.01, 0.02), [1e-3, 1e-3], ["a", "b"], length=0.03)
    assert step.seconds == pytest.approx(0.03)
    assert step.total.host == pytest.approx(0.02)
    assert step.phases["b"].gpu_waits == pytest.approx(0.01 - 1e-3)
    assert step.total.host_waits == 0.0


def test_a_fast_host_runs_ahead() -> None:
    step = simulate(launches_at(1e-4, 2e-4), [0.01, 0.02], ["a", "a"], length=3e-4)
    assert step.seconds == pytest.approx(0.03)
    assert step.total.gpu_waits == 0.0


def test_a_wait_makes_the_host_as_slow_as_the_gpu() -> None:
    events = [*launches_at(1e-3), Event(Kind.WAIT, "cudaStreamSynchronize", cpu_seconds=2e-3)]
    step = simulate(events, [0.01, 0.0], ["a", "a"], length=5e-3)
    # Nothing overlaps: the GPU begins when it is asked, and the host goes on when it has finished.
    assert step.seconds == pytest.approx(1e-3 + LATENCY + 0.01 + 3e-3)
    assert step.total.waits == 1
    assert step.total.host_waits == pytest.approx(0.01 + LATENCY - 1e-3)


def test_a_wait_for_earlier_work_lets_the_host_run_ahead() -> None:
    wait = Event(Kind.WAIT, "cudaEventSynchronize", later=1, cpu_seconds=3e-3)
    step = simulate([*launches_at(1e-3, 2e-3), wait], [0.01, 0.01, 0.0], ["a", "a", "a"], length=3e-3)
    # While the host waits for the first kernel, the second one is there already.
    assert step.seconds == pytest.approx(0.02)
    assert step.total.gpu_waits == 0.0
    assert step.total.host_waits > 0.0


def test_the_work_of_an_op_is_divided_and_inner_kernels_come_first() -> None:
    recording = Recording(spans=[(10, 12, Work("two kernels", 8.0)), (12, 13, Work("inner", 3.0))])
    recording.spans += [(12, 14, Work("outer", 100.0)), (14, 16, Work("a fill and a kernel", 6.0))]
    events = [Event(Kind.FILL if number == 14 else Kind.KERNEL, "") for number in range(9, 17)]
    names = [(work.name, work.bytes) if work else None for work in recording.work_of(9, events)]
    assert names[:5] == [None, ("two kernels", 4.0), ("two kernels", 4.0), ("inner", 3.0), ("outer", 0.0)]
    assert names[5:] == [("a fill and a kernel", 0.0), ("a fill and a kernel", 6.0), None]


def test_phases_end_where_they_end() -> None:
    recording = Recording(phases=[(2, "forward"), (4, ""), (5, "backward"), (6, "clip"), (7, "backward"), (8, "")])
    assert recording.phase_of(1, 8) == ["", "forward", "forward", "", "backward", "clip", "backward", ""]
