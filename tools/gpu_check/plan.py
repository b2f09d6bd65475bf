"""The pieces of gpu_check in order, with their time limits and how each is started. Standard library only."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.environment import ROOT
from tools.gpu_check.items import ITEMS
from tools.gpu_check.jobs import Exit, Job, Limit, Report, Result, Results, Stage, run_command, run_items, worst

CHECKS = {"correctness": (120, 60), "graphs": (120, 60)}
TIMINGS = {
    "peak": (40, 30),
    "training": (220, 150),
    "ops": (150, 60),
    "byte_decode": (90, 60),
    "generation": (70, 40),
    "cpu_states": (30, 30),
}
"""Pieces in `pieces.py`, with their time limits in seconds: for all items, and for one."""
PIECES = ("build", "tests", *CHECKS, "sanitizer", *TIMINGS)
SANITIZER_TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
SANITIZER_ERROR = 86  # the exit code of a tool that reports an error
ON_CPU, NO_SANITIZER = ACCEPTED_REASONS = ("the CPU was asked for", "compute-sanitizer was not found")
"""Reasons for "not run" that do not make the check fail."""
QUICK_TESTS = ("tests/kernels/test_interpreter.py", "tests/kernels/test_patch_embed.py")


class Plan:
    """Starts the pieces.

    Args:
        device: "cuda" or "cpu".
        quick: use tiny sizes and few tests.
        pieces: the pieces to run, from PIECES.
        seconds: time limit for everything.
        folder: folder for logs and part files.
        results: the results so far; later pieces use their measured peak rates.
    """

    def __init__(
        self, device: str, quick: bool, pieces: Sequence[str], seconds: float, folder: Path, results: Results
    ) -> None:
        self.device, self.quick, self.pieces, self.seconds = device, quick, pieces, seconds
        self.folder, self.results = folder, results
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.env = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}

    def stages(self) -> list[Stage]:
        """The build, then checks in parallel, then timings, one at a time. Each stage has a share of the total time and
        runs its most important jobs first."""
        build = [Job("build", ("extension",), self._run_build, 150)]
        checks = [self._worker(piece, *seconds) for piece, seconds in CHECKS.items()]
        checks += [self._test(name, marks) for name, marks in self._test_files()]
        checks += [self._sanitizer(tool) for tool in SANITIZER_TOOLS]
        timings = [self._worker(piece, *seconds) for piece, seconds in TIMINGS.items()]
        parallel = max(1, min(8, (os.cpu_count() or 1) // 2))
        return [
            Stage(tuple(job for job in jobs if job.piece in self.pieces), width, share * self.seconds)
            for jobs, width, share in ((build, 1, 0.3), (checks, parallel, 0.5), (timings, 1, 1.0))
        ]

    def _run(self, name: str, command: Sequence[str], limit: Limit, **env: str) -> Exit:
        log = self.folder / f"{name.replace('/', '-')}.log"
        return run_command(command, lambda: limit, cwd=ROOT, env=self.env | env, log=log)

    def _run_build(self, limit: Limit, report: Report) -> None:
        """Builds the extension in place."""
        ended = self._run("build", [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], limit)
        report({"extension": ended.result(limit)})

    def _worker(self, piece: str, seconds: float, item_seconds: float) -> Job:
        """The job for a piece in pieces.py."""

        def run(limit: Limit, report: Report) -> None:
            folder = self.folder / piece
            folder.mkdir()
            command = [*self._pieces_command(piece), "--peak", json.dumps(self._peak())]
            options = {"item_seconds": item_seconds, "cwd": ROOT, "env": self.env, "folder": folder}
            run_items(command, ITEMS[piece], limit, report, **options)

        return Job(piece, ITEMS[piece], run, seconds)

    def _pieces_command(self, piece: str) -> list[str]:
        command = [sys.executable, "-m", "tools.gpu_check.pieces", piece, "--device", self.device]
        return [*command, "--quick"] if self.quick else command

    def _peak(self) -> dict[str, float]:
        """The rates that the piece "peak" measured, if both items are ok; empty for tiny sizes."""
        items = self.results.pieces.get("peak", {}).get("items", {})
        if self.quick or any(items.get(name, {}).get("status") != "ok" for name in ITEMS["peak"]):
            return {}
        return {"matmul_flops": items["matmul"]["rate"], "copy_bytes_per_s": items["copy"]["rate"]}

    def _test_files(self) -> list[tuple[str, str | None]]:
        """Test files with their marks, the Triton kernels' first."""
        files: list[tuple[str, str | None]] = []
        for path in sorted((ROOT / "tests").rglob("test_*.py")):
            name = str(path.relative_to(ROOT))
            if self.quick and name not in QUICK_TESTS:
                continue
            if path.stem.endswith(("_triton", "_interpreter")):
                files.append((name, None))  # these run on the GPU if there is one
            elif "mark.gpu" in path.read_text():
                # Tests of ops with random shapes are marked slow, and run on the best device.
                files.append((name, "gpu or slow" if path.parent.name == "kernels" and not self.quick else "gpu"))
        return sorted(files, key=lambda file: "_triton" not in file[0])

    def _test(self, name: str, marks: str | None) -> Job:
        """Each test file runs in its own process, so that one that breaks the CUDA context does not fail the others."""

        def run(limit: Limit, report: Report) -> None:
            events = self.folder / f"{name.replace('/', '-')}.jsonl"
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
            command += ["-p", "tools.gpu_check.pytest_results", "--results", str(events), name]
            command += ["-m", marks] if marks else []
            report({name: test_result(self._run(name, command, limit), limit, events)})

        return Job("tests", (name,), run, 150)

    def _sanitizer(self, tool: str) -> Job:
        """One tool of compute-sanitizer over small runs of all ops."""

        def run(limit: Limit, report: Report) -> None:
            program = shutil.which("compute-sanitizer")
            if self.device != "cuda" or program is None:
                reason = ON_CPU if self.device != "cuda" else NO_SANITIZER
                report({tool: {"status": "not run", "reason": reason}})
                return
            part = self.folder / f"{tool}.json"
            command = [program, "--tool", tool, "--error-exitcode", str(SANITIZER_ERROR)]
            command += [*self._pieces_command("exercise"), "--part", str(part)]
            # The caching allocator's large blocks would hide accesses past a tensor's end.
            ended = self._run(tool, command, limit, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
            report({tool: sanitizer_result(ended, limit, part)})

        return Job("sanitizer", (tool,), run, 120)


def test_result(ended: Exit, limit: Limit, events: Path) -> Result:
    """A test file's result, from the output of pytest_results.py: counts, first lines of failures, where it hung."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    failures, running = {}, None
    for line in events.read_text().splitlines() if events.exists() else ():
        event = json.loads(line)
        running = event.get("started")
        if running is None:
            counts[event["outcome"]] += 1
            if event["outcome"] == "failed":
                failures[event["test"]] = event["line"]
    result = ended.result(limit) | counts
    if ended.code == 5:  # no test was selected
        result = {"status": "ok", "seconds": ended.seconds, **counts}
    if failures:
        result |= {"failures": failures, "reason": f"{len(failures)} failed, such as {next(iter(failures.items()))}"}
    if running is not None:
        result |= {"reason": f"{result.get('reason', '')} in {running}"}
    return result


def sanitizer_result(ended: Exit, limit: Limit, part: Path) -> Result:
    """A tool's result: the errors it reports, or the op that failed under it."""
    result = ended.result(limit)
    lines = [line.strip("= ") for line in ended.log.splitlines() if line.startswith("=========")]
    result["summary"] = next((line for line in reversed(lines) if "SUMMARY" in line), None)
    if ended.code == SANITIZER_ERROR:
        kinds = ("Invalid", "Error", "Uninitialized", "Barrier", "Warning")
        errors = [line for line in lines if line.startswith(kinds)]
        result["reason"] = f"{result['summary']}; first: {errors[0] if errors else ended.last_line}"
        result["errors"] = errors[:20]
    if ended.code == 0 and part.exists():
        bad = {op: item for op, item in json.loads(part.read_text()).items() if item["status"] != "ok"}
        if bad:
            result["status"] = worst([item["status"] for item in bad.values()])
            result["reason"] = "{}: {}".format(*next((op, item["reason"]) for op, item in bad.items()))
    return result
