"""Compiles the C++ drivers in tests/csrc/, mostly with the compiler's sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from support.paths import ROOT


def op_sources(*folders: str, root: Path = ROOT / "csrc") -> list[Path]:
    """The C++ files of these folders of csrc/ or a copy of it, without the bindings, which need Python."""
    return [path for folder in folders for path in sorted((root / folder).glob("*.cpp")) if path.stem != "bind"]


def compile_driver(
    output: Path, driver: str, sources: list[Path], *flags: str, sanitizers: str = "", compiler: str = "g++"
) -> Path:
    """Compiles tests/csrc/<driver>.cpp with `sources` into the folder `output`; skips the test without the compiler."""
    program = output / "driver"
    options = ["-O1", "-pthread", "-ffp-contract=off"]
    # GCC's own AVX-512 intrinsics are reported by it at -O1: https://gcc.gnu.org/bugzilla/show_bug.cgi?id=105593
    options.append("-Wno-maybe-uninitialized")
    if sanitizers:
        options += ["-g1", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    _compile(compiler, driver, *options, *flags, *map(str, sources), "-o", str(program))
    return program


def check_driver(driver: str, *flags: str, compiler: str = "g++") -> None:
    """Checks that tests/csrc/<driver>.cpp compiles, without its sources; skips the test without the compiler."""
    _compile(compiler, driver, "-fsyntax-only", *flags)


def _compile(compiler: str, driver: str, *arguments: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    # The include folder last: the arguments may have one with a copy of csrc.
    options = ["-std=c++20", "-Wall", "-Wextra", "-Werror", *arguments, f"-I{ROOT / 'csrc'}"]
    file = ROOT / "tests" / "csrc" / f"{driver}.cpp"
    done = subprocess.run([compiler, file, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run_driver(program: Path, *arguments: str, emulator: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*emulator, program, *arguments], capture_output=True, text=True, timeout=280)
