"""Offsets have 64 bits before they are multiplied: read from the source of every kernel (RELIABILITY R23).

`[patches, 16, 3072]` passes 2³¹ elements at 43,691 patches.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
import pytest
from support.offsets import jit_functions, unsafe_products
from support.paths import ROOT

TRITON = sorted(path for path in ROOT.glob("kernels/*/*.py") if jit_functions(path.read_text()))
CUDA = sorted([*ROOT.glob("csrc/**/*.cu"), *ROOT.glob("csrc/**/*.cuh")])
CPP = sorted(ROOT.glob("csrc/*/*.cpp"))
SMALL_PRODUCTS = {
    "csrc/byte_decode/persistent_attention.h": "below 2²⁶, as persistent_body.h says at its head",
    "csrc/byte_decode/persistent_block.h": "likewise",
    "csrc/byte_decode/persistent_residual.h": "likewise",
    "csrc/byte_decode/weight_fragment.h": "likewise",
    "csrc/cpu_states/philox_stream.h": "4 · an instruction's number, of at most 2³¹/4 that options allow",
    "csrc/cpu_states/python_stream.cpp": "4 · a program's length, likewise",
}
"""Files whose products of 32 bits cannot overflow, and why."""

KERNEL = """
import triton
import triton.language as tl

@triton.jit
def _row(x, row, D):
    return tl.load(x + row * D + tl.arange(0, 16))

@triton.jit
def _copy_kernel(x, y, N, D, tokens: tl.constexpr, BLOCK: tl.constexpr):
    {body}
"""
UNSAFE = {
    "a program id": "tl.store(y + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), 1.0)",
    "… by a name": "pid = tl.program_id(0); at = pid * BLOCK; tl.store(y + at, 1.0)",
    "… cast too late": "at = (tl.program_id(0) * D).to(tl.int64); tl.store(y + at, 1.0)",
    "… shifted": "tl.store(y + (tl.program_id(0) << 4), 1.0)",
    "… in a mask": "rows = tl.program_id(0) * BLOCK; tl.store(y, 1.0, mask=rows < N)",
    "… of a helper": "_row(x, tl.program_id(0), D)",
    "… cast back": "tl.store(y + tl.program_id(0).to(tl.int64).to(tl.int32) * D, 1.0)",
    "… on one way": "row = tl.program_id(0)\n    if BLOCK:\n        row = row.to(tl.int64)\n    tl.load(y + row * D)",
    "… in a load that is converted": "tl.store(y, tl.load(x + tl.program_id(0) * BLOCK).to(tl.float32))",
    "a loaded token": "tl.store(y + tl.load(x) * D, 1.0)",
    "a loop over program ids": "for i in range(tl.program_id(0), N):\n        tl.store(y + i * BLOCK, 1.0)",
    "what a loop adds up": "at = 0\n    for i in range(N):\n        tl.store(y + at * BLOCK, 1.0)\n        at += 1",
    "two arguments": "tl.store(y + N * D, 1.0)",
    "a number of rows": "tl.store(y + N * BLOCK, 1.0, mask=tl.program_id(0).to(tl.int64) < N)",
}
SAFE = {
    "cast before": "tl.store(y + tl.program_id(0).to(tl.int64) * D + tl.arange(0, BLOCK), 1.0)",
    "tl.cast": "tl.store(y + tl.cast(tl.program_id(0), tl.int64) * BLOCK, 1.0)",
    "of a helper": "_row(x, tl.program_id(0).to(tl.int64), D)",
    "no address": "value = tl.load(x) * tl.load(x + 1); tl.store(y, value * tl.program_id(0))",
    "bounded": "tl.store(y + tl.arange(0, BLOCK)[:, None] * BLOCK + tl.program_id(0) % BLOCK * 257, 1.0)",
    "columns": "tiles = tl.cdiv(D, BLOCK); tl.store(y + tl.program_id(0) % tiles * BLOCK, 1.0)",
    "a row's width": "tl.store(y + 3 * D * BLOCK, 1.0)",
}


@pytest.mark.parametrize("path", TRITON, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_triton(path: Path) -> None:
    text = path.read_text()
    others = {function.name: function for other in TRITON for function in jit_functions(other.read_text())}
    products = unsafe_products(text, {name: function for name, function in others.items() if name in text})
    lines = [
        f"{path.relative_to(ROOT)}:{line}: {source}: cast a factor to tl.int64 before" for line, source in products
    ]
    assert not lines, "\n".join(lines)


def test_triton_functions_are_kernels_or_called() -> None:
    for path in TRITON:
        for function in jit_functions(path.read_text()):
            calls = sum(len(re.findall(rf"\b{function.name}\(", other.read_text())) for other in TRITON)
            assert function.name.endswith("_kernel") or calls > 1, f"{path}: {function.name}: never looked at"


@pytest.mark.parametrize("name", UNSAFE)
def test_triton_catches(name: str) -> None:
    assert len(unsafe_products(KERNEL.format(body=UNSAFE[name]))) == 1


@pytest.mark.parametrize("name", SAFE)
def test_triton_lets_pass(name: str) -> None:
    assert unsafe_products(KERNEL.format(body=SAFE[name])) == []


def narrow_indices(text: str) -> list[str]:
    """Lines of CUDA that multiply a built-in index in 32 bits, keep one in 32 bits, or take a size of 32 bits."""
    builtin = r"\b(?:blockIdx|threadIdx|gridDim|blockDim)\.[xyz]"
    text = re.sub(r"//[^\n]*", "", text)
    bad = re.findall(rf"{builtin}\s*(?:\*|<<)[^;]*|[^;\n]*\*\s*{builtin}", text)
    for kind, name in re.findall(rf"\b(\w+)\s+(\w+)\s*=[^;]*?{builtin}", text):
        if kind not in ("int64_t", "uint64_t"):
            bad.append(f"{kind} {name}")
    for parameters in re.findall(r"__global__[^{;]*?_kernel\(([^)]*)\)", text):
        bad += re.findall(r"\b(?:int|unsigned|int32_t|uint32_t)\s+\w+", parameters)
    return bad


@pytest.mark.parametrize("path", CUDA, ids=lambda path: path.name)
def test_cuda(path: Path) -> None:
    assert "__global__" in path.read_text()
    assert narrow_indices(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "const int64_t i = blockIdx.x * kThreads + threadIdx.x;",
        "const int64_t i = static_cast<int64_t>(kThreads * blockIdx.x);",
        "const int i = static_cast<int64_t>(blockIdx.x) * kThreads;",
        "auto i = blockIdx.x;",
        "for (unsigned p = blockIdx.x; p < P; p += gridDim.x) {}",
        "__global__ void _copy_kernel(const float* x, int n) {}",
    ],
)
def test_cuda_catches(line: str) -> None:
    assert narrow_indices(line)


def test_cuda_lets_pass() -> None:
    assert not narrow_indices("const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;")
    assert not narrow_indices("for (int64_t p = blockIdx.x; p < P; p += gridDim.x) {}")


def narrow_numbers(path: Path) -> list[str]:
    """What clang-tidy says of products that are made in 32 bits and then used as 64-bit numbers or offsets, and of
    64-bit numbers that become 32-bit ones without a cast."""
    program = shutil.which("clang-tidy", path=str(Path(sys.executable).parent)) or shutil.which("clang-tidy")
    assert program is not None, "needs clang-tidy: pip install -r requirements/test.txt"
    checks = "bugprone-implicit-widening-of-multiplication-result", "clang-diagnostic-shorten-64-to-32"
    command = [program, "--quiet", f"--checks=-*,{','.join(checks)}", "--header-filter=.*", str(path)]
    # As system headers, so that nothing is said of them.
    libraries = ("-isystem", pybind11.get_include(), "-isystem", sysconfig.get_path("include"))
    command += ["--", "-std=c++20", "-Wshorten-64-to-32", f"-I{ROOT / 'csrc'}", *libraries]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "error:" not in done.stdout, done.stdout
    return [line for line in done.stdout.splitlines() if any(check in line for check in checks)]


def narrow_casts(text: str) -> list[str]:
    """Casts of products to 32 bits: clang-tidy takes a cast for an intention, but a product of sizes is an offset."""
    text = re.sub(r"//[^\n]*|constexpr [^;]*;", "", text)
    argument = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"  # with parentheses two deep
    narrow = r"(?:u?int32_t|int|unsigned)"
    kind = rf"(?:static_cast<{narrow}>|\({narrow}\)\s*|\b{narrow}(?=\())"
    casts = re.findall(kind + argument, text)
    of_a_type = r"\d+ \* sizeof\(\w+\)"
    return [cast for cast in casts if re.search(r"[\w)\]]\s*\*\s*[\w(]", re.sub(of_a_type, "", cast))]


def test_cpp() -> None:
    with ThreadPoolExecutor(2) as pool:
        products = {line for lines in pool.map(narrow_numbers, CPP) for line in lines}
    bad = [line for line in products if not any(f"{ROOT / name}:" in line for name in SMALL_PRODUCTS)]
    assert not bad, "\n".join(sorted(bad))
    # What has an excuse needs it.
    assert all(any(f"{ROOT / name}:" in line for line in products) for name in SMALL_PRODUCTS)


def test_no_product_is_cast_to_32_bits() -> None:
    sources = [path for end in ("cpp", "h", "cu", "cuh") for path in ROOT.glob(f"csrc/*/*.{end}")]
    assert len(sources) > 50
    assert {path.name: casts for path in sources if (casts := narrow_casts(path.read_text()))} == {}


def test_cpp_catches(tmp_path: Path) -> None:
    source = tmp_path / "x.cpp"
    source.write_text("float at(const float* x, int row, int width) { return x[row * width]; }\n")
    assert len(narrow_numbers(source)) == 1
    source.write_text("float at(const float* x, long row, int width) { return x[row * width]; }\n")
    assert narrow_numbers(source) == []
    source.write_text("float at(const float* x, long row, long width) { int i = row * width; return x[i]; }\n")
    assert len(narrow_numbers(source)) == 1
    assert narrow_casts("y = x + static_cast<int32_t>(begin * S);")
    assert narrow_casts("y = x + (int)(offsets[b] * S);")
    assert narrow_casts("y = x + int32_t(begin * S);")
    assert narrow_casts("y = x + static_cast<int>((begin - 1) * f(S));")
    assert not narrow_casts("for (int i = 0; i < static_cast<int>(2 * sizeof(W)); ++i) f(static_cast<int>(*p));")
