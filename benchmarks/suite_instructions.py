"""Instructions of the C++ hot paths, counted by valgrind: a measure that no other process on the machine disturbs.

    python benchmarks/suite_instructions.py        # or: bgpt-fast bench instructions; --update writes the receipt

Counts are compared with those of the receipt, which hold for one compiler and one valgrind; with others they are only
shown. The exit code is 1 where a path executes over 2 % more than before. Valgrind knows AVX2 and not AVX-512, so the
AVX2 versions are counted.
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

from bgpt_fast.files import write_json

ROOT = Path(__file__).resolve().parent.parent
RECEIPT = ROOT / "benchmarks" / "results" / "instructions.json"
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
# As CMakeLists.txt compiles them.
_FLAGS = ("-std=c++20", "-O3", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-pthread")


def missing() -> str | None:
    """Which tool is not there; None where all are."""
    tools = [tool for tool in ("g++", "valgrind") if shutil.which(tool) is None]
    return f"not installed: {', '.join(tools)}" if tools else None


def _said(*command: str) -> str:
    """What a command prints, its last words in the error where it fails."""
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
        _said("g++", *_FLAGS, f"-I{ROOT / 'csrc'}", "-c", str(source), "-o", target)
        return target

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        objects = list(pool.map(translate, enumerate(sources)))
    program = folder / "hot_paths"
    _said("g++", "-pthread", *objects, "-o", str(program))
    return program


def count(program: Path, path: str) -> int:
    """Instructions of one hot path.

    Raises:
        RuntimeError: the program failed, or callgrind saw nothing of the path.
    """
    options = ("--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=hot_path")
    said = _said("valgrind", *options, str(program), path)
    found = re.search(r"Collected : (\d+)", said)
    if found is None or int(found[1]) == 0:
        raise RuntimeError(f"{path}: callgrind counted nothing: {said[-500:]}")
    return int(found[1])


def counted(folder: Path) -> dict[str, Any]:
    """The counts of all hot paths, with the tools' versions."""
    program = compiled(folder)
    names = _said(str(program)).split()
    return {
        "compiler": _said("g++", "--version").splitlines()[0],
        "valgrind": _said("valgrind", "--version").strip(),
        "flags": list(_FLAGS),
        "instructions": {name: count(program, name) for name in names},
    }


def regressions(before: dict[str, Any], now: dict[str, Any]) -> dict[str, float]:
    """By path, how many times as many instructions as before; only those over the slack, and only by the same tools."""
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
    parser.add_argument("--update", action="store_true", help=f"write {RECEIPT.relative_to(ROOT)}")
    arguments = parser.parse_args(words)
    reason = missing()
    if reason is not None:
        print(f"bgpt-fast bench instructions: {reason}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="hot_paths") as folder:
        now = counted(Path(folder))
    before = json.loads(RECEIPT.read_text(encoding="utf-8")) if RECEIPT.exists() else None
    for name, number in now["instructions"].items():
        old = before["instructions"].get(name) if before else None
        print(f"{name:26s} {number:12,d}" + (f"  {number / old:6.3f} × the receipt's" if old else ""))
    if arguments.update:
        write_json(RECEIPT, now)
        return 0
    slower = regressions(before, now) if before else {}
    for name, ratio in slower.items():
        print(f"{name}: {100 * (ratio - 1):.1f} % more instructions than the receipt says")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
