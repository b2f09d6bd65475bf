"""The README's Python runs as it stands there, and the commands it shows exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from support.paths import ROOT
from support.readme import TEXT, readme_program

from bgpt_fast.cli.main import COMMANDS


def test_the_python_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", readme_program()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "state bytes right" in done.stdout
    assert (tmp_path / "my-model/model.safetensors").exists()


def test_the_commands_exist() -> None:
    commands = set(re.findall(r"^bgpt-fast ([\w-]+)", TEXT, re.MULTILINE))
    assert commands == set(COMMANDS)
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([\w-]+)", TEXT, re.MULTILINE))
    assert {"demo", "test"} <= named <= targets
