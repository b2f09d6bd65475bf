"""Which Pythons `make wheel` builds for: programs of a few lines stand in for Pythons of other versions and kinds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

from tools import wheels


def program(folder: Path, name: str, text: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def python(folder: Path, version: tuple[int, int, int], lacks: str = "") -> str:
    answer = json.dumps([version, lacks])
    return program(folder, f"python{version[0]}.{version[1]}", f"echo '{answer}'")


def test_the_oldest_version_is_that_of_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert wheels.oldest_version() == (3, 11)
    monkeypatch.setattr(wheels, "ROOT", tmp_path)
    (tmp_path / "pyproject.toml").write_text('[project]\nrequires-python = ">=3.12,<4"\n')
    with pytest.raises(ValueError, match=r"expected requires-python as >=3\.N, got >=3\.12,<4"):
        wheels.oldest_version()


def test_one_python_a_version_and_a_reason_for_the_others(tmp_path: Path) -> None:
    newer = python(tmp_path / "a", (3, 13, 0))
    older = python(tmp_path / "a", (3, 9, 2))
    broken = program(tmp_path / "a", "python3.12", "echo 'no version is chosen' >&2; exit 127")
    silent = program(tmp_path / "a", "python3.14", "exit 3")
    whole = python(tmp_path / "b", (3, 12, 1))
    second = python(tmp_path / "c", (3, 12, 7))
    bare = python(tmp_path / "c", (3, 11, 2), lacks="the headers of its C interface are not installed")
    (tmp_path / "d").mkdir()
    link = tmp_path / "d" / "python3.12"
    link.symlink_to(whole)
    lines: list[str] = []
    chosen = wheels.choose([newer, older, broken, silent, whole, second, bare, str(link)], lines.append)
    assert [(item.path, item.version) for item in chosen] == [(whole, (3, 12, 1)), (newer, (3, 13, 0))]
    assert lines == [
        f"{older} is skipped: it is older than 3.11, the oldest that pyproject.toml allows",
        f"{broken} is skipped: it does not run: no version is chosen",
        f"{silent} is skipped: it ends with code 3",
        f"{second} is skipped: {whole} is of the same version",
        f"{bare} is skipped: the headers of its C interface are not installed",
    ]


def test_pythons_are_those_on_path_then_those_of_pyenv_and_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path = tmp_path / "on path"
    expected = [python(on_path, (3, 12, 0))]
    expected.append(python(tmp_path / "pyenv" / "versions" / "3.13.0" / "bin", (3, 13, 0)))
    expected.append(python(tmp_path / "uv" / "cpython-3.14" / "bin", (3, 14, 0)))
    program(on_path, "python3.12-config", "exit 1")
    program(on_path, "pyenv", f'[ "$1" = root ] && echo "{tmp_path}/pyenv"')
    program(on_path, "uv", f'[ "$1 $2" = "python dir" ] && echo "{tmp_path}/uv"')
    monkeypatch.setenv("PATH", f"{on_path}{os.pathsep}{tmp_path / 'not there'}")
    assert wheels.candidates() == expected


def test_this_python_says_what_it_is() -> None:
    own = wheels.interpreter(sys.executable)
    assert (own.path, own.version) == (sys.executable, sys.version_info[:3])
    with pytest.raises(ValueError, match="no such program"):
        wheels.interpreter("no-python-of-this-name")


def test_a_named_python_that_cannot_serve_is_an_error(tmp_path: Path) -> None:
    older = python(tmp_path, (3, 9, 2))
    words = [sys.executable, "-m", "tools.wheels", "--list", older]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{older}: it is older than 3.11" in done.stderr
