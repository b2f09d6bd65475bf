"""A tiny model and machine for tests of the command line, and the command line itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bgpt_fast import BGPTConfig

CONFIG = BGPTConfig(patch_size=8, patch_length=16, hidden_size=16, patch_num_layers=1, byte_num_layers=1, num_heads=2)
MACHINE = ["--machine.num-registers", "2", "--machine.memory-size", "16", "--machine.max-program", "4"]


def read_report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


class CommandLine:
    """Runs `bgpt-fast` in this process and checks its exit code."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def run(self, *words: object, code: int = 0) -> Any:
        """Returns the output of this command only, as `out` and `err`."""
        # Not above: tests of GPUs run where tyro is not installed.
        from bgpt_fast.cli.main import main

        self._capsys.readouterr()
        assert main([str(word) for word in words]) == code
        return self._capsys.readouterr()

    def text(self, *words: object) -> str:
        """Returns the standard output without its line breaks."""
        return " ".join(self.run(*words).out.split())

    def json(self, *words: object) -> Any:
        return json.loads(self.run(*words, "--json").out)

    def fails(self, message: str, *words: object, code: int = 2) -> None:
        """Checks the error and the exit code: 2 for a wrong value, 1 for a failure."""
        assert message in self.run(*words, code=code).err
