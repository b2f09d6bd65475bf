"""Plots of an evaluation: written whole, and left out where there is nothing to draw."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from bgpt_fast import BGPT
from bgpt_fast.report import evaluation_plots as plots
from bgpt_fast.tasks.evaluation import evaluate_files

pytest.importorskip("matplotlib")
PNG = b"\x89PNG\r\n\x1a\n"
NAMES = ["baselines.png", "patch_positions.png", "byte_positions.png", "decoders.png", "files.png"]


@pytest.fixture
def figures(tiny_model: BGPT, tmp_path: Path) -> dict[str, Any]:
    stream = random.Random(0)
    for number in range(30):
        path = tmp_path / f"data/{number}.x{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(stream.randbytes(stream.randrange(1, 80)))
    return evaluate_files(tiny_model, tmp_path / "data").to_dict()


def test_all_are_drawn(figures: dict[str, Any], tmp_path: Path) -> None:
    paths = plots.evaluation_plots(figures, tmp_path / "plots")
    assert [path.name for path in paths] == NAMES
    assert all(path.read_bytes().startswith(PNG) for path in paths)


def test_one_file_of_one_byte_is_enough(tiny_model: BGPT, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    paths = plots.evaluation_plots(evaluate_files(tiny_model, tmp_path / "a").to_dict(), tmp_path / "plots")
    assert [path.name for path in paths] == NAMES


def test_nothing_to_draw(figures: dict[str, Any], tmp_path: Path) -> None:
    nothing = dict.fromkeys(figures["by_byte_position"][0])
    bare = {
        **figures,
        **nothing,
        "by_patch_position": [nothing],
        "by_byte_position": [nothing],
        "by_file": [],
        "decoders": {"patches": 0},
    }
    assert plots.evaluation_plots(bare, tmp_path / "plots") == []
    assert not (tmp_path / "plots").exists()
