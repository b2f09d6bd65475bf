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
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    program = output / "driver"
    options = ["-std=c++20", "-O1", "-pthread", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
    # GCC's own AVX-512 intrinsics are reported by it at -O1: https://gcc.gnu.org/bugzilla/show_bug.cgi?id=105593
    options.append("-Wno-maybe-uninitialized")
    if sanitizers:
        options += ["-g1", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    # The flags first: they may have a copy of csrc.
    options += [*flags, f"-I{ROOT / 'csrc'}"]
    command = [compiler, *options, ROOT / "tests" / "csrc" / f"{driver}.cpp", *sources, "-o", program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


def run_driver(program: Path, *arguments: str, emulator: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*emulator, program, *arguments], capture_output=True, text=True, timeout=280)
