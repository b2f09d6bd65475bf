"""Proves every kernel without a GPU: compiles it for sm_80, sm_90 and sm_100 and refuses what should not be launched.

    PYTHONPATH=. python benchmarks/static_check.py                     # everything; static.json and docs/kernels.md
    PYTHONPATH=. python benchmarks/static_check.py --changed           # the same; compiles what is new since the last
    PYTHONPATH=. python benchmarks/static_check.py --quick --dry-run   # each kernel once, nothing written
    PYTHONPATH=. python benchmarks/static_check.py kernels/layer_norm/triton_kernels.py --dry-run

Each case that a room's `compile_cases()` lists must compile without a byte of stack (no spills), within the shared
memory of one block, with the instructions that the case expects. Each CUDA file must compile with the flags of
CMakeLists.txt, where nvcc is found. Speed is not proved here: that takes a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import importlib.util
import io
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from static_table import RECEIPT, ROOT, chosen, cuda_sources, digests, triton_sources, update_docs

from bgpt_fast.files import write_json

SHARED_LIMITS = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes of shared memory that one block may have, by compute capability."""

STACK_ALLOWED = {"_cpu_states_write_kernel": 256}
"""Bytes of stack that a kernel declares itself: the toy machine's ACC and registers, which are indexed at run time."""


@dataclass(frozen=True)
class Task:
    """One compilation: a case of a Triton file, or a whole CUDA file (`case` empty), for one target."""

    source: str
    case: str
    capability: int


@dataclass(frozen=True)
class Finding:
    """What came of a task: a row for each kernel in it, and everything that is wrong."""

    task: Task
    rows: list[dict[str, Any]]
    errors: list[str]


def main() -> int:
    # Read by triton at import: kernels must be compiled here, not interpreted.
    os.environ.pop("TRITON_INTERPRET", None)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="triton_kernels.py and .cu files (default: all of the project)")
    parser.add_argument("--sm", type=int, nargs="+", default=[80, 90, 100], choices=[80, 90, 100], help="targets")
    parser.add_argument("--quick", action="store_true", help="each Triton kernel once, in bf16 at the paper's size")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that compile")
    parser.add_argument(
        "--changed",
        action="store_true",
        help="take over the receipt's rows of sources that have not changed, by the same compilers",
    )
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    parser.add_argument("--json", type=Path, help="write the rows of this run there, whatever they cover")
    parser.add_argument("--docs-only", action="store_true", help="only redraw the table of docs/kernels.md")
    arguments = parser.parse_args()
    if arguments.docs_only:
        update_docs()
        return 0
    everything = not arguments.files and not arguments.quick and arguments.sm == parser.get_default("sm")
    if arguments.changed and not everything:
        parser.error("--changed is for a run over everything")
    files = [path_name(Path(file)) for file in arguments.files] or kernel_files()
    kept = rows_of_unchanged(files) if arguments.changed else {}
    console = Console(stderr=True)
    if shutil.which("nvcc") is None and any(file.endswith(".cu") for file in files):
        console.print("CUDA files are left out: no nvcc here")
        files = [file for file in files if not file.endswith(".cu")]
        everything = False
    # Before anything is compiled, so that figures never pass for those of sources that were edited meanwhile.
    sources = digests()
    new = [file for file in files if file not in kept]
    findings = run(list(tasks_of(new, arguments.sm, arguments.quick)), arguments.jobs, console)
    rows = merged([row for finding in findings for row in finding.rows])
    if kept:
        console.print(f"taken over: {', '.join(kept)}", soft_wrap=True)
        found = {file: [row for row in rows if row["source"] == file] for file in new} | kept
        rows = [row for file in files for row in found[file]]
    errors = [error for finding in findings for error in finding.errors]
    for error in errors:
        console.print(error, markup=False, highlight=False, soft_wrap=True)
    print(f"{len(findings)} compilations of {len({row['kernel'] for row in rows})} kernels, {len(errors)} refused")
    result = {"versions": versions(), "digests": sources, "kernels": rows}
    if arguments.json is not None:
        write_json(arguments.json, result)
    if errors:
        return 1
    if arguments.dry_run:
        return 0
    if not everything:
        console.print("nothing written: only a run over everything writes the receipt and the docs' table")
        return 0
    now = digests()
    changed = sorted(name for name in sources.keys() | now.keys() if sources.get(name) != now.get(name))
    if changed:
        console.print(f"nothing written: changed during the run: {', '.join(changed)}", soft_wrap=True)
        return 1
    write_json(RECEIPT, result)
    update_docs()
    return 0


def kernel_files() -> list[str]:
    """Every file that lists cases of Triton kernels, and every CUDA file."""
    listing = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("kernels/*/*.py")) if lists_cases(path)]
    silent = [file for file in triton_sources() if file.endswith("/triton_kernels.py") and file not in listing]
    if silent:
        raise SystemExit(f"expected compile_cases() in {', '.join(silent)}, found none")
    return listing + cuda_sources()


def rows_of_unchanged(files: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The receipt's rows of files whose kernels and cases are as they were, by file; none if a compiler is another."""
    receipt, now = json.loads(RECEIPT.read_text()), digests()
    if receipt["versions"] != versions():
        return {}
    same = {file for file, digest in now.items() if receipt["digests"].get(file) == digest}
    # Functions that several files' kernels call.
    helpers = [file for file in triton_sources() if file not in files]
    rows: dict[str, list[dict[str, Any]]] = {file: [] for file in files}
    for row in receipt["kernels"]:
        rows.setdefault(row["source"], []).append(row)
    kept = {}
    for file in files:
        is_triton = not file.endswith(".cu")
        if file not in same and (file in now or not is_triton):
            continue
        if is_triton and (not same.issuperset(helpers) or set(cases_of(file)) != {row["case"] for row in rows[file]}):
            continue
        kept[file] = rows[file]
    return kept


def lists_cases(path: Path) -> bool:
    return re.search(r"^def compile_cases\(", path.read_text(), re.MULTILINE) is not None


def path_name(path: Path) -> str:
    """A path below the project's root as it is named everywhere; another as it is."""
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
    """The case of the paper's size in bf16, or what there is."""
    found: dict[str, dict[str, Any]] = {}
    for row in chosen(rows):
        if row["kernel"] not in found or row["dtype"] == "bf16":
            found[row["kernel"]] = row
    return list(found.values())


def run(tasks: list[Task], jobs: int, console: Console) -> list[Finding]:
    """The findings of all tasks, in the order of `tasks`, from `jobs` processes."""
    columns = (TextColumn("compiling"), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    columns = (*columns, TextColumn("{task.description}"))
    # spawn: a fork of a process that holds torch's threads may hang. A pool of futures notices a compiler that crashes.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context) as pool, Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=len(tasks))
        futures = {pool.submit(compile_task, task): task for task in tasks}
        found = {}
        for future in as_completed(futures):
            task = futures[future]
            try:
                found[task] = future.result()
            except BrokenProcessPool:
                found[task] = Finding(task, [], [f"{named(task)}: not compiled: a compiler's process died"])
            progress.update(bar, advance=1, description=task.case or task.source)
            # The bar is drawn on terminals alone.
            if not console.is_terminal and len(found) % 100 == 0:
                console.print(f"{len(found)}/{len(tasks)} compiled", highlight=False)
    return [found[task] for task in tasks]


def named(task: Task) -> str:
    return f"{task.source}: {task.case} sm_{task.capability}".replace("  ", " ")


def compile_task(task: Task) -> Finding:
    where = named(task)
    try:
        # Where ptxas fails, triton prints all of the PTX.
        with contextlib.redirect_stdout(io.StringIO()):
            rows, errors = (compile_cuda if task.source.endswith(".cu") else compile_triton)(task)
    except Exception as error:
        text = str(error).split("Repro command")[0].strip()
        return Finding(task, [], [f"{where}: {type(error).__name__}: {text}"])
    return Finding(task, rows, [f"{where}: {error}" for error in errors])


# Triton


@functools.cache
def cases_of(file: str) -> dict[str, Any]:
    """The cases of a Triton file by name."""
    path = ROOT / file
    if path.is_relative_to(ROOT / "kernels"):
        module = importlib.import_module(".".join(("bgpt_fast", *path.relative_to(ROOT).with_suffix("").parts)))
    else:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise SystemExit(f"{path}: not a Python file")
        module = importlib.util.module_from_spec(spec)
        # By this name pickle and triton find it again.
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
    listed = module.compile_cases()
    cases = {case.name: case for case in listed}
    if len(cases) != len(listed):
        twice = sorted(name for name, count in Counter(case.name for case in listed).items() if count > 1)
        raise SystemExit(f"{file}: cases that share a name: {', '.join(twice)}")
    return cases


def row_of(file: str, case: Any) -> dict[str, Any]:
    """What identifies a case in the receipt."""
    floats = [kind[1:] for kind in case.types.values() if kind in ("*bf16", "*fp16", "*fp32")]
    constexprs = {
        name: value if isinstance(value, (int, float)) else str(value) for name, value in case.constexprs.items()
    }
    return {
        "op": Path(file).parent.name,
        "source": file,
        "kernel": case.kernel.fn.__name__,
        "case": case.name,
        # Of the activations: weights and sums may be wider.
        "dtype": next((kind for kind in ("bf16", "fp16") if kind in floats), floats[0] if floats else "int"),
        "constexprs": constexprs,
        "options": dict(case.options),
    }


def compile_triton(task: Task) -> tuple[list[dict[str, Any]], list[str]]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    case = cases_of(task.source)[task.case]
    names = case.kernel.arg_names
    unknown = set(names) ^ (set(case.types) | set(case.constexprs))
    if unknown or set(case.types) & set(case.constexprs):
        return [], [f"each argument must be in types or in constexprs, once: {', '.join(sorted(unknown)) or 'twice'}"]
    signature = {name: case.types.get(name, "constexpr") for name in names}
    aligned = [i for i, name in enumerate(names) if signature[name][0] in "*iu" and name not in case.unaligned]
    source = ASTSource(
        fn=case.kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in case.constexprs.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    target = GPUTarget("cuda", task.capability, 32)
    compiled = triton.compile(source, target=target, options=dict(case.options))
    [usage] = resources(compiled.asm["cubin"])
    figures = {
        "registers": usage["registers"],
        "stack": usage["stack"],
        "shared": compiled.metadata.shared,
        "threads": compiled.metadata.num_warps * 32,
        **usage["instructions"],
    }
    errors = limits(case.kernel.fn.__name__, figures, task.capability)
    for expected in case.expects:
        if not re.search(expected, compiled.asm["ptx"]):
            errors.append(f"expected {expected} in its PTX, found none")
    return [{**row_of(task.source, case), "targets": {f"sm_{task.capability}": figures}}], errors


def limits(kernel: str, figures: dict[str, Any], capability: int) -> list[str]:
    errors = []
    if figures["stack"] > STACK_ALLOWED.get(kernel, 0):
        errors.append(
            f"expected {STACK_ALLOWED.get(kernel, 0)} bytes of stack, got {figures['stack']}: registers spill; take a "
            "smaller tile or more warps"
        )
    if figures["shared"] > SHARED_LIMITS[capability]:
        errors.append(f"expected at most {SHARED_LIMITS[capability]} bytes of shared memory, got {figures['shared']}")
    return errors


# CUDA


def cuda_options() -> tuple[dict[int, str], list[str]]:
    """The architectures and the warning flags that CMakeLists.txt builds with."""
    text = (ROOT / "CMakeLists.txt").read_text()
    [architectures] = re.findall(r"set\(CMAKE_CUDA_ARCHITECTURES ([^)]*)\)", text)
    [flags] = re.findall(r"COMPILE_LANGUAGE:CUDA>:SHELL:([^>]*)>", text)
    names = [name.removesuffix("-real") for name in architectures.split()]
    return {int(name.rstrip("af")): name for name in names}, flags.split()


def compile_cuda(task: Task) -> tuple[list[dict[str, Any]], list[str]]:
    architectures, flags = cuda_options()
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        command = ["nvcc", "-cubin", f"-arch=sm_{architectures[task.capability]}", "-std=c++20", "-O3", "-DNDEBUG"]
        command += ["-DBGPT_FAST_WITH_CUDA", f"-I{ROOT / 'csrc'}", *flags, "-o", str(cubin), str(ROOT / task.source)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            return [], [f"nvcc: {done.stderr.strip()}"]
        found = resources(cubin.read_bytes())
    rows, errors = [], []
    for usage in found:
        name, dtype = plain_name(usage["function"])
        case = f"{name.removeprefix('_').removesuffix('_kernel')} {dtype}".rstrip()
        figures = {key: usage[key] for key in ("registers", "stack", "shared")} | usage["instructions"]
        errors += [f"{case}: {error}" for error in limits(name, figures, task.capability)]
        identity = {"op": Path(task.source).parent.name, "source": task.source, "kernel": name, "case": case}
        rows.append({**identity, "dtype": dtype or "int", "targets": {f"sm_{task.capability}": figures}})
    return rows, errors


def plain_name(mangled: str) -> tuple[str, str]:
    """A kernel's own name and the dtype of its first template argument, of a mangled name."""
    for found in re.finditer(r"\d+(?=_)", mangled):
        # Digits before the length belong to the name in front of it.
        for digits in (found.group()[i:] for i in range(len(found.group()))):
            name = mangled[found.end() : found.end() + int(digits)]
            if name.endswith("_kernel"):
                rest = mangled[found.end() + int(digits) :]
                kinds = {"If": "fp32", "I13__nv_bfloat16": "bf16", "It": "bf16", "I6__half": "fp16"}
                return name, next((dtype for code, dtype in kinds.items() if rest.startswith(code)), "")
    raise ValueError(f"expected a function named …_kernel, got {mangled}")


# What the compilers made


@functools.cache
def tool(name: str) -> str:
    """A CUDA binary utility: from triton's own folder, or from the PATH."""
    spec = importlib.util.find_spec("triton")
    folders = (
        [str(Path(place) / "backends/nvidia/bin") for place in (spec.submodule_search_locations or [])] if spec else []
    )
    found = shutil.which(name, path=os.pathsep.join([*folders, os.environ.get("PATH", "")]))
    if found is None:
        raise FileNotFoundError(f"expected {name} in triton's folder or on the PATH, found none")
    return found


def resources(cubin: bytes) -> list[dict[str, Any]]:
    """Registers, stack, static shared memory and instructions of each function of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        dumps = [
            subprocess.run([tool("cuobjdump"), option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        ]
    usage, sass = dumps
    pattern = r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    found = re.findall(pattern, usage)
    if not found:
        raise ValueError(f"expected the resources of a function, got {usage!r}")
    sections = dict(re.findall(r"Function : (\S+)\n(.*?)(?=Function : |\Z)", sass, re.DOTALL))
    return [
        {
            "function": function,
            "registers": int(registers),
            "stack": int(stack) + int(local),
            "shared": int(shared),
            "instructions": instructions(sections[function]),
        }
        for function, registers, stack, shared, local in found
    ]


def instructions(sass: str) -> dict[str, Any]:
    """How many instructions, and how many of each kind that drives the tensor cores."""
    codes = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", sass, re.MULTILINE)
    codes = [code for code in codes if code != "NOP"]
    if not codes:
        raise ValueError("expected instructions, found none")
    matrix = Counter(".".join(code.split(".")[:2]) for code in codes if code.split(".")[0].endswith("MMA"))
    return {"instructions": len(codes), "matrix": dict(sorted(matrix.items()))}


def merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a case, its targets side by side."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        key = (row["source"], row["case"])
        if key in found:
            found[key]["targets"].update(row["targets"])
        else:
            found[key] = {**row, "targets": dict(row["targets"])}
    return list(found.values())


def versions() -> dict[str, str]:
    """Of the compilers, so far as they are here."""
    found = {}
    if importlib.util.find_spec("triton"):
        found["triton"] = importlib.import_module("triton").__version__
        for name in ("ptxas", "ptxas-blackwell"):
            found[name] = release(tool(name))
    if nvcc := shutil.which("nvcc"):
        found["nvcc"] = release(nvcc)
    return found


def release(program: str) -> str:
    text = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return re.findall(r"V(\d+\.\d+\.\d+)", text)[-1]


if __name__ == "__main__":
    sys.exit(main())
