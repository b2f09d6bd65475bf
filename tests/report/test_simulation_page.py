"""Plots are written whole, and refuse what cannot be drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bgpt_fast.report.plots import accuracy_bars, difference_map, training_curve

PNG = b"\x89PNG\r\n\x1a\n"


def test_training_curve(tmp_path: Path) -> None:
    lines = [{"kind": "train", "seconds": 6.0 * i, "loss": 5.0 / (i + 1)} for i in range(50)]
    lines.append({"kind": "eval", "seconds": 100.0, "state_byte_accuracy": 0.9})
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    training_curve(tmp_path / "log.jsonl", tmp_path / "curve.png", "a run")
    assert (tmp_path / "curve.png").read_bytes().startswith(PNG)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="expected at least one training step"):
        training_curve(tmp_path / "empty.jsonl", tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_accuracy_bars(tmp_path: Path) -> None:
    accuracy_bars({"one": {"ADD": 0.5, "XOR": 1.0}, "two": {"ADD": 0.75}}, tmp_path / "bars.png", "instructions")
    assert (tmp_path / "bars.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("steps", [0, 3, 5, 60])
def test_difference_map_of_any_length(tmp_path: Path, steps: int) -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 256, (5, 8), dtype=np.uint8)
    predicted = generator.integers(0, 256, (steps, 8), dtype=np.uint8)
    difference_map(predicted, truth, list("ABCDEFGH"), tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(PNG)
