"""Plots of an evaluation on files, as PNG files: model against compressors, by position, by decoder, by file."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bgpt_fast.report.plots import (
    COLORS,
    new_figure,
    plain_log_ticks,
    save_figure,
    share_text,
    short_number,
    shown_text,
)

_MOST_EXTENSIONS = 20


def evaluation_plots(figures: Mapping[str, Any], folder: str | os.PathLike[str]) -> list[Path]:
    """Draws all plots of an evaluation.

    Args:
        figures: `FileReport.to_dict()`, including the rows of the files.
        folder: created if missing; existing files are replaced.

    Returns:
        The paths of baselines.png, patch_positions.png, byte_positions.png, decoders.png and files.png, except those
        without data.

    Raises:
        ImportError: matplotlib is missing.
    """
    output = Path(folder)
    paths = []
    for name, draw in (
        ("baselines.png", baselines),
        ("patch_positions.png", patch_positions),
        ("byte_positions.png", byte_positions),
        ("decoders.png", decoders),
        ("files.png", files),
    ):
        if draw(figures, output / name):
            paths.append(output / name)
    return paths


def baselines(figures: Mapping[str, Any], path: Path) -> bool:
    """Draws bits per byte of the model with its interval, of each extension, and of the compressors."""
    if figures["bits_per_byte"] is None:
        return False
    extensions = {
        shown_text(f".{name}") if name else "no extension": scores["bits_per_byte"]
        for name, scores in figures["by_extension"].items()
        if scores["bits_per_byte"] is not None
    }
    bars = [("model", figures["bits_per_byte"], COLORS[0])]
    if len(extensions) > 1:
        bars += [(name, value, COLORS[2]) for name, value in list(extensions.items())[:_MOST_EXTENSIONS]]
    bars += [(name.replace("_", ", "), value, COLORS[1]) for name, value in figures["baselines_bits_per_byte"].items()]
    figure, axes = new_figure(7, 1.5 + 0.3 * len(bars))
    names, values, colors = zip(*bars, strict=True)
    places = np.arange(len(bars))[::-1]
    axes.barh(places, values, color=colors)
    interval = figures["intervals"]["bits_per_byte"]
    # The model's number stands behind the end of its interval, if there is one.
    ends = [values[0] if interval is None else max(values[0], interval[1]), *values[1:]]
    for place, value, end in zip(places, values, ends, strict=True):
        text = short_number(value)
        axes.annotate(text, (end, place), (6, 0), textcoords="offset points", va="center", fontsize=8)
    if interval is not None:
        axes.plot(interval, [places[0]] * 2, "|-", color="black", linewidth=1)
    axes.set_yticks(places, names)
    axes.set_xlabel("bits per byte")
    axes.margins(x=0.12)
    line = "; the line is the model's interval" if interval is not None else ""
    axes.set_title(f"{figures['files']:,} files, {figures['bytes']:,} bytes{line}", fontsize=9)
    save_figure(figure, path)
    return True


def patch_positions(figures: Mapping[str, Any], path: Path) -> bool:
    """Draws bits per byte and wrong bytes over the data patch's position in its file: the effect of context."""
    rows = figures["by_patch_position"]
    known = [(place, row) for place, row in enumerate(rows, 1) if row["bits_per_byte"] is not None]
    if not known:
        return False
    places = [place for place, _ in known]
    figure, axes = new_figure(8, 4)
    style = "o-" if len(places) == 1 else "-"
    axes.plot(places, [row["bits_per_byte"] for _, row in known], style, color=COLORS[0], label="bits per byte")
    axes.set_xlabel("data patch of the file, from 1")
    axes.set_ylabel("bits per byte")
    axes.set_ylim(bottom=0)
    right = axes.twinx()
    wrong = [100 * (1 - row["accuracy"]) for _, row in known]
    right.plot(places, wrong, style, color=COLORS[1], label="bytes wrong, %")
    right.set_ylabel("bytes wrong, %")
    right.set_ylim(0, min(1.1 * max(*wrong, 0.01), 101))
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    save_figure(figure, path)
    return True


def byte_positions(figures: Mapping[str, Any], path: Path) -> bool:
    """Draws bits per byte by position in the patch; the first byte depends only on the patch-level decoder."""
    rows = figures["by_byte_position"]
    values = [row["bits_per_byte"] for row in rows]
    if all(value is None for value in values):
        return False
    figure, axes = new_figure(max(5.0, 1.5 + 0.35 * len(rows)), 4)
    heights = [math.nan if value is None else value for value in values]
    colors = [COLORS[1], *[COLORS[0]] * (len(rows) - 1)]
    axes.bar(range(1, len(rows) + 1), heights, color=colors)
    axes.set_xticks(range(1, len(rows) + 1))
    axes.set_xlabel("byte of the patch\n(1: from the patch-level decoder's feature alone)")
    axes.set_ylabel("bits per byte")
    save_figure(figure, path)
    return True


def decoders(figures: Mapping[str, Any], path: Path) -> bool:
    """Draws the shares of data patches that are right, wrong at the first byte, and wrong at a later one."""
    shares = figures["decoders"]
    if not shares["patches"]:
        return False
    kinds = (
        ("right", "right_share", COLORS[2]),
        ("wrong from the first byte, patch level", "patch_level_error_share", COLORS[1]),
        ("wrong after a right first byte, byte level", "byte_level_error_share", COLORS[0]),
    )
    figure, axes = new_figure(8, 2.2)
    start = 0.0
    for label, name, color in kinds:
        width = 100 * shares[name]
        text = share_text(round(shares[name] * shares["patches"]), shares["patches"])
        axes.barh([0], [width], left=start, color=color, label=f"{label}: {text}")
        start += width
    axes.set_xlim(0, 100)
    axes.set_yticks([])
    axes.set_xlabel(f"of {shares['patches']:,} data patches, %")
    figure.legend(frameon=False, loc="outside lower center", fontsize=8)
    save_figure(figure, path)
    return True


def files(figures: Mapping[str, Any], path: Path) -> bool:
    """Draws bits per byte of each file over its size."""
    rows = [row for row in figures["by_file"] if row["bits_per_byte"] is not None]
    if not rows:
        return False
    figure, axes = new_figure(7, 4)
    sizes, values = [row["bytes"] for row in rows], [row["bits_per_byte"] for row in rows]
    axes.scatter(sizes, values, s=8, color=COLORS[0], alpha=0.5, linewidths=0, label="a file")
    axes.axhline(figures["bits_per_byte"], color=COLORS[1], linewidth=1, label="all together")
    axes.set_xscale("log")
    plain_log_ticks(axes.xaxis)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("bytes that the model saw")
    axes.set_ylabel("bits per byte")
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    save_figure(figure, path)
    return True
