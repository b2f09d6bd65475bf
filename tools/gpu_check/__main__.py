"""Everything that needs a GPU, in one command with one result file: builds, tests, checks and measures.

    python3 -m tools.gpu_check --output gpu_check.json        # or: make gpu-check

Needs Python, torch, triton, nvcc, cmake, ninja, pybind11, pytest and transformers, and no network. Each piece runs in
its own processes with time limits, and the result file is rewritten after each result, so that a piece that fails,
crashes or hangs does not lose others' results. A short table is printed last; the exit code is 0 if everything passed.
benchmarks/README.md describes the result file.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.environment import ROOT, commit
from tools.gpu_check.jobs import Results, execute
from tools.gpu_check.plan import ACCEPTED_REASONS, PIECES, Plan
from tools.gpu_check.report import summary, table


def files_module() -> Any:
    """bgpt_fast/files.py, loaded without its package, because that needs the extension, which may not be built yet."""
    spec = importlib.util.spec_from_file_location("files", ROOT / "bgpt_fast" / "files.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def machine() -> dict[str, Any]:
    """GPU and versions, determined in a separate process."""
    command = [sys.executable, "-m", "benchmarks.environment"]
    try:
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=90)
        return json.loads(ended.stdout)
    except (subprocess.SubprocessError, json.JSONDecodeError) as error:
        return {"gpu": None, "reason": f"{type(error).__name__}: {str(getattr(error, 'stderr', error))[-500:]}"}


def is_accepted(item: dict[str, Any]) -> bool:
    """Whether an item is "ok", or "not run" for an accepted reason."""
    return item["status"] == "ok" or (item["status"] == "not run" and item["reason"] in ACCEPTED_REASONS)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu_check.json"), help="the result (default: %(default)s)")
    parser.add_argument("--time-limit", type=float, default=520, help="seconds for everything (default: %(default)s)")
    parser.add_argument("--pieces", nargs="+", choices=PIECES, default=PIECES, help="only some (default: all)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: try the command without a GPU")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and few tests: tries the command itself")
    arguments = parser.parse_args(words)
    if arguments.device == "cpu" and not arguments.quick:
        parser.error("--device cpu needs --quick: the sizes of a GPU would take a CPU hours")
    began = time.monotonic()
    write_json = files_module().write_json
    head: dict[str, Any] = {
        "schema": 2,
        "command": ["tools.gpu_check", *(sys.argv[1:] if words is None else words)],
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "device": arguments.device,
        "quick": arguments.quick,
        "complete": False,
        "machine": machine(),
    }
    results = Results(head, lambda content: write_json(arguments.output, content))
    write_json(arguments.output, results.content())
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with tempfile.TemporaryDirectory(prefix="gpu_check") as folder:
        seconds = arguments.time_limit - (time.monotonic() - began)
        plan = Plan(arguments.device, arguments.quick, arguments.pieces, seconds, Path(folder), results)
        execute(plan.stages(), results, stop)
    head |= {"complete": not stop.is_set(), "seconds": time.monotonic() - began}
    head["summary"] = summary(results.content())
    write_json(arguments.output, results.content())
    print(table(results.content()))
    print(f"result: {arguments.output}")
    items = [item for piece in results.pieces.values() for item in piece["items"].values()]
    return 0 if head["complete"] and all(map(is_accepted, items)) else 1


if __name__ == "__main__":
    sys.exit(main())
