"""Plots of a classification, as PNG files: the confusion matrix, and precision and recall of each class."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bgpt_fast.report.plots import COLORS, new_figure, save_figure, shown_text

_MOST_NUMBERS = 30


def classification_plots(figures: Mapping[str, Any], folder: str | os.PathLike[str]) -> list[Path]:
    """Draws both plots of a classification.

    Args:
        figures: `ClassificationReport.to_dict()`.
        folder: created if missing; existing files are replaced.

    Returns:
        The paths of confusion.png and classes.png.

    Raises:
        ImportError: matplotlib is missing.
    """
    output = Path(folder)
    confusion_matrix(figures, output / "confusion.png")
    class_scores(figures, output / "classes.png")
    return [output / "confusion.png", output / "classes.png"]


def confusion_matrix(figures: Mapping[str, Any], path: Path) -> None:
    """Draws the documents by true class (rows) and predicted class (columns), coloured by their share of the row."""
    counts = np.asarray(figures["confusion"], np.int64)
    names = [shown_text(name) for name in figures["labels"]]
    true_names = [f"{name} ({count:,})" for name, count in zip(names, counts.sum(1).tolist(), strict=True)]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 2.0 + 0.45 * min(len(names), 2 * _MOST_NUMBERS)
    figure, axes = new_figure(side + 0.8, side)
    image = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    if len(names) <= _MOST_NUMBERS:
        for row, column in np.ndindex(counts.shape):
            if counts[row, column]:
                color = "white" if shares[row, column] > 0.5 else "#333333"
                axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), true_names, fontsize=8)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class (files)")
    axes.set_title(_title(figures), fontsize=9)
    figure.colorbar(image, ax=axes, shrink=0.7, label="of the true class, %")
    save_figure(figure, path)


def class_scores(figures: Mapping[str, Any], path: Path) -> None:
    """Draws precision and recall of each class; undefined ones have no bar."""
    scores = figures["by_class"]
    names = [f"{shown_text(name)} ({score['support']})" for name, score in scores.items()]
    figure, axes = new_figure(max(5.0, 1.5 + 0.5 * len(names)), 4)
    places = np.arange(len(names))
    for offset, what, color in ((-0.2, "precision", COLORS[0]), (0.2, "recall", COLORS[1])):
        heights = [np.nan if score[what] is None else 100 * score[what] for score in scores.values()]
        axes.bar(places + offset, heights, 0.4, color=color, label=what)
    axes.set_xticks(places, names, rotation=45, ha="right", fontsize=8)
    axes.set_xlabel("class (files)")
    axes.set_ylabel("precision and recall, %")
    axes.set_ylim(0, 101)
    axes.set_title(_title(figures), fontsize=9)
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    save_figure(figure, path)


def _title(figures: Mapping[str, Any]) -> str:
    low, high = figures["accuracy_interval"]
    empty = sum(score["support"] == 0 for score in figures["by_class"].values())
    missing = f"; {empty} of {len(figures['by_class'])} classes have no files" if empty else ""
    return (
        f"{figures['accuracy']:.1%} of {figures['documents']:,} files right (95 % interval {low:.1%} to {high:.1%})"
        f"{missing}"
    )
