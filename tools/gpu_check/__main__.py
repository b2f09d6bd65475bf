"""What needs a GPU, in two short commands: a GPU may be had for minutes only.

    python3 -m tools.gpu_check contact --output gpu_results     # or: make gpu-contact
    python3 -m tools.gpu_check check --output gpu_results       # or: make gpu-check

The contact runs every kernel once, at a small size, and compares its values; then it times a few steps. The check times
and tests in detail what is ok in the contact's result. Both need Python, torch, triton, pybind11, pytest, transformers,
and, unless the extension is there already, nvcc, cmake and ninja; no network. Each piece runs in its own processes with
time limits, and the results are rewritten after each item, so that a piece that fails, crashes or hangs does not lose
others' results. A short table is printed last; the exit code is 0 if everything passed. benchmarks/README.md describes
the files.
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
from tools.gpu_check.archive import write_archive
from tools.gpu_check.jobs import Results, execute
from tools.gpu_check.plan import COMMANDS, ON_CPU, SECONDS, Plan
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
    """Whether an item is "ok", or "not run" because the CPU was asked for."""
    return item["status"] == "ok" or (item["status"] == "not run" and item["reason"] == ON_CPU)


def contact_of(folder: Path, sources: str) -> dict[str, Any]:
    """The pieces of the contact's result.

    Raises:
        SystemExit: there is none, or it is of other sources.
    """
    path = folder / "gpu_contact.json"
    if not path.exists():
        raise SystemExit(f"{path} is missing: run `make gpu-contact` first; the check runs only what is ok there")
    result = json.loads(path.read_text())
    if result["commit"]["sources_sha256"] != sources:
        print(f"{path} is of other sources than these: what has been mended since is not run", file=sys.stderr)
    return result["pieces"]


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--output", type=Path, default=Path("gpu_results"), help="folder (default: %(default)s)")
    parser.add_argument(
        "--time-limit",
        type=float,
        help=f"seconds for everything (default: {SECONDS}); each item's own limit grows with it",
    )
    pieces = sorted({piece for names in COMMANDS.values() for piece in names})
    parser.add_argument("--pieces", nargs="+", choices=pieces, help="only some of the command's (default: all)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: try the command without a GPU")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and few tests: tries the command itself")
    arguments = parser.parse_args(words)
    if arguments.device == "cpu" and not arguments.quick:
        parser.error("--device cpu needs --quick: the sizes of a GPU would take a CPU hours")
    began = time.monotonic()
    seconds = SECONDS[arguments.command] if arguments.time_limit is None else arguments.time_limit
    output, name = arguments.output.resolve(), f"gpu_{arguments.command}"
    head: dict[str, Any] = {
        "schema": 3,
        "command": ["tools.gpu_check", *(sys.argv[1:] if words is None else words)],
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "device": arguments.device,
        "quick": arguments.quick,
        "complete": False,
    }
    is_gated = arguments.command == "check" and arguments.device == "cuda"
    contact = contact_of(output, head["commit"]["sources_sha256"]) if is_gated else {}
    head["machine"] = machine()
    write_json = files_module().write_json
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with tempfile.TemporaryDirectory(prefix="gpu_check") as folder:

        def write(content: dict[str, Any]) -> None:
            write_json(output / f"{name}.json", content)
            write_archive(Path(folder), output / f"{name}_logs.tar.gz")

        results = Results(head, write)
        write(results.content())
        plan = Plan(
            command=arguments.command,
            device=arguments.device,
            quick=arguments.quick,
            pieces=arguments.pieces or COMMANDS[arguments.command],
            seconds=seconds - (time.monotonic() - began),
            output=output,
            folder=Path(folder),
            results=results,
            contact=contact,
            capability=(head["machine"].get("gpu") or {}).get("capability"),
            patience=max(1.0, seconds / SECONDS[arguments.command]),
        )
        execute(plan.stages(), results, stop)
        head |= {"complete": not stop.is_set(), "seconds": time.monotonic() - began}
        head["summary"] = summary(results.content())
        write(results.content())
    print(table(results.content()))
    print(f"result: {output / name}.json")
    items = [item for piece in results.pieces.values() for item in piece["items"].values()]
    return 0 if head["complete"] and all(map(is_accepted, items)) else 1


if __name__ == "__main__":
    sys.exit(main())
