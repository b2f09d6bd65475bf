"""The report's charts, by matplotlib."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure
from suite_results import OURS, Comparison, Item, Results, duration, exponent

from bgpt_fast.report.plots import new_figure

_OURS_COLOUR, _PEER_COLOUR, _LINE_COLOUR = "#d1495b", "#8a9ba8", "#30638e"
_MARKS = {"op": "o", "training": "s", "generation": "^", "scoring": "D", "curve": "."}


def as_svg(figure: Figure) -> str:
    """The chart as an <svg> element."""
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "bgpt_fast", "svg.fonttype": "path"}):
        figure.savefig(stream, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def as_png(figure: Figure) -> bytes:
    """The chart as a PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130, bbox_inches="tight", metadata={"Software": None})
    return stream.getvalue()


def charts(results: Results) -> dict[str, Figure]:
    """Every chart that the results have data for, by its file's name."""
    found: dict[str, Figure] = {}
    for dtype in results.dtypes:
        if any(item.info["flops"] for item in results.items if item.info["dtype"] == dtype):
            found[f"roofline-{dtype}"] = roofline(results, dtype)
    for kind, title in (
        ("op", "ops"),
        ("training", "training"),
        ("generation", "generation"),
        ("scoring", "scoring"),
        ("data", "data"),
    ):
        compared = [comparison for comparison in results.comparisons(kind) if len(comparison.items) > 1]
        if compared:
            found[title] = speed_ups(compared)
    if results.curves():
        found["scaling"] = scaling(results.curves())
    phases = [item for item in results.items if item.kind == "phases"]
    if phases:
        found["phases"] = step_phases(phases)
    training = [c for c in results.comparisons("training") if any(item.info["peak_bytes"] for item in c.items)]
    if training:
        found["memory"] = memory(training)
    return found


def roofline(results: Results, dtype: str) -> Figure:
    """Operations a second against operations a byte, under the measured limits."""
    limits = results.head["limits"].get(dtype, {})
    figure, axes = new_figure(8, 4.6)
    items = [item for item in results.items if item.info["dtype"] == dtype and item.info["flops"]]
    xs = [item.info["flops"] / item.info["bytes"] for item in items]
    low, high = min(xs) / 3, max(xs) * 3
    if limits:
        ridge = limits["matmul_flops"] / limits["copy_bytes_per_s"]
        low, high = min(low, ridge / 10), max(high, ridge * 10)
        axes.plot(
            [low, ridge, high],
            [low * limits["copy_bytes_per_s"], limits["matmul_flops"], limits["matmul_flops"]],
            color=_LINE_COLOUR,
            label=f"measured: {limits['matmul_flops'] / 1e12:.3g} TFLOP/s, {limits['copy_bytes_per_s'] / 1e9:.3g} GB/s",
        )
    for kind, mark in _MARKS.items():
        for is_ours in (False, True):
            chosen = [
                (x, item.info["flops"] / item.median)
                for x, item in zip(xs, items, strict=True)
                if item.kind == kind and (item.implementation == OURS) == is_ours
            ]
            if chosen:
                colour = _OURS_COLOUR if is_ours else _PEER_COLOUR
                who = "bgpt_fast" if is_ours else "peers"
                axes.scatter(*zip(*chosen, strict=True), marker=mark, s=26, color=colour, label=f"{kind}, {who}")
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="operations a second", xlim=(low, high))
    axes.set_title(f"Roofline, {dtype}, {results.device_name}", loc="left", fontsize=10)
    axes.legend(fontsize=7, frameon=False, loc="lower right", ncols=2)
    return figure


def speed_ups(comparisons: Sequence[Comparison]) -> Figure:
    """Times of ours and of each peer, one group a comparison, shortest bar best."""
    rows = [(comparison, item) for comparison in comparisons for item in comparison.items]
    figure, axes = new_figure(8, 0.22 * len(rows) + 0.13 * len(comparisons) + 0.6)
    place, ticks, labels = 0.0, [], []
    for comparison in comparisons:
        ours = comparison.ours or comparison.items[0]
        for item in comparison.items:
            times = comparison.times_faster(item)
            length = 1.0 if times is None else times
            axes.barh(place, length, height=0.8, color=_OURS_COLOUR if item is ours else _PEER_COLOUR)
            note = duration(item.median) if times is None else f"{duration(item.median)}, {times:.2f} × ours"
            axes.text(length * 1.03, place, note, va="center", fontsize=7)
            ticks.append(place)
            title = f"{comparison.what}, {comparison.dtype}: " if item is comparison.items[0] else ""
            labels.append(f"{title}{item.implementation}")
            place -= 1
        place -= 0.6
    axes.axvline(1, color=_OURS_COLOUR, linewidth=0.6, zorder=0)
    axes.set_yticks(ticks, labels, fontsize=7)
    longest = max((comparison.times_faster(item) or 1.0) for comparison, item in rows)
    shortest = min((comparison.times_faster(item) or 1.0) for comparison, item in rows)
    axes.set(xscale="log", xlim=(min(0.5, shortest / 2), longest * 8), xlabel="time for the same work, ours = 1")
    axes.margins(y=0.01)
    return figure


def scaling(curves: dict[str, list[Item]]) -> Figure:
    """Every curve with its fitted power."""
    columns = min(2, len(curves))
    lines = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(4 * columns, 2.8 * lines), dpi=120, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat[len(curves) :]:
        axes.set_visible(False)
    for axes, (what, items) in zip(grid.flat, curves.items(), strict=False):
        points = [(float(item.info["value"]), item.median) for item in items]
        xs, ys = zip(*points, strict=True)
        power, factor = exponent(points)
        axes.errorbar(
            xs,
            ys,
            yerr=[
                [item.median - item.info["p20"] for item in items],
                [item.info["p80"] - item.median for item in items],
            ],
            fmt="o",
            color=_OURS_COLOUR,
            markersize=4,
        )
        axes.plot(xs, [factor * x**power for x in xs], color=_LINE_COLOUR, linewidth=1)
        axes.set(xscale="log", yscale="log", xlabel=items[0].info["against"], ylabel="seconds")
        axes.set_xticks(xs, [f"{x:g}" for x in xs], minor=False)
        axes.minorticks_off()
        axes.set_title(f"{what.split(' against')[0]}: time ∝ {items[0].info['against']}$^{{{power:.2f}}}$", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def step_phases(items: Sequence[Item]) -> Figure:
    """A training step's time by phase, a bar for each dtype."""
    figure, axes = new_figure(8, 0.6 * len(items) + 0.9)
    colours = matplotlib.colormaps["tab10"].colors
    for place, item in enumerate(items):
        left, total = 0.0, sum(item.info["phases"].values())
        for colour, (name, seconds) in zip(colours, item.info["phases"].items(), strict=False):
            axes.barh(place, seconds, left=left, height=0.6, color=colour, label=name if place == 0 else None)
            if seconds > 0.08 * total:
                axes.text(
                    left + seconds / 2, place, f"{100 * seconds / total:.0f} %", ha="center", va="center", fontsize=8
                )
            left += seconds
    axes.set_yticks(range(len(items)), [item.info["dtype"] for item in items])
    axes.set_xlabel("seconds")
    axes.legend(fontsize=8, frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def memory(comparisons: Sequence[Comparison]) -> Figure:
    """The most that tensors took in a training step."""
    rows = [(c, item) for c in comparisons for item in c.items if item.info["peak_bytes"]]
    figure, axes = new_figure(8, 0.26 * len(rows) + 0.8)
    for place, (_, item) in enumerate(rows):
        gigabytes = item.info["peak_bytes"] / 1e9
        axes.barh(-place, gigabytes, color=_OURS_COLOUR if item.implementation == OURS else _PEER_COLOUR)
        axes.text(gigabytes, -place, f" {gigabytes:.2f}", va="center", fontsize=7)
    labels = [f"{c.what.removeprefix('training step, ')}, {c.dtype}: {item.implementation}" for c, item in rows]
    axes.set_yticks([-place for place in range(len(rows))], labels, fontsize=7)
    axes.set_xlabel("GB of tensors at the most, beyond the model's own")
    return figure
