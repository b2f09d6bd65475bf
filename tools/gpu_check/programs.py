"""What pytest and compute-sanitizer are run on, and their output as results. Standard library only."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.environment import ROOT
from tools.gpu_check.jobs import Exit, Limit, Result, worst

SANITIZER_ERROR = 86  # the exit code of a tool that reports an error
QUICK_TESTS = ("tests/kernels/test_interpreter.py", "tests/kernels/test_patch_embed.py")


def test_files(quick: bool) -> list[tuple[str, list[str]]]:
    """Test files with pytest's options that select the tests of GPUs, those of the ops first."""
    files: list[tuple[str, list[str]]] = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        name = str(path.relative_to(ROOT))
        if quick and name not in QUICK_TESTS:
            continue
        if path.parent.name == "kernels" and not quick:
            files.append((name, ["-k", "not cpu"]))  # the others run on the GPU if there is one
        elif quick or "mark.gpu" in path.read_text():
            files.append((name, ["-m", "gpu"]))
    return sorted(files, key=lambda file: file[1][0])


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
