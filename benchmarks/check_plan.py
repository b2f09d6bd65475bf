"""The pieces of `gpu_check.py`, in order, with their limits and how each is started. Standard library only."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from check_items import ITEMS
from check_jobs import Ended, Job, Limit, Receipt, Report, Result, Stage, overall, run_command, run_items

ROOT = Path(__file__).resolve().parent.parent
PIECES = (
    "build",
    "tests",
    "correctness",
    "graphs",
    "sanitizer",
    "ceilings",
    "training",
    "ops",
    "byte_decode",
    "generation",
    "cpu_states",
)
SANITIZER_TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
SANITIZER_ERROR = 86  # the exit code that says that the tool found something
ON_CPU, NO_SANITIZER = NOTHING_TO_RUN = ("the CPU was asked for", "compute-sanitizer was not found")
"""Why an item may have nothing to run."""
QUICK_TESTS = ("tests/kernels/test_interpreter.py", "tests/kernels/test_patch_embed.py")


class Plan:
    """Starts the pieces.

    Args:
        device: "cuda" or "cpu".
        quick: tiny sizes and few tests.
        pieces: which ones, of PIECES.
        seconds: for everything.
        folder: for logs and part files.
        receipt: whose measured ceilings later pieces use.
    """

    def __init__(
        self, device: str, quick: bool, pieces: Sequence[str], seconds: float, folder: Path, receipt: Receipt
    ) -> None:
        self.device, self.quick, self.pieces, self.seconds = device, quick, pieces, seconds
        self.folder, self.receipt = folder, receipt
        path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.env = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}

    def stages(self) -> list[Stage]:
        """Build; then what is checked, side by side; then what is timed, alone on the machine. Each stage has a share
        of the time, and what matters most comes first in it."""
        checks = [
            *self._worker("correctness", 120, item_seconds=60),
            *self._worker("graphs", 120, item_seconds=60),
            *self._tests(),
            *self._sanitizers(),
        ]
        timed = [
            *self._worker("ceilings", 40, item_seconds=30),
            *self._worker("training", 220, item_seconds=150),
            *self._worker("ops", 150, item_seconds=60),
            *self._worker("byte_decode", 90, item_seconds=60),
            *self._worker("generation", 70, item_seconds=40),
            *self._worker("cpu_states", 30, item_seconds=30),
        ]
        side_by_side = max(1, min(8, (os.cpu_count() or 1) // 2))
        return [
            Stage(tuple(self._build()), 1, 0.3 * self.seconds),
            Stage(tuple(checks), side_by_side, 0.5 * self.seconds),
            Stage(tuple(timed), 1, self.seconds),
        ]

    def _run(self, name: str, command: Sequence[str], limit: Limit, env: dict[str, str] | None = None) -> Ended:
        log = self.folder / f"{name.replace('/', '-')}.log"
        return run_command(command, limit, cwd=ROOT, env=self.env | (env or {}), log=log)

    def _build(self) -> list[Job]:
        """The extension, in place."""

        def run(limit: Limit, report: Report) -> None:
            ended = self._run("build", [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], limit)
            report({"extension": ended.result(limit)})

        return [Job("build", ("extension",), run, 150)] if "build" in self.pieces else []

    def _worker(self, piece: str, seconds: float, *, item_seconds: float) -> list[Job]:
        """A piece of check_pieces.py."""

        def run(limit: Limit, report: Report) -> None:
            folder = self.folder / piece
            folder.mkdir()
            command = [*self._pieces_command(piece), "--ceilings", json.dumps(self._ceilings())]
            where = {"cwd": ROOT, "env": self.env, "folder": folder}
            run_items(command, ITEMS[piece], limit, report, item_seconds=item_seconds, **where)

        return [Job(piece, ITEMS[piece], run, seconds)] if piece in self.pieces else []

    def _pieces_command(self, piece: str) -> list[str]:
        script = ROOT / "benchmarks" / "check_pieces.py"
        return [sys.executable, str(script), piece, "--device", self.device, *(["--quick"] if self.quick else [])]

    def _ceilings(self) -> dict[str, float]:
        """What the piece "ceilings" measured, where both are there; tiny sizes are not to be held against it."""
        if self.quick:
            return {}
        items = self.receipt.pieces.get("ceilings", {}).get("items", {})
        if any(items.get(name, {}).get("status") != "ok" for name in ITEMS["ceilings"]):
            return {}
        return {"matmul_flops": items["matmul"]["rate"], "copy_bytes_per_s": items["copy"]["rate"]}

    def _tests(self) -> list[Job]:
        """A process for each test file: one that breaks the GPU's context does not fail the others' tests."""
        if "tests" not in self.pieces:
            return []
        found: list[tuple[str, str | None]] = []
        for path in sorted((ROOT / "tests").rglob("test_*.py")):
            name = str(path.relative_to(ROOT))
            if self.quick and name not in QUICK_TESTS:
                continue
            if path.stem.endswith(("_triton", "_interpreter")):
                found.append((name, None))  # on a GPU these run there
            elif "mark.gpu" in path.read_text():
                # The random shapes of ops are marked slow, and run on the best device.
                found.append((name, "gpu or slow" if path.parent.name == "kernels" and not self.quick else "gpu"))
        found.sort(key=lambda test: "_triton" not in test[0])
        return [self._test(name, marks) for name, marks in found]

    def _test(self, name: str, marks: str | None) -> Job:
        def run(limit: Limit, report: Report) -> None:
            events = self.folder / f"{name.replace('/', '-')}.jsonl"
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "pytest_receipt"]
            command += ["--receipt", str(events), name, *(["-m", marks] if marks else [])]
            report({name: test_result(self._run(name, command, limit), limit, events)})

        return Job("tests", (name,), run, 150)

    def _sanitizers(self) -> list[Job]:
        """compute-sanitizer over small runs of all ops (R21)."""
        return [self._sanitizer(tool) for tool in SANITIZER_TOOLS] if "sanitizer" in self.pieces else []

    def _sanitizer(self, tool: str) -> Job:
        def run(limit: Limit, report: Report) -> None:
            program = shutil.which("compute-sanitizer")
            if self.device != "cuda" or program is None:
                reason = ON_CPU if self.device != "cuda" else NO_SANITIZER
                report({tool: {"status": "not run", "reason": reason}})
                return
            command = [program, "--tool", tool, "--error-exitcode", str(SANITIZER_ERROR)]
            command += [*self._pieces_command("exercise"), "--part", str(self.folder / f"{tool}.json")]
            # The caching allocator's large blocks would hide what lies beyond a tensor's end.
            ended = self._run(tool, command, limit, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
            report({tool: sanitizer_result(ended, limit, self.folder / f"{tool}.json")})

        return Job("sanitizer", (tool,), run, 120)


def test_result(ended: Ended, limit: Limit, events: Path) -> Result:
    """A test file's result from what `pytest_receipt` wrote: counts, first lines of failures, and where it hung."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    failures, started = {}, None
    for line in events.read_text().splitlines() if events.exists() else ():
        event = json.loads(line)
        if "started" in event:
            started = event["started"]
            continue
        started = None
        counts[event["outcome"]] += 1
        if event["outcome"] == "failed":
            failures[event["test"]] = event["line"]
    result = ended.result(limit) | counts
    if ended.code == 5:  # no test was chosen
        result = {"status": "ok", "seconds": ended.seconds, **counts}
    if failures:
        result |= {"failures": failures, "reason": f"{len(failures)} failed, such as {next(iter(failures.items()))}"}
    if started is not None:
        result |= {"reason": f"{result.get('reason', '')} in {started}"}
    return result


def sanitizer_result(ended: Ended, limit: Limit, part: Path) -> Result:
    """A tool's result: what it found, or which op failed under it."""
    result = ended.result(limit)
    findings = [line.strip("= ") for line in ended.log.splitlines() if line.startswith("=========")]
    result["summary"] = next((line for line in reversed(findings) if "SUMMARY" in line), None)
    if ended.code == SANITIZER_ERROR:
        kinds = [
            line for line in findings if line.startswith(("Invalid", "Error", "Uninitialized", "Barrier", "Warning"))
        ]
        result |= {
            "reason": f"{result['summary']}; first: {kinds[0] if kinds else ended.last_line}",
            "findings": kinds[:20],
        }
    if ended.code == 0 and part.exists():
        bad = {op: item for op, item in json.loads(part.read_text()).items() if item["status"] != "ok"}
        if bad:
            op, item = next(iter(bad.items()))
            result |= {
                "status": overall([item["status"] for item in bad.values()]),
                "reason": f"{op}: {item['reason']}",
            }
    return result
