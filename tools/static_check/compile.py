"""One compilation (a case of a Triton file, or a whole CUDA file) for one target, and the resources in its binary."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.environment import ROOT
from bgpt_fast.config import VOCAB_SIZE
from tools.static_check import round_trips

SHARED_LIMITS = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Maximum bytes of shared memory per block, by compute capability."""

STACK_ALLOWED = {"_cpu_states_write_kernel": 256}
"""Stack bytes that a kernel needs by design: the toy machine's ACC and registers, which are indexed at run time."""


@dataclass(frozen=True)
class Task:
    """One compilation: a case of a Triton file, or a whole CUDA file (`case` empty), for one target."""

    source: str
    case: str
    capability: int

    def __str__(self) -> str:
        return f"{self.source}: {self.case} sm_{self.capability}".replace("  ", " ")


Outcome = tuple[list[dict[str, Any]], list[str]]
"""The result of a task: a row for each of its kernels, and all errors."""


def compile_task(task: Task) -> Outcome:
    try:
        # If ptxas fails, triton prints all of the PTX.
        with contextlib.redirect_stdout(io.StringIO()):
            rows, errors = (_compile_cuda if task.source.endswith(".cu") else _compile_triton)(task)
    except Exception as error:
        text = str(error).split("Repro command")[0].strip()
        return [], [f"{task}: {type(error).__name__}: {text}"]
    return rows, [f"{task}: {error}" for error in errors]


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
        # Pickle and triton look the module up by this name.
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
    listed = module.compile_cases()
    cases = {case.name: case for case in listed}
    if len(cases) != len(listed):
        twice = sorted(name for name, count in Counter(case.name for case in listed).items() if count > 1)
        raise SystemExit(f"{file}: cases that share a name: {', '.join(twice)}")
    return cases


def row_of(file: str, case: Any) -> dict[str, Any]:
    """The part of a case's row that is known before compiling."""
    floats = [kind[1:] for kind in case.types.values() if kind in ("*bf16", "*fp16", "*fp32")]
    constexprs = {name: v if isinstance(v, (int, float)) else str(v) for name, v in case.constexprs.items()}
    return {
        "op": Path(file).parent.name,
        "source": file,
        "kernel": case.kernel.fn.__name__,
        "case": case.name,
        # The dtype of the activations: weights and sums may be wider.
        "dtype": next((kind for kind in ("bf16", "fp16") if kind in floats), floats[0] if floats else "int"),
        "constexprs": constexprs,
        "options": dict(case.options),
    }


def _compile_triton(task: Task) -> Outcome:
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
    [usage] = _resources(compiled.asm["cubin"])
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
    if (trips := figures.get("round_trips", 0)) > round_trips.MAX_ROUND_TRIPS:
        errors.append(
            f"expected a byte to wait for memory at most {round_trips.MAX_ROUND_TRIPS} times, got {trips}: begin more "
            "loads before the first of them is used, and no load inside a branch"
        )
    return errors


def _cuda_options() -> tuple[dict[int, str], list[str]]:
    """The architectures and the warning flags that CMakeLists.txt builds with."""
    text = (ROOT / "CMakeLists.txt").read_text()
    [architectures] = re.findall(r"set\(BGPT_FAST_CUDA_ARCHITECTURES ([^)]*?) CACHE", text)
    [flags] = re.findall(r"COMPILE_LANGUAGE:CUDA>:SHELL:([^>]*)>", text)
    names = [name.removesuffix("-real") for name in architectures.split()]
    return {int(name.rstrip("af")): name for name in names}, flags.split()


def _compile_cuda(task: Task) -> Outcome:
    architectures, flags = _cuda_options()
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        command = ["nvcc", "-cubin", f"-arch=sm_{architectures[task.capability]}", "-std=c++20", "-O3", "-DNDEBUG"]
        # With lines, which change no instruction, for round_trips.
        command += ["-DBGPT_FAST_WITH_CUDA", f"-I{ROOT / 'csrc'}", *flags, "-lineinfo", "-o", str(cubin)]
        command.append(str(ROOT / task.source))
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            return [], [f"nvcc: {done.stderr.strip()}"]
        usages = _resources(cubin.read_bytes())
        listings = _listings(cubin) if any(round_trips.KERNEL in usage["function"] for usage in usages) else {}
    rows, errors = [], []
    for usage in usages:
        name, dtype = _kernel_and_dtype(usage["function"])
        case = f"{name.removeprefix('_').removesuffix('_kernel')} {dtype}".rstrip() + _alphabet(usage["function"])
        figures = {key: usage[key] for key in ("registers", "stack", "shared")} | usage["instructions"]
        if name == round_trips.KERNEL:
            figures["round_trips"] = round_trips.round_trips(listings[usage["function"]], ROOT, dtype)
        errors += [f"{case}: {error}" for error in limits(name, figures, task.capability)]
        identity = {"op": Path(task.source).parent.name, "source": task.source, "kernel": name, "case": case}
        rows.append({**identity, "dtype": dtype or "int", "targets": {f"sm_{task.capability}": figures}})
    return rows, errors


def _kernel_and_dtype(mangled: str) -> tuple[str, str]:
    """The kernel's name and the dtype of its first template argument, from a mangled name."""
    for match in re.finditer(r"\d+(?=_)", mangled):
        # Digits before the length belong to the preceding name.
        for digits in (match.group()[i:] for i in range(len(match.group()))):
            name = mangled[match.end() : match.end() + int(digits)]
            if name.endswith("_kernel"):
                rest = mangled[match.end() + int(digits) :]
                kinds = {"If": "fp32", "I13__nv_bfloat16": "bf16", "It": "bf16", "I6__half": "fp16"}
                return name, next((dtype for code, dtype in kinds.items() if rest.startswith(code)), "")
    raise ValueError(f"expected a function named …_kernel, got {mangled}")


def _alphabet(mangled: str) -> str:
    """ " v128" for a kernel with a template argument V of 128, otherwise nothing: that of bGPT's 257 has no mark."""
    match = re.search(r"_kernelI(?:f|t|13__nv_bfloat16|6__half)?Li(\d+)E", mangled)
    return "" if match is None or int(match[1]) == VOCAB_SIZE else f" v{match[1]}"


@functools.cache
def tool(name: str) -> str:
    """The path of a CUDA binary utility, from triton's folder or the PATH."""
    spec = importlib.util.find_spec("triton")
    folders = [f"{folder}/backends/nvidia/bin" for folder in spec.submodule_search_locations or ()] if spec else []
    program = shutil.which(name, path=os.pathsep.join([*folders, os.environ.get("PATH", "")]))
    if program is None:
        raise FileNotFoundError(f"expected {name} in triton's folder or on the PATH, found none")
    return program


def _resources(cubin: bytes) -> list[dict[str, Any]]:
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
    functions = re.findall(pattern, usage)
    if not functions:
        raise ValueError(f"expected the resources of a function, got {usage!r}")
    sections = dict(re.findall(r"Function : (\S+)\n(.*?)(?=Function : |\Z)", sass, re.DOTALL))
    return [
        {
            "function": function,
            "registers": int(registers),
            "stack": int(stack) + int(local),
            "shared": int(shared),
            "instructions": _instructions(sections[function]),
        }
        for function, registers, stack, shared, local in functions
    ]


def _listings(cubin: Path) -> dict[str, str]:
    """Each function's machine code with the lines of its source."""
    command = [tool("nvdisasm"), "-gi", "-c", str(cubin)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(re.findall(r"^\.text\.(\S+):\n(.*?)(?=^\.text\.|\Z)", text, re.DOTALL | re.MULTILINE))


def _instructions(sass: str) -> dict[str, Any]:
    """The number of instructions, and of each kind of tensor-core instruction."""
    codes = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", sass, re.MULTILINE)
    codes = [code for code in codes if code != "NOP"]
    if not codes:
        raise ValueError("expected instructions, found none")
    matrix = Counter(".".join(code.split(".")[:2]) for code in codes if code.split(".")[0].endswith("MMA"))
    return {"instructions": len(codes), "matrix": dict(sorted(matrix.items()))}


def versions() -> dict[str, str]:
    """The versions of the installed compilers."""
    programs = {"nvcc": nvcc} if (nvcc := shutil.which("nvcc")) else {}
    numbers = {}
    if importlib.util.find_spec("triton"):
        numbers["triton"] = importlib.import_module("triton").__version__
        programs = {name: tool(name) for name in ("ptxas", "ptxas-blackwell")} | programs
    return numbers | {name: _release(program) for name, program in programs.items()}


def _release(program: str) -> str:
    text = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return re.findall(r"V(\d+\.\d+\.\d+)", text)[-1]
