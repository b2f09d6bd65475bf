"""Instructions of the C++ hot paths, counted by valgrind: a measure that other processes do not disturb.

    bgpt-fast bench instructions        # --update writes the result file

Counts are compared with those of the result file if compiler and valgrind are the same, otherwise only shown. The exit
code is 1 if a path executes over 2 % more instructions than before. Valgrind supports AVX2 but not AVX-512, so the AVX2
versions are counted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.environment import ROOT
from bgpt_fast.files import write_json

RESULT = ROOT / "benchmarks" / "results" / "instructions.json"
SLACK = 0.02
_DRIVER = ROOT / "benchmarks" / "instructions" / "hot_paths.cpp"
_SOURCES = (
    "cached_attention/cached_attention.cpp",
    "cpu_states/*_stream.cpp",
    "cpu_states/mersenne_twister.cpp",
    "invariant_linear/invariant_linear.cpp",
    "patch_attention/short_attention.cpp",
    "patch_embed/patch_embed.cpp",
    "patches/patches.cpp",
)
# The same compiler flags as in CMakeLists.txt.
_FLAGS = ("-std=c++20", "-O3", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-pthread")


def missing() -> str | None:
    """The tools that are not installed; None where all are."""
    tools = [tool for tool in ("g++", "valgrind") if shutil.which(tool) is None]
    return f"not installed: {', '.join(tools)}" if tools else None


def _output(*command: str) -> str:
    """A command's output; if it fails, the error contains the last lines."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout + done.stderr


def compiled(folder: Path) -> Path:
    """Builds the driver in a folder."""
    sources = [_DRIVER, *(path for pattern in _SOURCES for path in sorted((ROOT / "csrc").glob(pattern)))]

    def translate(numbered: tuple[int, Path]) -> str:
        number, source = numbered
        target = str(folder / f"{number}.o")
        _output("g++", *_FLAGS, f"-I{ROOT / 'csrc'}", "-c", str(source), "-o", target)
        return target

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        objects = list(pool.map(translate, enumerate(sources)))
    program = folder / "hot_paths"
    _output("g++", "-pthread", *objects, "-o", str(program))
    return program


def count(program: Path, path: str) -> int:
    """Instructions of one hot path.

    Raises:
        RuntimeError: the program failed, or callgrind counted nothing.
    """
    options = ("--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=hot_path")
    output = _output("valgrind", *options, str(program), path)
    collected = re.search(r"Collected : (\d+)", output)
    if collected is None or int(collected[1]) == 0:
        raise RuntimeError(f"{path}: callgrind counted nothing: {output[-500:]}")
    return int(collected[1])


def counted(folder: Path) -> dict[str, Any]:
    """The counts of all hot paths, with the tools' versions."""
    program = compiled(folder)
    names = _output(str(program)).split()
    return {
        "compiler": _output("g++", "--version").splitlines()[0],
        "valgrind": _output("valgrind", "--version").strip(),
        "flags": list(_FLAGS),
        "instructions": {name: count(program, name) for name in names},
    }


def regressions(before: dict[str, Any], now: dict[str, Any]) -> dict[str, float]:
    """Paths whose instructions grew by more than the slack, with the ratio; empty if the tools are not the same."""
    if any(before[key] != now[key] for key in ("compiler", "valgrind", "flags")):
        return {}
    ratios = {
        name: number / before["instructions"][name]
        for name, number in now["instructions"].items()
        if name in before["instructions"]
    }
    return {name: ratio for name, ratio in ratios.items() if ratio > 1 + SLACK}


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bgpt-fast bench instructions", description=__doc__.splitlines()[0])
    parser.add_argument("--update", action="store_true", help=f"write {RESULT.relative_to(ROOT)}")
    arguments = parser.parse_args(words)
    reason = missing()
    if reason is not None:
        print(f"bgpt-fast bench instructions: {reason}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="hot_paths") as folder:
        now = counted(Path(folder))
    before = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else None
    for name, number in now["instructions"].items():
        old = before["instructions"].get(name) if before else None
        print(f"{name:26s} {number:12,d}" + (f"  {number / old:6.3f} × the result file's" if old else ""))
    if arguments.update:
        write_json(RESULT, now)
        return 0
    slower = regressions(before, now) if before else {}
    for name, ratio in slower.items():
        print(f"{name}: {100 * (ratio - 1):.1f} % more instructions than in the result file")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
