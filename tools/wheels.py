"""Builds manylinux wheels of this checkout, one for each Python, whose bytes are the same when they are built again.

    python3 -m tools.wheels                         # for each Python at hand, into dist/
    python3 -m tools.wheels --output wheels python3.12
    python3 -m tools.wheels --list                  # the Pythons, and why others are skipped

At hand are the Pythons on PATH and those that pyenv and uv have installed, from the oldest that pyproject.toml allows.

The files are those that git does not ignore, in a folder of their own; packages that build are those of
requirements/wheel.txt, checked by their hashes; the times in a wheel are SOURCE_DATE_EPOCH or the last commit's. The
compiler is the machine's. The platform tag is what auditwheel reads from the extension's symbols, so that a build on an
older Linux serves more machines. Needs git and Python's standard library.
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
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_REQUIREMENTS = ROOT / "requirements" / "wheel.txt"


@dataclass(frozen=True)
class Interpreter:
    """A Python that was run and asked.

    Attributes:
        path: its program, absolute.
        version: (3, 12, 1) for 3.12.1.
        lacks: what it needs for a wheel and has not, in words; empty if a wheel can be built for it.
    """

    path: str
    version: tuple[int, ...]
    lacks: str


_QUESTIONS = """
import importlib.util, json, os, sys, sysconfig
lacks = []
if sys.implementation.name != "cpython":
    lacks.append("it is %s, not CPython" % sys.implementation.name)
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    lacks.append("it is free-threaded, which the extension does not support")
if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    lacks.append("the headers of its C interface are not installed")
if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
    lacks.append("its modules venv and ensurepip are not installed")
print(json.dumps([list(sys.version_info[:3]), "; ".join(lacks)]))
"""


def oldest_version() -> tuple[int, ...]:
    """The oldest Python that pyproject.toml allows, such as (3, 11)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirement = project["requires-python"]
    match = re.fullmatch(r">=(\d+)\.(\d+)", requirement)
    if match is None:
        raise ValueError(f"pyproject.toml: expected requires-python as >=3.N, got {requirement}")
    return tuple(map(int, match.groups()))


def interpreter(python: str) -> Interpreter:
    """Runs a Python, which may be of any version, and asks what it is.

    Args:
        python: a command or a path.

    Raises:
        ValueError: it does not run; the message has its own words.
    """
    path = shutil.which(python)
    if path is None:
        raise ValueError("no such program")
    # Isolated, so that nothing of the current folder or of the user's is imported.
    done = subprocess.run([path, "-I", "-c", _QUESTIONS], capture_output=True, text=True, check=False)
    if done.returncode:
        words = " ".join(done.stderr.split("\n")[0].split())
        raise ValueError(f"it does not run: {words}" if words else f"it ends with code {done.returncode}")
    version, lacks = json.loads(done.stdout)
    oldest = oldest_version()
    if tuple(version) < oldest:
        lacks = f"it is older than {'.'.join(map(str, oldest))}, the oldest that pyproject.toml allows"
    return Interpreter(os.path.abspath(path), tuple(version), lacks)


def candidates() -> list[str]:
    """Paths of programs named python3.N: those on PATH, then those that pyenv and uv have installed."""
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    for command, pattern in ((["pyenv", "root"], "versions/*/bin"), (["uv", "python", "dir"], "*/bin")):
        if shutil.which(command[0]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                folders += sorted(Path(done.stdout.strip()).glob(pattern))
    paths = [path for folder in folders for path in sorted(folder.glob("python3.*"))]
    return [str(path) for path in paths if re.fullmatch(r"python3\.\d+t?", path.name) and os.access(path, os.X_OK)]


def choose(paths: list[str], report: Callable[[str], None]) -> list[Interpreter]:
    """The Pythons that a wheel can be built for, one a version such as 3.12, the oldest first.

    Args:
        paths: programs; of several of one version the first is chosen.
        report: called with a line for each Python that is skipped, with the reason.
    """
    chosen: dict[tuple[int, ...], Interpreter] = {}
    programs: set[str] = set()
    for path in paths:
        if (program := os.path.realpath(path)) in programs:
            continue
        programs.add(program)
        try:
            python = interpreter(path)
        except ValueError as error:
            report(f"{path} is skipped: {error}")
            continue
        minor = python.version[:2]
        if not python.lacks and minor in chosen:
            report(f"{path} is skipped: {chosen[minor].path} is of the same version")
        elif python.lacks:
            report(f"{path} is skipped: {python.lacks}")
        else:
            chosen[minor] = python
    return [chosen[version] for version in sorted(chosen)]


def copy_sources(target: Path) -> None:
    """Copies the files of the working tree that git does not ignore; symbolic links stay links."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    for name in filter(None, listing.stdout.decode().split("\0")):
        source = ROOT / name
        if source.exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name, follow_symlinks=False)


def build_wheel(python: str, output: Path) -> Path:
    """Builds the wheel for one Python.

    Args:
        python: its command or path; it needs venv and the headers of its C interface.
        output: an existing folder.

    Returns:
        The wheel's path.

    Raises:
        subprocess.CalledProcessError: git, pip, the compiler or auditwheel failed; their output says why.
    """
    with tempfile.TemporaryDirectory(prefix="bgpt-fast-wheel-") as temporary:
        folder = Path(temporary)
        sources, unaudited, audited = (folder / name for name in ("sources", "unaudited", "audited"))
        copy_sources(sources)
        subprocess.run([python, "-m", "venv", str(folder / "venv")], check=True)
        programs = folder / "venv" / "bin"
        pip = [str(programs / "python"), "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", "--require-hashes", "-r", str(_REQUIREMENTS)], check=True)
        variables = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
        variables.setdefault("SOURCE_DATE_EPOCH", _time_of_last_commit())
        build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(unaudited), str(sources)]
        subprocess.run([*pip, *build], check=True, env=variables)
        [wheel] = unaudited.iterdir()
        # Nothing is excluded: the extension is built without torch, and CUDA's runtime is linked statically.
        repair = [str(programs / "auditwheel"), "repair", "--wheel-dir", str(audited), str(wheel)]
        subprocess.run(repair, check=True, env=variables)
        [wheel] = audited.iterdir()
        return Path(shutil.copy2(wheel, output))


def _time_of_last_commit() -> str:
    """In seconds since 1970."""
    words = ["git", "log", "-1", "--format=%ct"]
    return subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="the folder of the wheels")
    parser.add_argument("--list", action="store_true", help="show the Pythons, and build nothing")
    parser.add_argument("pythons", nargs="*", help="commands or paths; default: each Python at hand")
    arguments = parser.parse_args()
    if arguments.pythons:
        pythons = []
        for name in arguments.pythons:
            try:
                pythons.append(interpreter(name))
            except ValueError as error:
                parser.error(f"{name}: {error}")
            if pythons[-1].lacks:
                parser.error(f"{name}: {pythons[-1].lacks}")
    else:
        pythons = choose(candidates(), print)
        if not pythons:
            oldest = ".".join(map(str, oldest_version()))
            parser.error(f"expected Python {oldest} or newer on PATH or of pyenv or uv, got none; name one")
    for python in pythons:
        print(f"{python.path} is Python {'.'.join(map(str, python.version))}", flush=True)
    if arguments.list:
        return 0
    arguments.output.mkdir(parents=True, exist_ok=True)
    failures = 0
    for python in pythons:
        try:
            print(build_wheel(python.path, arguments.output), flush=True)
        except subprocess.CalledProcessError as error:  # the others' wheels are built all the same
            failures += 1
            print(f"{python.path}: no wheel: {Path(error.cmd[0]).name} ended with code {error.returncode}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
