"""Everything that only a GPU can prove, in one command with one receipt: builds, tests, checks and measures.

    python3 benchmarks/gpu_check.py --output gpu_check.json        # or: make gpu-check

Needs Python, torch, triton, nvcc, cmake, ninja, pybind11, pytest and transformers, and no network. Each piece runs in
processes of its own with time limits; the receipt is rewritten after each result, so that a piece that fails, crashes
or hangs never loses what others found. A short table comes last; the exit code is 0 when all is well. README.md beside
this describes the receipt.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
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

from check_jobs import Receipt, execute
from check_plan import NOTHING_TO_RUN, PIECES, ROOT, Plan
from check_report import summary, table

SOURCES = ("bgpt_fast", "kernels", "csrc")


def files_module() -> Any:
    """bgpt_fast/files.py without its package, whose import needs what is not built yet."""
    spec = importlib.util.spec_from_file_location("files", ROOT / "bgpt_fast" / "files.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commit() -> dict[str, Any]:
    """What is measured: the commit, whether the tree differs from it, and a hash of the sources, which says the same
    where there is no repository."""

    def git(*words: str) -> str | None:
        ended = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        return ended.stdout.strip() if ended.returncode == 0 else None

    digest = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".cpp", ".cu", ".cuh", ".h"):
                digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    try:
        changes = git("status", "--porcelain", "--", *SOURCES)
        found = {"id": git("rev-parse", "HEAD"), "changed": None if changes is None else bool(changes)}
    except FileNotFoundError:  # no git on this machine
        found = {"id": None, "changed": None}
    return {**found, "sources_sha256": digest.hexdigest()}


def machine() -> dict[str, Any]:
    """GPU and versions, from a process of its own."""
    command = [sys.executable, str(ROOT / "benchmarks" / "check_machine.py")]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=90)
        return json.loads(ended.stdout)
    except (subprocess.SubprocessError, json.JSONDecodeError) as error:
        return {"gpu": None, "reason": f"{type(error).__name__}: {str(getattr(error, 'stderr', error))[-500:]}"}


def is_accepted(item: dict[str, Any]) -> bool:
    """Whether an item leaves nothing to prove on this machine."""
    return item["status"] == "ok" or (item["status"] == "not run" and item["reason"] in NOTHING_TO_RUN)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=Path("gpu_check.json"), help="the receipt (default: %(default)s)"
    )
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
        "schema": 1,
        "command": ["benchmarks/gpu_check.py", *(sys.argv[1:] if words is None else words)],
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "device": arguments.device,
        "quick": arguments.quick,
        "complete": False,
        "machine": machine(),
    }
    receipt = Receipt(head, lambda whole: write_json(arguments.output, whole))
    write_json(arguments.output, receipt.whole())
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with tempfile.TemporaryDirectory(prefix="gpu_check") as folder:
        left = arguments.time_limit - (time.monotonic() - began)
        plan = Plan(arguments.device, arguments.quick, arguments.pieces, left, Path(folder), receipt)
        execute(plan.stages(), receipt, stop)
    head |= {"complete": not stop.is_set(), "seconds": time.monotonic() - began}
    head["summary"] = summary(receipt.whole())
    write_json(arguments.output, receipt.whole())
    print(table(receipt.whole()))
    print(f"receipt: {arguments.output}")
    return 0 if head["complete"] and all(map(is_accepted, receipt.items())) else 1


if __name__ == "__main__":
    sys.exit(main())
