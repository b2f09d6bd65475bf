"""The report's charts, drawn with matplotlib."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.names import OURS
from benchmarks.results import Comparison, Item, Results, duration, exponent
from bgpt_fast.report.plots import new_figure

_OURS_COLOUR, _BASELINE_COLOUR, _LINE_COLOUR = "#d1495b", "#8a9ba8", "#30638e"
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
    """Every chart that the results have data for, by file name."""
    figures: dict[str, Figure] = {}
    for dtype in results.dtypes:
        items = [item for item in results.items if item.info["dtype"] == dtype and item.info["flops"]]
        if items:
            figures[f"roofline-{dtype}"] = roofline(results, dtype, items)
    for kind in ("op", "training", "generation", "scoring", "data"):
        compared = [comparison for comparison in results.comparisons(kind) if len(comparison.items) > 1]
        if compared:
            figures["ops" if kind == "op" else kind] = speed_ups(compared)
    if results.curves():
        figures["scaling"] = scaling(results.curves())
    phases = [item for item in results.items if item.kind == "phases"]
    if phases:
        figures["phases"] = step_phases(phases)
    measured = [item for c in results.comparisons("training") for item in c.items if item.info["peak_bytes"]]
    if measured:
        figures["memory"] = memory(measured)
    return figures


def _colour(item: Item) -> str:
    return _OURS_COLOUR if item.implementation == OURS else _BASELINE_COLOUR


def roofline(results: Results, dtype: str, items: Sequence[Item]) -> Figure:
    """FLOP/s against FLOP per byte, under the measured peak rates."""
    peak = results.head["peak"].get(dtype)
    figure, axes = new_figure(8, 4.6)
    intensities = [item.info["flops"] / item.info["bytes"] for item in items]
    low, high = min(intensities) / 3, max(intensities) * 3
    if peak:
        flops, bandwidth = peak["matmul_flops"], peak["copy_bytes_per_s"]
        ridge = flops / bandwidth
        low, high = min(low, ridge / 10), max(high, ridge * 10)
        label = f"measured: {flops / 1e12:.3g} TFLOP/s, {bandwidth / 1e9:.3g} GB/s"
        axes.plot([low, ridge, high], [low * bandwidth, flops, flops], color=_LINE_COLOUR, label=label)
    for kind, mark in _MARKS.items():
        for colour, owner in ((_BASELINE_COLOUR, "baselines"), (_OURS_COLOUR, "bgpt_fast")):
            points = [
                (x, item.info["flops"] / item.median)
                for x, item in zip(intensities, items, strict=True)
                if item.kind == kind and _colour(item) == colour
            ]
            if points:
                axes.scatter(*zip(*points, strict=True), marker=mark, s=26, color=colour, label=f"{kind}, {owner}")
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="operations a second", xlim=(low, high))
    axes.set_title(f"Roofline, {dtype}, {results.device_name}", loc="left", fontsize=10)
    axes.legend(fontsize=7, frameon=False, loc="lower right", ncols=2)
    return figure


def speed_ups(comparisons: Sequence[Comparison]) -> Figure:
    """Times of our implementation and of each baseline, one group per comparison; the shortest bar is the best."""
    num_rows = sum(len(comparison.items) for comparison in comparisons)
    figure, axes = new_figure(8, 0.22 * num_rows + 0.13 * len(comparisons) + 0.6)
    y, ticks, labels, lengths = 0.0, [], [], []
    for comparison in comparisons:
        ours = comparison.ours or comparison.items[0]
        for item in comparison.items:
            times = comparison.times_faster(item)
            lengths.append(1.0 if times is None else times)
            axes.barh(y, lengths[-1], height=0.8, color=_OURS_COLOUR if item is ours else _BASELINE_COLOUR)
            note = duration(item.median) if times is None else f"{duration(item.median)}, {times:.2f} × ours"
            axes.text(lengths[-1] * 1.03, y, note, va="center", fontsize=7)
            ticks.append(y)
            title = f"{comparison.what}, {comparison.dtype}: " if item is comparison.items[0] else ""
            labels.append(f"{title}{item.implementation}")
            y -= 1
        y -= 0.6
    axes.axvline(1, color=_OURS_COLOUR, linewidth=0.6, zorder=0)
    axes.set_yticks(ticks, labels, fontsize=7)
    limits = (min(0.5, min(lengths) / 2), max(lengths) * 8)
    axes.set(xscale="log", xlim=limits, xlabel="time for the same work, ours = 1")
    axes.margins(y=0.01)
    return figure


def scaling(curves: dict[str, list[Item]]) -> Figure:
    """Every scaling curve with its fitted power law."""
    columns = min(2, len(curves))
    lines = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(4 * columns, 2.8 * lines), dpi=120, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat[len(curves) :]:
        axes.set_visible(False)
    for axes, (what, items) in zip(grid.flat, curves.items(), strict=False):
        _curve(axes, what, items)
    return figure


def _curve(axes: Axes, what: str, items: Sequence[Item]) -> None:
    points = [(float(item.info["value"]), item.median) for item in items]
    xs, ys = zip(*points, strict=True)
    power, factor = exponent(points)
    spread = [[item.median - item.info["p20"] for item in items], [item.info["p80"] - item.median for item in items]]
    axes.errorbar(xs, ys, yerr=spread, fmt="o", color=_OURS_COLOUR, markersize=4)
    axes.plot(xs, [factor * x**power for x in xs], color=_LINE_COLOUR, linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel=items[0].info["against"], ylabel="seconds")
    axes.set_xticks(xs, [f"{x:g}" for x in xs], minor=False)
    axes.minorticks_off()
    axes.set_title(f"{what.split(' against')[0]}: time ∝ {items[0].info['against']}$^{{{power:.2f}}}$", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def step_phases(items: Sequence[Item]) -> Figure:
    """A training step's time by phase, one bar per dtype."""
    figure, axes = new_figure(8, 0.6 * len(items) + 0.9)
    colours = matplotlib.colormaps["tab10"].colors
    for y, item in enumerate(items):
        begin, total = 0.0, sum(item.info["phases"].values())
        for colour, (name, seconds) in zip(colours, item.info["phases"].items(), strict=False):
            axes.barh(y, seconds, left=begin, height=0.6, color=colour, label=name if y == 0 else None)
            if seconds > 0.08 * total:
                share = f"{100 * seconds / total:.0f} %"
                axes.text(begin + seconds / 2, y, share, ha="center", va="center", fontsize=8)
            begin += seconds
    axes.set_yticks(range(len(items)), [item.info["dtype"] for item in items])
    axes.set_xlabel("seconds")
    axes.legend(fontsize=8, frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def memory(items: Sequence[Item]) -> Figure:
    """The peak memory of tensors in a training step."""
    figure, axes = new_figure(8, 0.26 * len(items) + 0.8)
    for row, item in enumerate(items):
        gigabytes = item.info["peak_bytes"] / 1e9
        axes.barh(-row, gigabytes, color=_colour(item))
        axes.text(gigabytes, -row, f" {gigabytes:.2f}", va="center", fontsize=7)
    names = [(item.what.removeprefix("training step, "), item.info["dtype"], item.implementation) for item in items]
    axes.set_yticks([-row for row in range(len(items))], [f"{what}, {dtype}: {who}" for what, dtype, who in names])
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("peak memory of tensors in GB, beyond the model's own")
    return figure
