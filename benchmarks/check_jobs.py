"""Runs the pieces of `gpu_check.py`: each in a process of its own with a time limit. Standard library only.

A result is a dict with a "status": "ok", "failed", "timed out" or "not run", and, unless it is ok, a "reason".
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Result = dict[str, Any]
Report = Callable[[Mapping[str, Result]], None]
"""Takes the results of items as they come."""
_POLL_S = 0.05


class Limit:
    """The end of some seconds from now on, or of all work if `stop` is set."""

    def __init__(self, seconds: float, stop: threading.Event) -> None:
        self.seconds, self._stop = seconds, stop
        self._end = time.monotonic() + seconds

    @property
    def is_over(self) -> bool:
        return self._stop.is_set() or time.monotonic() >= self._end

    def within(self, seconds: float) -> Limit:
        """A limit of so many seconds that ends no later than this one."""
        return Limit(max(0.0, min(seconds, self._end - time.monotonic())), self._stop)


@dataclass(frozen=True)
class Job:
    """Some items of a piece.

    Args:
        piece: which piece's items these are.
        items: their names.
        run: runs them all within a limit and reports each.
        seconds: its limit.
    """

    piece: str
    items: tuple[str, ...]
    run: Callable[[Limit, Report], None]
    seconds: float


@dataclass(frozen=True)
class Stage:
    """Jobs that run side by side, `parallel` at a time, none of them past `ends` seconds after the start of all."""

    jobs: tuple[Job, ...]
    parallel: int
    ends: float


@dataclass
class Ended:
    """How a process ended: `code` is None where it was killed at its limit."""

    code: int | None
    seconds: float
    log: str

    @property
    def last_line(self) -> str:
        lines = [line for line in self.log.splitlines() if line.strip()]
        return lines[-1].strip()[:300] if lines else "no output"

    def result(self, limit: Limit) -> Result:
        """As a result: exit code 0 is ok."""
        if self.code == 0:
            return {"status": "ok", "seconds": self.seconds}
        if self.code is None:
            return {
                "status": "timed out",
                "seconds": self.seconds,
                "reason": f"over its limit of {limit.seconds:.0f} s",
            }
        how = f"ended by signal {-self.code}" if self.code < 0 else f"exit code {self.code}"
        return {"status": "failed", "seconds": self.seconds, "reason": f"{how}: {self.last_line}"}


class Process:
    """A process whose output goes to a file; ending it ends all that it started."""

    def __init__(self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Path) -> None:
        self._log, self._began = log, time.monotonic()
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def end(self, *, killed: bool) -> Ended:
        """Kills whatever of it still runs and says how it ended."""
        with contextlib.suppress(ProcessLookupError):  # all of it has ended by itself
            os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        return Ended(None if killed else code, time.monotonic() - self._began, self._log.read_text(errors="replace"))


def run_command(command: Sequence[str], limit: Limit, *, cwd: Path, env: Mapping[str, str], log: Path) -> Ended:
    """Runs a command to its end or its limit."""
    process = Process(command, cwd=cwd, env=env, log=log)
    while process.is_running:
        if limit.is_over:
            return process.end(killed=True)
        time.sleep(_POLL_S)
    return process.end(killed=False)


def run_items(
    command: Sequence[str],
    items: Sequence[str],
    limit: Limit,
    report: Report,
    *,
    item_seconds: float,
    cwd: Path,
    env: Mapping[str, str],
    folder: Path,
) -> None:
    """Runs a worker that takes `--items` and `--part`; when an item kills it or hangs, goes on with the next ones.

    Args:
        command: the worker; after each item it rewrites the part file, a JSON object of all its results so far.
        items: what it shall do.
        limit: for all of them.
        report: takes results as they come.
        item_seconds: limit for one.
        cwd, env: of the worker.
        folder: for its part file and its log.
    """
    part, log = folder / "part.json", folder / "log.txt"
    pending = list(items)
    while pending and not limit.is_over:
        part.unlink(missing_ok=True)
        process = Process([*command, "--items", *pending, "--part", str(part)], cwd=cwd, env=env, log=log)
        done: dict[str, Result] = {}
        item_limit = limit.within(item_seconds)
        while process.is_running and not item_limit.is_over:
            time.sleep(_POLL_S)
            if len(found := _read(part)) > len(done):
                done, item_limit = found, limit.within(item_seconds)
                report(done)
        ended = process.end(killed=process.is_running)
        done = _read(part)
        left = [item for item in pending if item not in done]
        if left and (ended.code is None or ended.code < 0):
            done[left.pop(0)] = ended.result(item_limit)
        elif left and (ended.code == 0 or not done):
            # It left items out by itself, or never came as far as one: a new start would end in the same way.
            reason = f"the worker ended with exit code {ended.code}: {ended.last_line}"
            done |= _alike(left, "failed", reason)
            left = []
        report(done)
        pending = left
    report(_alike(pending, "not run", "out of time"))


def _alike(items: Iterable[str], status: str, reason: str) -> dict[str, Result]:
    return {item: {"status": status, "reason": reason} for item in items}


def _read(part: Path) -> dict[str, Result]:
    return json.loads(part.read_text()) if part.exists() else {}


@dataclass
class Receipt:
    """The results so far; `write` is called with the whole after each change."""

    head: dict[str, Any]
    write: Callable[[dict[str, Any]], None]
    pieces: dict[str, dict[str, Any]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def update(self, piece: str, results: Mapping[str, Result]) -> None:
        """Takes results of a piece's items."""
        with self._lock:
            entry = self.pieces.setdefault(piece, {"status": "", "items": {}})
            entry["items"] |= results
            entry["status"] = overall([item["status"] for item in entry["items"].values()])
            self.write(self.whole())

    def items(self) -> list[Result]:
        """All results."""
        return [item for piece in self.pieces.values() for item in piece["items"].values()]

    def whole(self) -> dict[str, Any]:
        return {**self.head, "pieces": self.pieces}


def overall(statuses: Sequence[str]) -> str:
    """The status of a piece: the worst of its items'."""
    return next((status for status in ("failed", "timed out", "not run") if status in statuses), "ok")


def execute(stages: Sequence[Stage], receipt: Receipt, stop: threading.Event) -> None:
    """Runs the stages one after the other; whatever a job does, the others run and the receipt holds every item.

    Args:
        stages: what to run.
        receipt: takes the results.
        stop: once it is set, what runs is killed and nothing more is started.
    """
    start = time.monotonic()

    def run(job: Job, ends: float) -> None:
        limit = Limit(ends - (time.monotonic() - start), stop).within(job.seconds)
        reported: set[str] = set()

        def report(results: Mapping[str, Result]) -> None:
            reported.update(results)
            receipt.update(job.piece, results)

        if limit.is_over:
            report(_alike(job.items, "not run", "out of time"))
            return
        try:
            job.run(limit, report)
        except Exception as error:
            reason = f"gpu_check: {type(error).__name__}: {error}"
            lost = [item for item in job.items if item not in reported]
            report(_alike(lost, "failed", reason))

    for stage in stages:
        with ThreadPoolExecutor(stage.parallel) as pool:
            list(pool.map(lambda job, ends=stage.ends: run(job, ends), stage.jobs))
