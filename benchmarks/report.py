"""The report of a run: one self-contained page, its charts as PNGs, and its tables in Markdown.

bgpt-fast bench report bench.json
"""

from __future__ import annotations

import argparse
import html
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.charts import as_png, as_svg, charts
from benchmarks.names import RELEASED
from benchmarks.results import Comparison, Results, digits, duration, rate, read, share_of_peak, size, work_rate
from bgpt_fast.files import atomic_write

_COLUMNS = ("what", "dtype", "implementation", "time", "ours is", "p20 … p80", "rate", "work", "of peak", "peak memory")
_TITLES = {
    "roofline": "Roofline",
    "training": "Training beside its baselines",
    "phases": "A training step by phase",
    "memory": "Memory of a training step",
    "generation": "Generation beside its baselines",
    "scoring": "Scoring beside its baselines",
    "ops": "Ops beside their baselines",
    "data": "Data beside plain Python",
    "scaling": "How time grows",
}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2b36; background: #f5f6f7; margin: 0 }
main { max-width: 1340px; margin: 0 auto; padding: 1.5rem }
section { background: #fff; border: 1px solid #dfe3e6; border-radius: 8px; padding: 1rem 1.3rem; margin: 1rem 0 }
h1 { margin: .2rem 0 } h2 { margin: .2rem 0 .6rem; font-size: 1.15rem }
svg { width: 100%; max-width: 860px; height: auto }
.cards { display: flex; flex-wrap: wrap; gap: .8rem }
.card { background: #fff; border: 1px solid #dfe3e6; border-radius: 8px; padding: .6rem 1rem }
.card b { display: block; font-size: 1.35rem } .card span { color: #5b6b77; font-size: .85rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .8rem; width: 100% }
th, td { text-align: right; padding: .2rem .35rem; border-bottom: 1px solid #e8ebed; white-space: nowrap }
th:first-child, td:first-child, td:nth-child(3), th:nth-child(3) { text-align: left }
tr.ours td { background: #fbeef0 } .note { color: #5b6b77; font-size: .88rem }
code { background: #eef0f2; padding: 0 .25rem; border-radius: 3px; overflow-wrap: anywhere }
"""


def rows_of(comparison: Comparison) -> list[list[str]]:
    """A comparison's table rows, with cells in the order of the columns."""
    rows = []
    for item in comparison.items:
        times, info = comparison.times_faster(item), item.info
        rows.append(
            [
                comparison.what,
                comparison.dtype,
                item.implementation,
                duration(item.median),
                f"{times:.2f} × as fast" if times else "",
                f"{duration(info['p20'])} … {duration(info['p80'])}",
                rate(item),
                work_rate(item),
                share_of_peak(item),
                size(info["peak_bytes"]) if info["peak_bytes"] else "",
            ]
        )
    return rows


def facts(results: Results) -> list[tuple[str, str]]:
    """Where and how the results were measured, as (name, value) pairs."""
    head = results.head
    commit = head["commit"]
    changed = " with changes" if commit.get("changed") else ""
    packages = ", ".join(f"{name} {version}" for name, version in head["machine"]["packages"].items() if version)
    model = head["machine"].get("processor_model")
    rows = [
        ("device", results.device_name),
        *([("processor", f"{model}: {', '.join(head['machine']['instructions'])}")] if model else []),
        ("commit", f"{commit['id'] or 'sources ' + commit['sources_sha256']}{changed}"),
        ("command", " ".join(head["command"])),
        ("versions", f"Python {head['python']}, {packages}"),
        ("load before", f"{head['load_at_start']:.2f} processes on {head['machine']['cores']} cores"),
    ]
    for dtype, peak in head["peak"].items():
        product, copy = digits(peak["matmul_flops"] / 1e9), digits(peak["copy_bytes_per_s"] / 1e9)
        rows.append((f"peak, {dtype}", f"matrix product {product} GFLOP/s, copy {copy} GB/s"))
    states = head["baselines"].items()
    absent = [f"{name} ({state.removeprefix('missing: ')})" for name, state in states if state.startswith("missing")]
    rows.append(("baselines", ", ".join(name for name, state in states if not state.startswith("missing"))))
    rows.append(("missing baselines", "; ".join(absent) or "none"))
    return rows


def warnings(results: Results) -> list[str]:
    """Reasons why the figures may be unreliable."""
    lines = []
    if results.head["size"] == "tiny":
        lines.append("Tiny sizes: this run tried the suite itself, and its figures mean nothing.")
    if results.head.get("clock") == "thread":
        lines.append(
            "The machine was shared: times are CPU time of the calling thread, which is the elapsed time of a machine "
            "that does nothing else if the work is shared evenly among the threads."
        )
    elif results.head["load_at_start"] > 0.5:
        lines.append("The machine was busy when the run began: compare figures within this run only.")
    if results.head["device"] == "cpu":
        lines.append("On a CPU, quote ratios, not times.")
    lines.append(
        "A peak rate is the best of a large matrix product or of a copy from memory, measured in this run; data that "
        "is read again may come from a cache, and then more than 100 % of the bandwidth is possible."
    )
    return lines


def page(results: Results) -> str:
    """The HTML page, which loads nothing from elsewhere."""
    figures = charts(results)
    parts = [f"<h1>bgpt_fast on {html.escape(results.device_name)}</h1>"]
    parts += [f'<p class="note">{html.escape(text)}</p>' for text in warnings(results)]
    parts.append(f'<div class="cards">{"".join(_cards(results))}</div>')
    for name, title in _TITLES.items():
        body = "".join(as_svg(figure) for key, figure in figures.items() if key.split("-")[0] == name)
        if body:
            parts.append(f'<section id="{name}"><h2>{title}</h2>{body}</section>')
    parts.append(f'<section id="figures"><h2>All figures</h2>{_table(results)}</section>')
    listed = "".join(
        f"<tr><td>{html.escape(name)}</td><td style='text-align:left;white-space:normal'>"
        f"<code>{html.escape(value)}</code></td></tr>"
        for name, value in facts(results)
    )
    parts.append(f'<section id="facts"><h2>How it was measured</h2><table>{listed}</table></section>')
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>bgpt_fast on {html.escape(results.device_name)}</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _cards(results: Results) -> list[str]:
    """The speed-ups over the released method."""
    cards = []
    for comparison in results.comparisons("training", "generation", "scoring"):
        for item in comparison.items:
            times = comparison.times_faster(item)
            if item.implementation == RELEASED and times:
                what = f"{comparison.what}, {comparison.dtype}, against the released method"
                cards.append(f'<div class="card"><b>{times:.3g} ×</b><span>{html.escape(what)}</span></div>')
    return cards


def _table(results: Results) -> str:
    head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    body = []
    for comparison in results.comparisons():
        for item, row in zip(comparison.items, rows_of(comparison), strict=True):
            cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
            body.append(f"<tr{' class=ours' if item is comparison.ours else ''}>{cells}</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def markdown(results: Results, *kinds: str) -> str:
    """The table in Markdown, for these kinds of items or, if none are given, for all but the curves."""
    rows = [row for comparison in results.comparisons(*kinds) for row in rows_of(comparison)]
    return "\n".join(table_lines(_COLUMNS, rows)) + "\n"


def table_lines(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a Markdown table."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], f"|{' --- |' * len(head)}", *lines[1:]]


def write(results: Results, folder: Path) -> list[Path]:
    """Writes report.html, the charts and tables.md into a folder; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"report.html": page(results).encode(), "tables.md": markdown(results).encode()}
    files |= {f"{name}.png": as_png(figure) for name, figure in charts(results).items()}
    for name, data in files.items():
        with atomic_write(folder / name) as file:
            file.write(data)
    return [folder / name for name in files]


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bgpt-fast bench report", description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path, help="what `bgpt-fast bench --json` wrote")
    parser.add_argument("--output", type=Path, help="the folder (default: the JSON's name and _report, beside it)")
    arguments = parser.parse_args(words)
    folder = arguments.output or arguments.json.with_name(f"{arguments.json.stem}_report")
    try:
        paths = write(read(arguments.json), folder)
    except (OSError, ValueError) as error:
        print(f"bgpt-fast bench report: {error}", file=sys.stderr)
        return 1
    print(f"{paths[0]}, with {len(paths) - 1} charts and tables beside it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
