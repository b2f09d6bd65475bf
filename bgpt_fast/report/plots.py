"""Plots as PNG files: a training curve, accuracies as bars, and a map of where a predicted trace is wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bgpt_fast.files import atomic_write
from bgpt_fast.terminal import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Path = str | os.PathLike[str]

COLORS = ("#2a6f97", "#e07a5f", "#81b29a", "#6d597a")
_RIGHT, _WRONG, _MISSING = "#d8e2dc", "#c1121f", "#3d405b"


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Returns a figure of a size in inches, with axes in the common style."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install '.[plot]' in the repository") from error
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def shown_text(text: str) -> str:
    """Returns a text that matplotlib can draw: without lone surrogates, control characters and formulas."""
    return printable(text).replace("$", r"\$")


def plain_log_ticks(axis: Axis) -> None:
    """Labels a logarithmic axis with plain numbers instead of powers of ten, as many as fit; call it after drawing."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,), numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def share_text(count: int, total: int) -> str:
    """A share as a percentage with its counts, such as "0.03 % (3 of 10,000)"; only 0 is written as 0."""
    share = 100 * count / max(total, 1)
    return f"{short_number(share)} % ({count:,} of {total:,})"


def short_number(value: float) -> str:
    """A number with two decimals, or two significant digits if it is below 0.1, so that only 0 is written as 0."""
    if value == 0:
        return "0"
    return f"{value:,.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as a PNG file, complete or absent."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def training_curve(log_path: Path, path: Path, title: str = "") -> None:
    """Draws a run's loss, raw and smoothed, and its evaluations over the minutes of training.

    Args:
        log_path: a run's log.jsonl.
        path: the PNG to write.

    Raises:
        ValueError: the log holds no training step.
    """
    with open(log_path, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    steps = [line for line in lines if line["kind"] == "train"]
    if not steps:
        raise ValueError(f"{os.fspath(log_path)}: expected at least one training step, got none")
    minutes = np.array([line["seconds"] / 60 for line in steps])
    loss = np.array([line["loss"] for line in steps])
    figure, axes = new_figure(8, 4.5)
    axes.plot(minutes, loss, color=COLORS[0], alpha=0.25, linewidth=0.8, label="loss")
    axes.plot(minutes, _smooth(loss), color=COLORS[0], linewidth=1.6, label="loss, smoothed")
    if (loss > 0).any():
        axes.set_yscale("log")
        plain_log_ticks(axes.yaxis)
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("loss, nats per document" if "accuracy" in steps[0] else "loss, nats per byte position")
    axes.set_title(shown_text(title))
    evaluations = [line for line in lines if line["kind"] == "eval"]
    shares = {"state_byte_accuracy": "state bytes right, %", "accuracy": "documents right, %"}
    metric = next((name for name in shares if evaluations and name in evaluations[0]), None)
    when = [line["seconds"] / 60 for line in evaluations]
    if evaluations and metric is None and "loss" in evaluations[0]:
        axes.plot(when, [line["loss"] for line in evaluations], "o-", color=COLORS[1], label="held-out loss")
    handles, labels = axes.get_legend_handles_labels()
    if metric is not None:
        right = axes.twinx()
        right.plot(when, [100 * line[metric] for line in evaluations], "o-", color=COLORS[1], label=shares[metric])
        right.set_ylabel(shares[metric])
        right.set_ylim(0, 101)
        more = right.get_legend_handles_labels()
        handles, labels = handles + more[0], labels + more[1]
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=len(labels))
    save_figure(figure, path)


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the mean of the values around each, as many before it as after it, so that it does not lag behind them.

    The window has an eighth of the values, at most 101. At the start, where a loss falls fast, it is smaller; at the
    end it has the values that there are.
    """
    sums = np.concatenate([[0.0], values.cumsum()])
    places = np.arange(len(values))
    half = np.minimum(places, min(len(values) // 16, 50))
    stops = np.minimum(places + half + 1, len(values))
    return (sums[stops] - sums[places - half]) / (stops - places + half)


def accuracy_bars(accuracies: Mapping[str, Mapping[str, float]], path: Path, title: str = "") -> None:
    """Draws accuracies as grouped bars.

    Args:
        accuracies: for each model, the accuracy (0…1) of each instruction.
        path: the PNG to write.
    """
    names = list(dict.fromkeys(name for shares in accuracies.values() for name in shares))
    figure, axes = new_figure(max(8.0, 0.5 * len(names)), 4.5)
    width = 0.8 / max(len(accuracies), 1)
    places = np.arange(len(names))
    for index, (model, shares) in enumerate(accuracies.items()):
        heights = [100 * shares.get(name, np.nan) for name in names]
        offset = (index - (len(accuracies) - 1) / 2) * width
        axes.bar(places + offset, heights, width, label=shown_text(model), color=COLORS[index % len(COLORS)])
    axes.set_xticks(places, names, rotation=45, ha="right")
    axes.set_ylim(0, 101)
    axes.set_ylabel("right, %")
    axes.set_title(shown_text(title))
    figure.legend(frameon=False, loc="outside lower center", ncols=max(len(accuracies), 1))
    save_figure(figure, path)


def difference_map(
    predicted: NDArray[np.uint8], truth: NDArray[np.uint8], columns: Sequence[str], path: Path, title: str = ""
) -> None:
    """Draws which bytes of a predicted trace are right: a row for each step from 1, a column for each state byte.

    Args:
        predicted: uint8 [N', C]; missing and surplus steps are drawn as missing.
        truth: uint8 [N, C].
        columns: C names.
        path: the PNG to write.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    steps = max(len(predicted), len(truth), 1)
    common = min(len(predicted), len(truth))
    state = np.full((steps, len(columns)), 2)
    state[:common] = predicted[:common] != truth[:common]
    figure, axes = new_figure(2 + 0.45 * len(columns), 1.5 + 0.28 * steps)
    colors = ListedColormap([_RIGHT, _WRONG, _MISSING])
    axes.imshow(state, cmap=colors, vmin=0, vmax=2, aspect="auto", extent=(-0.5, len(columns) - 0.5, steps + 0.5, 0.5))
    if steps <= 40:
        for row, column in np.ndindex(state.shape):
            if row < common:
                text = f"{predicted[row, column]}"
                if state[row, column]:
                    text += f"≠{truth[row, column]}"
                color = "white" if state[row, column] else "#333333"
                axes.text(column, row + 1, text, ha="center", va="center", fontsize=6, color=color)
    axes.set_xticks(range(len(columns)), columns, fontsize=8)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("byte of the state")
    axes.set_ylabel("step")
    axes.set_title(shown_text(title), fontsize=9)
    kinds = ((_RIGHT, "right"), (_WRONG, "wrong: predicted≠true"), (_MISSING, "missing or surplus"))
    handles = [Patch(color=color, label=label) for color, label in kinds]
    figure.legend(handles=handles, frameon=False, loc="outside lower center", ncols=3, fontsize=7)
    save_figure(figure, path)
