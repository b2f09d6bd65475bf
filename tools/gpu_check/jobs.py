"""Runs the pieces of gpu_check, each in its own process with a time limit. Standard library only.

A result is a dict with a "status": "ok", "failed", "timed out" or "not run", and, unless it is ok, a "reason". A failed
item also has the end of the log of its process.
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
"""Called with the results of items as they become available."""
Run = Callable[[Sequence[str], "Limit", Report], None]
"""Runs items within a limit and reports each."""
LOG_CHARACTERS = 16384
"""Of the end of a log in a result."""
START_S = 60.0
"""In which a worker becomes ready: the first import of torch is slow."""
_POLL_S = 0.05
_TRACEBACK_S = 2.0


class Limit:
    """A deadline this many seconds from now; setting `stop` makes it pass at once."""

    def __init__(self, seconds: float, stop: threading.Event) -> None:
        self.seconds, self._stop = seconds, stop
        self._end = time.monotonic() + seconds

    @property
    def is_over(self) -> bool:
        return self._stop.is_set() or time.monotonic() >= self._end

    def within(self, seconds: float) -> Limit:
        """A limit this many seconds from now that ends no later than this one."""
        return Limit(max(0.0, min(seconds, self._end - time.monotonic())), self._stop)


@dataclass(frozen=True)
class Job:
    """Some items of a piece.

    Args:
        piece: name of the piece.
        items: names of the items.
        run: runs some of the items.
        seconds: time limit of the job.
        obstacle: why an item cannot run, known once the jobs before have ended; None if it can.
    """

    piece: str
    items: tuple[str, ...]
    run: Run
    seconds: float
    obstacle: Callable[[str], str | None] = lambda item: None


@dataclass(frozen=True)
class Stage:
    """Jobs that run in parallel, `parallel` at a time; all end at most `ends` seconds after the start of the check."""

    jobs: tuple[Job, ...]
    parallel: int
    ends: float


@dataclass(frozen=True)
class Exit:
    """How a process ended: `code` is None if it was killed at its limit."""

    code: int | None
    seconds: float
    log: str

    @property
    def last_line(self) -> str:
        lines = [line for line in self.log.splitlines() if line.strip()]
        return lines[-1].strip()[:300] if lines else "no output"

    @property
    def how(self) -> str:
        return f"ended by signal {-self.code}" if self.code is not None and self.code < 0 else f"exit code {self.code}"

    def result(self, limit: Limit) -> Result:
        """Converts the exit to a result: exit code 0 is "ok"."""
        if self.code == 0:
            return {"status": "ok", "seconds": self.seconds}
        log = self.log[-LOG_CHARACTERS:]
        if self.code is None:
            reason = f"over its limit of {limit.seconds:.0f} s"
            return {"status": "timed out", "seconds": self.seconds, "reason": reason, "log": log}
        return {"status": "failed", "seconds": self.seconds, "reason": f"{self.how}: {self.last_line}", "log": log}


def run_command(
    command: Sequence[str], limit: Callable[[], Limit], *, cwd: Path, env: Mapping[str, str], log: Path
) -> Exit:
    """Runs a command until it ends or `limit()`, which is polled, has passed.

    Its output goes to the file `log`; all processes that it started are killed when it ends. At its limit it first gets
    SIGABRT, at which a Python process with faulthandler prints where it hangs.
    """
    began = time.monotonic()
    with log.open("wb") as file:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}
        process = subprocess.Popen(command, cwd=cwd, env=dict(env), start_new_session=True, **streams)
    while is_running := process.poll() is None:
        if limit().is_over:
            process.send_signal(signal.SIGABRT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_TRACEBACK_S)
            break
        time.sleep(_POLL_S)
    with contextlib.suppress(ProcessLookupError):  # no process of the session is left
        os.killpg(process.pid, signal.SIGKILL)
    code = process.wait()
    return Exit(None if is_running else code, time.monotonic() - began, log.read_text(errors="replace"))


def run_items(
    command: Sequence[str],
    items: Sequence[str],
    limit: Limit,
    report: Report,
    *,
    item_seconds: float,
    start_seconds: float = START_S,
    cwd: Path,
    env: Mapping[str, str],
    folder: Path,
) -> None:
    """Runs a worker that takes `--items` and `--part`; if an item makes it crash or hang, a new one runs the rest.

    Args:
        command: the worker; it writes the part file, a JSON object with all its results so far, once it is ready to run
            items, and after each item.
        items: names of the items to run.
        limit: time limit for all items.
        report: called with the results as they become available.
        item_seconds: time limit for one item.
        start_seconds: time in which the worker has to become ready.
        cwd, env: working directory and environment of the worker.
        folder: folder for the part file and a log for each worker.
    """
    part, pending = folder / "part.json", list(items)
    logs: dict[str, str] = {}

    def read() -> dict[str, Result]:
        results: dict[str, Result] = json.loads(part.read_text()) if part.exists() else {}
        for item, result in results.items():
            if result["status"] == "failed":
                result["log"] = logs.setdefault(item, log.read_text(errors="replace")[-LOG_CHARACTERS:])
        return results

    while pending and not limit.is_over:
        log = folder / f"{len(items) - len(pending)}.log"
        part.unlink(missing_ok=True)
        done: dict[str, Result] = {}
        item_limit, is_ready = limit.within(start_seconds), False

        def current_limit() -> Limit:
            nonlocal done, item_limit, is_ready
            results = read()
            if len(results) > len(done) or (not is_ready and part.exists()):
                done, item_limit, is_ready = results, limit.within(item_seconds), True
                report(done)
            return item_limit

        words = [*command, "--items", *pending, "--part", str(part)]
        ended = run_command(words, current_limit, cwd=cwd, env=env, log=log)
        done = read()
        pending = [item for item in pending if item not in done]
        if pending and (ended.code is None or ended.code < 0):
            done[pending.pop(0)] = ended.result(item_limit)
        elif pending and (ended.code == 0 or not done):
            # The worker skipped items or never reached the first one: a new worker would end in the same way.
            reason = f"the worker ended with exit code {ended.code}: {ended.last_line}"
            done |= _alike(pending, "failed", reason)
            done[pending[0]]["log"] = ended.log[-LOG_CHARACTERS:]
            pending = []
        report(done)
    report(dict.fromkeys(pending, _not_run("out of time")))


def _not_run(reason: str) -> Result:
    return {"status": "not run", "reason": reason}


def _alike(items: Iterable[str], status: str, reason: str) -> dict[str, Result]:
    return {item: {"status": status, "reason": reason} for item in items}


@dataclass
class Results:
    """The results so far; `write` is called with the content of the result file after each change."""

    head: dict[str, Any]
    write: Callable[[dict[str, Any]], None]
    pieces: dict[str, dict[str, Any]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def update(self, piece: str, results: Mapping[str, Result]) -> None:
        """Adds the results of some of a piece's items."""
        if not results:
            return
        with self._lock:
            entry = self.pieces.setdefault(piece, {"status": "", "items": {}})
            entry["items"] |= results
            entry["status"] = worst([item["status"] for item in entry["items"].values()])
            self.write(self.content())

    def status(self, piece: str, item: str) -> str:
        """An item's status; "not run" if it has no result."""
        return self.pieces.get(piece, {}).get("items", {}).get(item, {}).get("status", "not run")

    def content(self) -> dict[str, Any]:
        return {**self.head, "pieces": self.pieces}


def worst(statuses: Sequence[str]) -> str:
    """The worst status of a piece's items, which is the status of the piece."""
    return next((status for status in ("failed", "timed out", "not run") if status in statuses), "ok")


def execute(stages: Sequence[Stage], results: Results, stop: threading.Event) -> None:
    """Runs the stages one after the other; a failed job does not stop the others, and every item gets a result.

    Args:
        stages: what to run.
        results: collects the results.
        stop: once it is set, running jobs are killed and no more are started.
    """
    start = time.monotonic()

    def run(job: Job, ends: float) -> None:
        limit = Limit(ends - (time.monotonic() - start), stop).within(job.seconds)
        reported: set[str] = set()

        def report(items: Mapping[str, Result]) -> None:
            reported.update(items)
            results.update(job.piece, items)

        obstacles = {item: job.obstacle(item) for item in job.items}
        report({item: _not_run(reason) for item, reason in obstacles.items() if reason is not None})
        items = [item for item, reason in obstacles.items() if reason is None]
        if not items:
            return
        if limit.is_over:
            report(dict.fromkeys(items, _not_run("out of time")))
            return
        try:
            job.run(items, limit, report)
        except Exception as error:
            reason = f"gpu_check: {type(error).__name__}: {error}"
            report(_alike([item for item in items if item not in reported], "failed", reason))

    for stage in stages:
        with ThreadPoolExecutor(stage.parallel) as pool:
            list(pool.map(lambda job, ends=stage.ends: run(job, ends), stage.jobs))
