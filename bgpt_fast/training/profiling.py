"""Profiles training steps: named phases, and a trace of a few steps for Perfetto."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch.autograd import _profiler_enabled
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from bgpt_fast.files import atomic_write, write_json

_TOP_OPS = 20
_STEP = "ProfilerStep#"
_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")


class phase:
    """A named block in torch.profiler's traces and, once CUDA is initialised, an NVTX range for Nsight.

    Costs about a microsecond when no profiler is active. Not for code under torch.compile.

    Args:
        name: such as "forward".
    """

    __slots__ = ("_has_range", "_name", "_record")

    def __init__(self, name: str) -> None:
        self._name = name
        self._record: record_function | None = None
        self._has_range = False

    def __enter__(self) -> None:
        # Whether Nsight is active cannot be queried; for torch's profiler it can, at a tenth of a record's cost.
        if torch.cuda.is_initialized():
            torch.cuda.nvtx.range_push(self._name)
            self._has_range = True
        if _profiler_enabled():
            self._record = record_function(self._name)
            self._record.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._record is not None:
            self._record.__exit__(kind, error, trace)
            self._record = None
        if self._has_range:
            torch.cuda.nvtx.range_pop()
            self._has_range = False


class StepProfiler:
    """Profiles a few steps of a session with torch.profiler and writes their trace; use as a context manager.

    Call `step()` at the end of each training step. After the profiled steps the trace is written atomically, and later
    steps cost nothing. A session that ends earlier writes the steps profiled so far. Write failures only cause
    warnings, so that they do not end a run.

    Args:
        path: the trace file, in Chrome's JSON format (for ui.perfetto.dev); compressed if it ends in ".gz". Each rank
            that profiles needs a separate path.
        first: the first profiled step of the session, from 1. The step before it warms up the profiler; with 1 there
            is no warm-up, and the trace includes the profiler's start-up.
        steps: number of steps to profile.

    Attributes:
        profiled: number of steps profiled so far.
        gpu_idle_share: share of the profiled time in which the GPU was idle; None without a GPU.

    Raises:
        ValueError: `first` or `steps` is below 1.
    """

    def __init__(self, path: Path, first: int, steps: int) -> None:
        for name, value in (("first", first), ("steps", steps)):
            if value < 1:
                raise ValueError(f"StepProfiler: {name}: expected at least 1, got {value}")
        self.path = path
        self.steps = steps
        self.profiled = 0
        self.gpu_idle_share: float | None = None
        self._done = 0
        self._first = first
        self._rows: list[dict[str, Any]] = []
        self._profile: profile | None = None

    def __enter__(self) -> Self:
        warmup = min(1, self._first - 1)
        with warnings.catch_warnings():
            # The class docstring documents the effect of a missing warm-up.
            warnings.filterwarnings("ignore", "Profiler won't be using warmup")
            plan = schedule(wait=self._first - 1 - warmup, warmup=warmup, active=self.steps, repeat=1)
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities, schedule=plan, on_trace_ready=self._finish)
        self._profile.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._profile is None:
            return
        if self._done < self._first:
            warnings.warn(
                f"{self.path}: no trace was written: the session ended after {self._done} steps, and step "
                f"{self._first} was to be the first profiled one",
                stacklevel=2,
            )
        self._profile.stop()
        self._profile = None

    def step(self) -> None:
        """Marks the end of a training step."""
        if self._profile is None:
            return
        self._done += 1
        self._profile.step()
        if self._done >= self._first - 1 + self.steps:
            self._profile.stop()
            self._profile = None

    def summary(self) -> list[dict[str, Any]]:
        """The 20 ops and phases with the most self time (excluding the ops they call); JSON-serialisable.

        Returns:
            Rows in descending order of GPU time (CPU time without a GPU): `name`, `calls`, `cpu_seconds` and
            `gpu_seconds`, summed over the profiled steps. Empty until the trace is written.
        """
        return [dict(row) for row in self._rows]

    def _finish(self, profiler: profile) -> None:
        self.profiled = min(max(self._done - self._first + 1, 0), self.steps)
        if not self.profiled:
            return
        averages = [event for event in profiler.key_averages() if event.device_type == torch.autograd.DeviceType.CPU]
        rows = [
            {
                "name": event.key,
                "calls": event.count,
                "cpu_seconds": event.self_cpu_time_total / 1e6,
                "gpu_seconds": event.self_device_time_total / 1e6,
            }
            for event in averages
            if not event.key.startswith("ProfilerStep")
        ]
        self._rows = sorted(rows, key=lambda row: (-row["gpu_seconds"], -row["cpu_seconds"]))[:_TOP_OPS]
        try:
            self._write(profiler)
        except OSError as error:
            warnings.warn(f"{self.path}: the trace could not be written: {error}", stacklevel=2)

    def _write(self, profiler: profile) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # torch's export takes only a path, and leaves an incomplete file behind if it fails.
        with tempfile.TemporaryDirectory(prefix=f".{self.path.name[:64]}.", dir=self.path.parent) as folder:
            plain = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(plain))
            with plain.open("rb") as source, atomic_write(self.path) as target:
                if self.path.suffix == ".gz":
                    with gzip.GzipFile(fileobj=target, mode="wb", compresslevel=6, mtime=0) as packed:
                        shutil.copyfileobj(source, packed, 1 << 20)
                else:
                    shutil.copyfileobj(source, target, 1 << 20)
            if torch.cuda.is_available():
                self.gpu_idle_share = idle_share(json.loads(plain.read_bytes())["traceEvents"])


def idle_share(events: Iterable[Mapping[str, Any]]) -> float | None:
    """The share of the profiled time in which the GPU ran no kernel, copy or fill.

    Args:
        events: the events of a Chrome trace of one GPU.

    Returns:
        From 0 to 1; None if nothing ran on a GPU, or the trace contains no step.
    """
    busy, steps = [], []
    for event in events:
        if event.get("ph") != "X":
            continue
        span = (float(event["ts"]), float(event["ts"]) + float(event["dur"]))
        if event.get("cat") in _ON_GPU:
            busy.append(span)
        elif event.get("cat") == "user_annotation" and str(event.get("name", "")).startswith(_STEP):
            steps.append(span)
    if not busy or not steps:
        return None
    began, ended = min(start for start, _ in steps), max(end for _, end in steps)
    if ended <= began:
        return None
    total, reached = 0.0, began
    for start, end in sorted(busy):
        start, end = max(start, reached), min(end, ended)
        if end > start:
            total += end - start
            reached = end
    return 1.0 - total / (ended - began)


@contextlib.contextmanager
def profiled_run(run_dir: Path, after: int, steps: int) -> Iterator[StepProfiler]:
    """Profiles `steps` steps of a run after skipping `after`; writes trace.json.gz, and profile.json with the ops."""
    profiler = StepProfiler(run_dir / "trace.json.gz", after + 1, steps)
    try:
        with profiler:
            yield profiler
    finally:
        if profiler.profiled:
            summary = {
                "steps": profiler.profiled,
                "gpu_idle_share": profiler.gpu_idle_share,
                "ops": profiler.summary(),
            }
            try:
                write_json(run_dir / "profile.json", summary)
            except OSError as error:
                warnings.warn(f"the profile could not be written: {error}", stacklevel=2)
