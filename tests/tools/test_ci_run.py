"""`.ci/run` with other programs in the places of make and Python: what it runs, in which order, and its exit code."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.paths import ROOT


def ci_run(folder: Path, environment_code: int, failing: str = "none") -> tuple[int, list[str]]:
    """Exit code and lines of the output.

    Args:
        folder: an empty one.
        environment_code: exit code of `python3 -m tools.null_gpu`.
        failing: the target of make that fails.
    """
    programs = {
        "make": f'echo "make $*"; [ "$1" != {failing} ]',
        "python3": f"exit {environment_code}",
        "apt-get": "exit 0",
    }
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    (folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", folder / ".ci")
    variables = {**os.environ, "PATH": f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin"}
    words = ["bash", str(folder / ".ci/run")]
    ended = subprocess.run(words, env=variables, stdout=subprocess.PIPE, text=True, timeout=60)
    return ended.returncode, ended.stdout.splitlines()


def test_the_code_for_gpus_runs_before_the_tests(tmp_path: Path) -> None:
    assert ci_run(tmp_path, 0) == (0, ["make lint", "make .venv/.docs", "make docs", "make test-null-gpu", "make test"])


def test_where_packages_cannot_be_had_the_step_is_named_and_the_tests_come_last(tmp_path: Path) -> None:
    code, lines = ci_run(tmp_path, 3)
    assert code == 0
    assert lines[:3] == ["make lint", "make .venv/.docs", "make docs"]
    assert "make test-null-gpu was not run" in lines[3]
    assert lines[4:] == ["make test"]


def test_where_the_packages_of_the_site_cannot_be_had_the_step_is_named(tmp_path: Path) -> None:
    code, lines = ci_run(tmp_path, 0, failing=".venv/.docs")
    assert code == 0
    assert "make docs was not run" in lines[2]
    assert lines[3:] == ["make test-null-gpu", "make test"]


@pytest.mark.parametrize(
    ("environment_code", "failing"), [(4, "none"), (0, "test-null-gpu"), (0, "test"), (0, "lint"), (0, "docs")]
)
def test_a_failure_fails(tmp_path: Path, environment_code: int, failing: str) -> None:
    code, lines = ci_run(tmp_path, environment_code, failing)
    assert code != 0
    assert ("make test" in lines) == (failing == "test")
