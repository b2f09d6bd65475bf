"""A trace holds the steps and phases that it should, and profiling costs nothing where there is none."""

from __future__ import annotations

import contextlib
import gzip
import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from bgpt_fast.training.profiling import StepProfiler, idle_share, phase


def train(profiler: StepProfiler, steps: int) -> None:
    a = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    with profiler:
        for _ in range(steps):
            with phase("forward"):
                b = a @ a
            with phase("optimizer"):
                b.exp()
            profiler.step()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.json"


def names(path: Path) -> list[str]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [event.get("name", "") for event in json.loads(data)["traceEvents"] if event.get("ph") == "X"]


@pytest.mark.parametrize(("first", "name"), [(1, "trace.json"), (2, "trace.json.gz"), (4, "trace.json")])
def test_the_chosen_steps_are_in_the_trace(tmp_path: Path, first: int, name: str) -> None:
    path = tmp_path / "profile" / name
    profiler = StepProfiler(path, first, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(profiler, 7)
    events = names(path)
    assert sorted(event for event in events if "Step#" in event) == [
        f"ProfilerStep#{number}" for number in (first - 1, first)
    ]
    assert [events.count(event) for event in ("forward", "optimizer", "aten::mm")] == [2, 2, 2]
    assert profiler.profiled == 2
    assert list(path.parent.iterdir()) == [path]


def test_the_summary_is_sorted_and_json_ready(tmp_path: Path) -> None:
    profiler = StepProfiler(tmp_path / "trace.json", 2, 3)
    assert profiler.summary() == []
    train(profiler, 5)
    rows = json.loads(json.dumps(profiler.summary(), allow_nan=False))
    by_name = {row["name"]: row for row in rows}
    assert by_name["aten::mm"]["calls"] == by_name["forward"]["calls"] == 3
    assert not any("ProfilerStep" in row["name"] for row in rows)
    times = [row["cpu_seconds"] for row in rows]
    assert times == sorted(times, reverse=True)
    assert all(time > 0 for time in times)
    if not torch.cuda.is_available():
        assert profiler.gpu_idle_share is None


def test_a_session_that_ends_early_writes_what_it_has(path: Path) -> None:
    profiler = StepProfiler(path, 2, 5)
    train(profiler, 3)
    assert profiler.profiled == 2
    assert names(path).count("forward") == 2
    assert profiler.summary()


def test_an_error_passes_and_the_trace_is_written(path: Path) -> None:
    def fail() -> None:
        with StepProfiler(path, 1, 5) as profiler:
            with phase("forward"):
                torch.ones(3).exp()
            profiler.step()
            with phase("fails"):
                raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert names(path).count("forward") == 1
    assert not torch.autograd._profiler_enabled()


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_session_that_ends_before_says_so(path: Path, steps: int) -> None:
    profiler = StepProfiler(path, 3, 2)
    with pytest.warns(UserWarning, match=f"no trace was written: the session ended after {steps} steps"):
        train(profiler, steps)
    assert not path.exists()
    assert profiler.summary() == []


def test_a_trace_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    profiler = StepProfiler(tmp_path / "folder" / "trace.json", 1, 1)
    with pytest.warns(UserWarning, match="could not be written"):
        train(profiler, 2)
    assert profiler.summary()


@pytest.mark.parametrize(("first", "steps"), [(0, 1), (1, 0)])
def test_wrong_numbers_are_refused(tmp_path: Path, first: int, steps: int) -> None:
    with pytest.raises(ValueError, match="expected at least 1, got 0"):
        StepProfiler(tmp_path / "trace.json", first, steps)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(path: Path) -> None:
    a = torch.randn(256, 256, device="cuda")
    with StepProfiler(path, 2, 2) as profiler:
        for _ in range(4):
            with phase("forward"):
                (a @ a).sum().item()
            time.sleep(0.05)
            profiler.step()
    assert profiler.gpu_idle_share is not None
    assert 0.9 < profiler.gpu_idle_share < 1.0
    assert max(row["gpu_seconds"] for row in profiler.summary()) > 0
    assert any("gemm" in name for name in names(path))


def event(category: str, start: float, duration: float, name: str = "x") -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": duration}


def test_idle_share() -> None:
    steps = [event("user_annotation", 100, 100, "ProfilerStep#1"), event("user_annotation", 200, 100, "ProfilerStep#2")]
    work = [
        event("kernel", 110, 20),
        event("gpu_memcpy", 120, 30),
        event("gpu_memset", 125, 5),
        event("kernel", 200, 10),
        event("kernel", 90, 15),
        event("kernel", 290, 40),
    ]
    others = [event("gpu_user_annotation", 100, 200, "ProfilerStep#1"), event("cpu_op", 100, 200), {"ph": "M"}]
    assert idle_share(others + work + steps) == pytest.approx(1 - (5 + 40 + 10 + 10) / 200)
    assert idle_share([*steps, event("kernel", 0, 1000)]) == 0.0
    assert idle_share(steps + others) is None
    assert idle_share(work) is None


def test_a_phase_is_nearly_free() -> None:
    """At most twice the time of an empty context manager; `record_function` takes more than six times as long."""

    @contextlib.contextmanager
    def nothing() -> Iterator[None]:
        yield

    def seconds(manager: Callable[[], AbstractContextManager[object]]) -> float:
        began = time.process_time()
        for _ in range(2000):
            with manager():
                pass
        return time.process_time() - began

    times = [(seconds(lambda: phase("forward")), seconds(nothing)) for _ in range(20)]
    of_phase, of_nothing = (min(column) for column in zip(*times, strict=True))
    assert of_phase < 2 * of_nothing
