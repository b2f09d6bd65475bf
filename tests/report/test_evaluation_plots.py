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


def test_labels_and_titles_are_not_cut(
    figures: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []

    def check(figure: Any, path: Path) -> None:
        names.append(path.name)
        figure.draw_without_rendering()
        for axes in figure.axes:
            for text in filter(lambda text: text.get_text(), (axes.xaxis.label, axes.yaxis.label, axes.title)):
                box = text.get_window_extent()
                assert 0 <= box.x0 < box.x1 <= figure.bbox.x1, (path.name, text.get_text())
                assert 0 <= box.y0 < box.y1 <= figure.bbox.y1, (path.name, text.get_text())

    monkeypatch.setattr(plots, "save_figure", check)
    plots.evaluation_plots(figures, tmp_path / "plots")
    assert sorted(names) == sorted(NAMES)


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
