"""The contact from end to end on the null GPU, in the processes and with the sizes of a real run.

Every item must get as far as its values, of which no kernel has computed any.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.host_faults import HOST_FAULTS

from benchmarks.environment import ROOT
from tools.gpu_check.items import ITEMS
from tools.gpu_check.plan import COMMANDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
SECONDS = 7000
"""For everything; the items' own limits grow with it. Two idle cores need minutes."""


def run(folder: Path, *words: str) -> dict[str, dict[str, Any]]:
    """The items' results by piece."""
    limit = ["--output", str(folder), "--time-limit", str(SECONDS)]
    program = [sys.executable, "-m", "tools.gpu_check", "contact", *limit, *words]
    ended = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode in (0, 1), ended.stderr
    result = json.loads((folder / "gpu_contact.json").read_text())
    assert result["complete"]
    assert result["seconds"] > 0
    assert (folder / "gpu_contact_logs.tar.gz").stat().st_size > 0
    return {piece: entry["items"] for piece, entry in result["pieces"].items()}


def check_items(pieces: dict[str, dict[str, Any]]) -> None:
    for piece, results in pieces.items():
        for name, item in results.items():
            reason = item.get("reason", "")
            assert item["status"] != "timed out", (piece, name, item)
            assert not any(fault in reason for fault in HOST_FAULTS), (piece, name, item)
            if item["status"] == "failed":
                assert item["log"] or item["traceback"], (piece, name)


def test_the_contact(tmp_path: Path) -> None:
    pieces = run(tmp_path)
    assert set(pieces) == set(COMMANDS["contact"])
    assert pieces["build"]["extension"]["status"] == "ok"
    assert not pieces["build"]["extension"]["built"]
    check_items(pieces)
    for piece in ("values", "first", "peak", "products"):
        assert set(pieces[piece]) == set(ITEMS[piece])
        assert {item["status"] for item in pieces[piece].values()} <= {"ok", "failed"}
    # Wrong values withhold the steps; alone they run.
    steps = run(tmp_path / "steps", "--pieces", "steps")["steps"]
    assert {item["status"] for item in steps.values()} == {"ok"}
    assert len(steps["timed"]["step_s"]) == 5
