"""Texts, axes and averages of the plots, as they are drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from bgpt_fast.report import classification_plots, evaluation_plots, plots


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The last figure that was drawn, instead of a file."""
    last_figure: dict[str, Any] = {}

    def keep(one: Any, path: object) -> None:
        one.canvas.draw()
        last_figure["figure"], last_figure["axes"] = one, one.axes[0]

    for module in (plots, evaluation_plots, classification_plots):
        monkeypatch.setattr(module, "save_figure", keep)
    return last_figure


def test_only_zero_is_written_as_zero() -> None:
    texts = [plots.short_number(value) for value in (0, 0.0032, 0.00004, 0.1, 2, 1234.5)]
    assert texts == ["0", "0.0032", "4e-05", "0.10", "2.00", "1,234.50"]
    assert plots.share_text(3, 100_000) == "0.003 % (3 of 100,000)"
    assert plots.share_text(0, 0) == "0 % (0 of 0)"


def test_the_smoothed_loss_is_not_above_a_falling_one() -> None:
    falling = np.exp(-np.arange(400) / 40)
    smooth = plots._smooth(falling)
    np.testing.assert_allclose(smooth[:40], falling[:40], rtol=0.1)
    assert smooth[0] == falling[0]
    lagging = np.convolve(falling, np.full(25, 1 / 25))[:400]
    assert abs(lagging[39] / falling[39] - 1) > 0.2, "an average of earlier values alone is above"
    np.testing.assert_allclose(plots._smooth(np.full(1000, 3.0)), 3.0)
    assert plots._smooth(np.array([2.0])).tolist() == [2.0]


def test_the_curves_axes_are_named_and_in_plain_numbers(figure: dict[str, Any], tmp_path: Path) -> None:
    lines = [{"kind": "train", "step": n, "seconds": n, "loss": 6 / n} for n in range(1, 30)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    plots.training_curve(tmp_path / "log.jsonl", tmp_path / "x.png")
    assert figure["axes"].get_ylabel() == "loss, nats per byte position"
    labels = [label.get_text() for label in figure["axes"].get_yticklabels()]
    assert {"1", "2", "5"} <= set(labels)
    assert not any("10^" in label or "\\times" in label for label in labels)


def test_the_models_number_stands_behind_its_interval(figure: dict[str, Any], tmp_path: Path) -> None:
    figures = {
        "bits_per_byte": 2.0,
        "by_extension": {},
        "baselines_bits_per_byte": {"gzip": 3.0},
        "intervals": {"bits_per_byte": [1.5, 2.75]},
        "files": 2,
        "bytes": 100,
    }
    evaluation_plots.baselines(figures, tmp_path / "x.png")
    places = {text.get_text(): text.xy[0] for text in figure["axes"].texts}
    assert places == {"2.00": 2.75, "3.00": 3.0}


def test_ticks_of_the_files_do_not_overlap(figure: dict[str, Any], tmp_path: Path) -> None:
    for largest in (1200, 5000, 100_000, 10**8):
        rows = [{"bytes": size, "bits_per_byte": 2.0} for size in np.geomspace(900, largest, 20).astype(int)]
        evaluation_plots.files({"by_file": rows, "bits_per_byte": 2.0}, tmp_path / "x.png")
        boxes = [label.get_window_extent() for label in figure["axes"].get_xticklabels() if label.get_text()]
        inside = sorted(box.x0 for box in boxes), sorted(box.x1 for box in boxes)
        assert all(right < left for left, right in zip(inside[0][1:], inside[1], strict=False))


def test_wrong_bytes_fill_their_axis(figure: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"bits_per_byte": 0.01, "accuracy": 0.9995}] * 9
    evaluation_plots.patch_positions({"by_patch_position": rows}, tmp_path / "x.png")
    right = figure["figure"].axes[1]
    assert right.get_ylim()[1] < 0.1, "0.05 % of the bytes are wrong, and are seen"


def test_a_class_without_files_is_named(figure: dict[str, Any], tmp_path: Path) -> None:
    score = {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 5}
    none = {"precision": None, "recall": None, "f1": None, "support": 0}
    figures = {
        "labels": ["a.x", "b.x"],
        "confusion": [[5, 0], [0, 0]],
        "by_class": {"a.x": score, "b.x": none},
        "accuracy": 1.0,
        "accuracy_interval": [1.0, 1.0],
        "documents": 5,
    }
    classification_plots.confusion_matrix(figures, tmp_path / "x.png")
    assert [label.get_text() for label in figure["axes"].get_yticklabels()] == ["a.x (5)", "b.x (0)"]
    assert "1 of 2 classes have no files" in figure["axes"].get_title()


def test_a_model_without_an_instruction_has_no_bar(figure: dict[str, Any], tmp_path: Path) -> None:
    plots.accuracy_bars({"a": {"ADD": 0.5, "SUB": 0.25}, "b": {"ADD": 1.0}}, tmp_path / "x.png")
    heights = [bar.get_height() for bar in figure["axes"].patches]
    assert heights[:3] == [50.0, 25.0, 100.0]
    assert np.isnan(heights[3])


@pytest.mark.parametrize(("low", "high"), [(5.28, 5.92), (1.0001, 1.0004), (0.5, 3.0), (3, 40_000), (0.02, 0.9)])
def test_ticks_of_logarithmic_axes_differ_and_say_where_they_are(low: float, high: float) -> None:
    figure, axes = plots.new_figure(8, 4.5)
    axes.plot([0, 1], [low, high])
    axes.set_yscale("log")
    plots.plain_log_ticks(axes.yaxis)
    figure.canvas.draw()
    for text, position in zip(axes.yaxis.get_majorticklabels(), axes.yaxis.get_majorticklocs(), strict=True):
        assert float(text.get_text().replace(",", "")) == pytest.approx(position, rel=1e-9)
