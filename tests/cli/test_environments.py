"""Every command in adverse environments."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.all_commands import FOLDER, NAME, command_lines, write_inputs
from support.paths import ROOT

from bgpt_fast.cli.data import KINDS
from bgpt_fast.cli.main import COMMANDS, main

COMMAND_NAMES = tuple(command_lines(Path(), Path()))
NEEDS = {"data music": "mido", "data media": "PIL", "data gallery": "PIL", "data baselines": "sklearn"}
NAMELESS = ("env", "evaluate-generated", "evaluate-programs", "data check", "data baselines")
SHOWN = NAME.removesuffix(" %s é→\udcff")
"""The part of the name that every encoding has."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs") / FOLDER
    write_inputs(folder)
    return folder


def stream(encoding: str) -> io.TextIOWrapper:
    """A strict text stream in memory, as Python opens standard output in a locale that is not UTF-8."""
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", write_through=True)


def test_all_commands_are_tried() -> None:
    tried = {" ".join(words[: 1 + (words[0] == "data")]) for words in command_lines(Path(), Path()).values()}
    assert tried == ({*COMMANDS} - {"data", "bench"}) | {f"data {kind}" for kind in KINDS}


@pytest.mark.parametrize("command", COMMAND_NAMES)
def test_all_of_them_at_once(command: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output in strict ASCII, paths of markup, another default device, and a home that cannot be written."""
    pytest.importorskip(NEEDS.get(command, "torch"))
    if command == "data music" and shutil.which("abc2midi") is None:
        pytest.skip("abc2midi is not installed")
    words = command_lines(inputs, tmp_path / NAME)[command]
    output, errors = stream("ascii"), stream("ascii")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        patch.setattr(sys, "stderr", errors)
        patch.setenv("COLUMNS", "1000")  # no line of a table is broken
        patch.setenv("HOME", "/dev/null/home")
        with torch.device("meta"):
            code = main(words)
    output.seek(0)
    errors.seek(0)
    text = output.read()
    assert code == 0, errors.read()
    assert command in NAMELESS or SHOWN in text
    assert "\x1b" not in text


def test_an_error_names_the_path_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = stream("ascii")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", errors)
        assert main(["evaluate", "--checkpoint", f"{FOLDER}/x]\x1b[31m", "x"]) == 2
    errors.seek(0)
    assert f"{SHOWN} %s \\xe9->\\udcff [/x]\\x1b[31m: expected" in errors.read()


def test_processes_whose_locale_is_not_utf_8(tmp_path: Path) -> None:
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    config = tmp_path / "é…" / "config.py"
    config.parent.mkdir()
    config.write_text("PATCH_SIZE = 16\n", encoding="utf-8")
    for words, expected in (
        (["train", "--help"], "options"),
        (["migrate-config", str(config), "--output", str(config.parent / "o.yaml")], "written"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "bgpt_fast.cli.main", *words],
            env={**os.environ, **locale},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert expected.encode() in done.stdout
        assert done.stdout.isascii()
        assert done.stderr == b""
    assert config.with_name("o.yaml").exists()
