"""The pieces of the contact and of the check in order, with their time limits and how each is started.

Standard library only.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.environment import ROOT
from tools.gpu_check import items
from tools.gpu_check.items import ITEMS, OPS
from tools.gpu_check.jobs import (
    LOG_CHARACTERS,
    START_S,
    Exit,
    Job,
    Limit,
    Report,
    Results,
    Run,
    Stage,
    run_command,
    run_items,
)
from tools.gpu_check.programs import SANITIZER_ERROR, sanitizer_result, test_files, test_result

TIMINGS = {
    "peak": (40, 30),
    "training": (160, 90),
    "ops": (150, 60),
    "byte_decode": (90, 60),
    "generation": (70, 40),
    "cpu_states": (30, 30),
}
CHECKS = {"correctness": (100, 60), "graphs": (100, 60)}
"""Pieces of the check, with their time limits in seconds: for all items, and for one."""
COMMANDS = {
    "contact": ("build", "values", "first", "peak", "products", "steps"),
    "check": ("build", *TIMINGS, "tests", *CHECKS, "sanitizer"),
}
"""Pieces of the commands, in order."""
SECONDS = {"contact": 190.0, "check": 490.0}
"""Time limits of the commands; what starts and ends them takes a few seconds more."""
SANITIZER_TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
ON_CPU = "the CPU was asked for"
"""The one reason for "not run" that does not make a command fail."""


@dataclass(frozen=True)
class Plan:
    """Starts the pieces.

    Args:
        command: "contact" or "check".
        device: "cuda" or "cpu".
        quick: use tiny sizes and few tests.
        pieces: the pieces to run, some of `COMMANDS[command]`.
        seconds: time limit for everything.
        output: folder for traces.
        folder: folder for logs and part files.
        results: the results so far; later pieces depend on them.
        contact: the results of the contact, by piece; the check runs only what is ok there.
        capability: of the GPU, such as "9.0"; None builds for all GPUs.
        parallel: number of jobs at a time where their times do not matter.
        item_seconds: time limit of an item of the contact.
        patience: a factor of the jobs' and items' own time limits, for a slow machine.
        worker: the command that runs pieces.
        build: the command that builds the extension.
    """

    command: str
    device: str
    quick: bool
    pieces: Sequence[str]
    seconds: float
    output: Path
    folder: Path
    results: Results
    contact: Mapping[str, Any] = field(default_factory=dict)
    capability: str | None = None
    parallel: int = max(1, min(8, (os.cpu_count() or 1) // 2))
    item_seconds: float = 40.0
    patience: float = 1.0
    worker: Sequence[str] = (sys.executable, "-X", "faulthandler", "-m", "tools.gpu_check.pieces")
    build: Sequence[str] = (sys.executable, "setup.py", "build_ext", "--inplace")

    def stages(self) -> list[Stage]:
        """The build, then what the command is for. Each stage has a share of the total time and runs its most important
        jobs first."""
        stages = [(self._build_jobs(), 1, 0.5)]
        if self.command == "contact":
            stages += [(self._first_jobs(), self.parallel, 0.75), (self._speed_jobs(), 1, 1.0)]
        else:
            timings = [self._worker(piece, ITEMS[piece], *seconds) for piece, seconds in TIMINGS.items()]
            stages += [(timings, 1, 0.72), (self._check_jobs(), self.parallel, 1.0)]
        return [
            Stage(tuple(job for job in jobs if job.piece in self.pieces), width, share * self.seconds)
            for jobs, width, share in stages
        ]

    def _build_jobs(self) -> list[Job]:
        return [Job("build", ("extension",), self._run_build, 0.5 * self.seconds)]

    def _first_jobs(self) -> list[Job]:
        """Each op in a process of its own, in which every launch ends before the next call."""
        blocking = {"CUDA_LAUNCH_BLOCKING": "1"}
        jobs = [self._worker("values", items.value_items(op), 90, self.item_seconds, **blocking) for op in OPS]
        jobs += [self._worker("first", items.STEPS, 90, self.item_seconds, **blocking)]
        groups = ("graph",), items.BYTES, ("CPU states",)
        return jobs + [self._worker("first", group, 90, self.item_seconds) for group in groups]

    def _speed_jobs(self) -> list[Job]:
        limits = {"peak": (30, 20), "products": (30, 15), "steps": (60, 40)}
        return [self._worker(piece, ITEMS[piece], *seconds) for piece, seconds in limits.items()]

    def _check_jobs(self) -> list[Job]:
        jobs = [self._test(name, selection) for name, selection in test_files(self.quick)]
        jobs += [self._worker(piece, ITEMS[piece], *seconds) for piece, seconds in CHECKS.items()]
        return jobs + [self._sanitizer(tool) for tool in SANITIZER_TOOLS]

    def _obstacle(self, piece: str, item: str) -> str | None:
        """What is not ok and has to be, before an item can run."""
        build = self.results.pieces.get("build", {}).get("items", {}).get("extension", {"status": "ok"})
        if build["status"] != "ok" and build["reason"] != ON_CPU:
            return f"the extension: {build['status']}"
        needed, names = items.needs(piece, item)
        if self.device == "cpu" or (self.command == "contact" and needed not in self.pieces):
            return None
        earlier = self.contact if self.command == "check" else self.results.pieces
        statuses = earlier.get(needed, {}).get("items", {})
        for name in names:
            status = statuses.get(name, {}).get("status", "not run")
            if status != "ok":
                return f"the contact's {name}: {status}"
        return None

    def _environment(self, **variables: str) -> dict[str, str]:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **variables}

    def _job(self, piece: str, names: Sequence[str], run: Run, seconds: float) -> Job:
        return Job(piece, tuple(names), run, self.patience * seconds, lambda item: self._obstacle(piece, item))

    def _run(self, name: str, command: Sequence[str], limit: Limit, **variables: str) -> Exit:
        log = self.folder / f"{name.replace('/', '-')}.log"
        return run_command(command, lambda: limit, cwd=ROOT, env=self._environment(**variables), log=log)

    def _run_build(self, names: Sequence[str], limit: Limit, report: Report) -> None:
        """Takes the extension that is there if it has CUDA and runs; otherwise builds it in place."""
        tried = self._try_extension("before", limit)
        if tried["status"] != "failed":
            report({"extension": {**tried, "built": False}})
            return
        variables = {"BGPT_FAST_CUDA": "ON"}
        if self.capability is not None:
            number = self.capability.replace(".", "")
            variables["BGPT_FAST_CUDA_ARCHITECTURES"] = "90a-real" if number == "90" else f"{number}-real"
        ended = self._run("build", self.build, limit, **variables)
        result = ended.result(limit)
        if result["status"] == "ok":
            result = self._try_extension("after", limit) | {"log": ended.log[-LOG_CHARACTERS:]}
        report({"extension": {**result, "built": True, "before": tried}})

    def _try_extension(self, name: str, limit: Limit) -> dict[str, Any]:
        folder = self.folder / f"extension-{name}"
        folder.mkdir()
        results: dict[str, Any] = {}
        self._run_items("extension", ("cuda",), limit, results.update, 60, folder)
        return results["cuda"]

    def _worker(self, piece: str, names: Sequence[str], seconds: float, item_seconds: float, **variables: str) -> Job:
        """The job for items of a piece in pieces.py."""

        def run(names: Sequence[str], limit: Limit, report: Report) -> None:
            folder = self.folder / f"{piece} {names[0]}".replace(" ", "-")
            folder.mkdir()
            self._run_items(piece, names, limit, report, item_seconds, folder, **variables)

        return self._job(piece, names, run, seconds)

    def _run_items(
        self,
        piece: str,
        names: Sequence[str],
        limit: Limit,
        report: Report,
        item_seconds: float,
        folder: Path,
        **variables: str,
    ) -> None:
        command = [*self._pieces_command(piece), "--peak", json.dumps(self._peak())]
        env = self._environment(**variables)
        seconds = {"start_seconds": self.patience * START_S, "item_seconds": self.patience * item_seconds}
        run_items(command, names, limit, report, **seconds, cwd=ROOT, env=env, folder=folder)

    def _pieces_command(self, piece: str) -> list[str]:
        command = [*self.worker, piece, "--device", self.device, "--output", str(self.output)]
        return [*command, "--quick"] if self.quick else command

    def _peak(self) -> dict[str, float]:
        """The rates that the piece "peak" measured, if both items are ok; empty for tiny sizes."""
        measured = self.results.pieces.get("peak", {}).get("items", {})
        if self.quick or any(measured.get(name, {}).get("status") != "ok" for name in ITEMS["peak"]):
            return {}
        return {"matmul_flops": measured["matmul"]["rate"], "copy_bytes_per_s": measured["copy"]["rate"]}

    def _test(self, name: str, selection: Sequence[str]) -> Job:
        """Each test file runs in its own process, so that one that breaks the CUDA context does not fail the others."""

        def run(names: Sequence[str], limit: Limit, report: Report) -> None:
            events = self.folder / f"{name.replace('/', '-')}.jsonl"
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
            command += ["-p", "tools.gpu_check.pytest_results", "--results", str(events), name, *selection]
            report({name: test_result(self._run(name, command, limit), limit, events)})

        return self._job("tests", (name,), run, 150)

    def _sanitizer(self, tool: str) -> Job:
        """One tool of compute-sanitizer over small runs of the ops that are ok in the contact."""

        def run(names: Sequence[str], limit: Limit, report: Report) -> None:
            program = shutil.which("compute-sanitizer")
            able = [op for op in ITEMS["exercise"] if self._obstacle("exercise", op) is None]
            if self.device != "cuda" or program is None or not able:
                reason = "compute-sanitizer was not found" if able else "no op is ok in the contact"
                report({tool: {"status": "not run", "reason": ON_CPU if self.device != "cuda" else reason}})
                return
            part = self.folder / f"{tool}.json"
            command = [program, "--tool", tool, "--error-exitcode", str(SANITIZER_ERROR)]
            command += [*self._pieces_command("exercise"), "--part", str(part), "--items", *able]
            # The caching allocator's large blocks would hide accesses past a tensor's end.
            ended = self._run(tool, command, limit, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
            report({tool: {**sanitizer_result(ended, limit, part), "checked": able}})

        return self._job("sanitizer", (tool,), run, 120)
