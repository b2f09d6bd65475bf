"""Compiles every kernel for sm_80, sm_90 and sm_100 without a GPU and fails for kernels that should not be launched.

    python -m tools.static_check                     # everything; writes static.json and the table of docs/kernels.md
    python -m tools.static_check --changed           # the same, but compiles only what changed since the last time
    python -m tools.static_check --quick --dry-run   # each kernel once, writes nothing
    python -m tools.static_check kernels/layer_norm/triton_kernels.py --dry-run

Each case in an op's `compile_cases()` must compile without using stack memory (no spills), within the shared memory of
one block, and with the instructions that the case expects. Each CUDA file must compile with the flags of
CMakeLists.txt, if nvcc is found. Speed is not checked here: that needs a GPU.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from benchmarks.environment import ROOT
from bgpt_fast.files import write_json
from tools.static_check.compile import Outcome, Task, cases_of, compile_task, row_of, versions
from tools.static_check.table import RESULT, chosen, cuda_sources, digests, triton_sources, update_docs, write_result


def main() -> int:
    # Triton reads it at import: kernels must be compiled here, not interpreted.
    os.environ.pop("TRITON_INTERPRET", None)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="triton_kernels.py and .cu files (default: all of the project)")
    parser.add_argument("--sm", type=int, nargs="+", default=[80, 90, 100], choices=[80, 90, 100], help="targets")
    parser.add_argument("--quick", action="store_true", help="each Triton kernel once, in bf16 at the paper's size")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that compile")
    text = "compile only sources that changed since static.json, if the compilers are the same"
    parser.add_argument("--changed", action="store_true", help=text)
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    parser.add_argument("--json", type=Path, help="write the rows of this run there as well")
    parser.add_argument("--docs-only", action="store_true", help="only write the table of docs/kernels.md again")
    arguments = parser.parse_args()
    if arguments.docs_only:
        update_docs()
        return 0
    everything = not arguments.files and not arguments.quick and arguments.sm == parser.get_default("sm")
    if arguments.changed and not everything:
        parser.error("--changed is for a run over everything")
    files = [path_name(Path(file)) for file in arguments.files] or kernel_files()
    unchanged = rows_of_unchanged(files) if arguments.changed else {}
    if shutil.which("nvcc") is None and any(file.endswith(".cu") for file in files):
        _log("CUDA files are left out: no nvcc here")
        files = [file for file in files if not file.endswith(".cu")]
        everything = False
    # Computed before anything is compiled, so that edits of the sources during compilation are noticed.
    sources = digests()
    new = [file for file in files if file not in unchanged]
    outcomes = run(list(tasks_of(new, arguments.sm, arguments.quick)), arguments.jobs)
    rows = merged([row for rows, _ in outcomes for row in rows])
    if unchanged:
        _log(f"not compiled again: {', '.join(unchanged)}")
        by_file = {file: [row for row in rows if row["source"] == file] for file in new} | unchanged
        rows = [row for file in files for row in by_file[file]]
    errors = [error for _, errors in outcomes for error in errors]
    for error in errors:
        _log(error)
    print(f"{len(outcomes)} compilations of {len({row['kernel'] for row in rows})} kernels, {len(errors)} refused")
    result = {"versions": versions(), "digests": sources, "kernels": rows}
    if arguments.json is not None:
        write_json(arguments.json, result)
    if errors or arguments.dry_run:
        return 1 if errors else 0
    if not everything:
        _log("nothing written: only a run over everything writes static.json and the docs' table")
        return 0
    now = digests()
    changed = sorted(name for name in sources.keys() | now.keys() if sources.get(name) != now.get(name))
    if changed:
        _log(f"nothing written: changed during the run: {', '.join(changed)}")
        return 1
    write_result(result)
    update_docs()
    return 0


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def kernel_files() -> list[str]:
    """Every file that lists cases of Triton kernels, and every CUDA file."""
    listing = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("kernels/*/*.py")) if lists_cases(path)]
    missing = [file for file in triton_sources() if file.endswith("/triton_kernels.py") and file not in listing]
    if missing:
        raise SystemExit(f"expected compile_cases() in {', '.join(missing)}, found none")
    return listing + cuda_sources()


def rows_of_unchanged(files: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Rows of static.json for files whose kernels and cases are unchanged, by file; empty if a compiler has changed."""
    result, now = json.loads(RESULT.read_text()), digests()
    if result["versions"] != versions():
        return {}
    same = {file for file, digest in now.items() if result["digests"].get(file) == digest}
    # Functions called by kernels of several files.
    helpers = [file for file in triton_sources() if file not in files]
    rows: dict[str, list[dict[str, Any]]] = {file: [] for file in files}
    for row in result["kernels"]:
        rows.setdefault(row["source"], []).append(row)

    def is_unchanged(file: str) -> bool:
        if file.endswith(".cu"):
            return file in same
        is_same = (file in same or file not in now) and same.issuperset(helpers)
        return is_same and set(cases_of(file)) == {row["case"] for row in rows[file]}

    return {file: rows[file] for file in files if is_unchanged(file)}


def lists_cases(path: Path) -> bool:
    return re.search(r"^def compile_cases\(", path.read_text(), re.MULTILINE) is not None


def path_name(path: Path) -> str:
    """The path relative to the project's root; unchanged if it is outside."""
    resolved = path.resolve()
    return str(resolved.relative_to(ROOT)) if resolved.is_relative_to(ROOT) else str(resolved)


def tasks_of(files: list[str], capabilities: list[int], quick: bool) -> Iterator[Task]:
    for file in files:
        names = [""]
        if not file.endswith(".cu"):
            rows = [row_of(file, case) for case in cases_of(file).values()]
            names = [row["case"] for row in (one_of_each_kernel(rows) if quick else rows)]
        yield from (Task(file, name, capability) for name in names for capability in capabilities)


def one_of_each_kernel(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The case of the paper's size, in bf16 if there is one."""
    cases: dict[str, dict[str, Any]] = {}
    for row in chosen(rows):
        if row["kernel"] not in cases or row["dtype"] == "bf16":
            cases[row["kernel"]] = row
    return list(cases.values())


def run(tasks: list[Task], jobs: int) -> list[Outcome]:
    """The outcomes of all tasks, in the order of `tasks`, from `jobs` processes."""
    # spawn, because forking a process with torch's threads may hang. A futures pool notices a compiler that crashes.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(compile_task, task) for task in tasks]
        for number, _ in enumerate(as_completed(futures), 1):
            if number % 100 == 0:
                _log(f"{number}/{len(tasks)} compiled")
        outcomes = []
        for task, future in zip(tasks, futures, strict=True):
            try:
                outcomes.append(future.result())
            except BrokenProcessPool:
                outcomes.append(([], [f"{task}: not compiled: a compiler's process died"]))
    return outcomes


def merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per case, with the results of all its targets."""
    cases: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        case = cases.setdefault((row["source"], row["case"]), {**row, "targets": {}})
        case["targets"] |= row["targets"]
    return list(cases.values())


if __name__ == "__main__":
    sys.exit(main())
