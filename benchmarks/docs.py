"""`bgpt-fast bench docs`: writes docs/performance.md and its charts from the result files in benchmarks/results/."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.charts import as_png, charts
from benchmarks.count_instructions import RESULT as INSTRUCTIONS
from benchmarks.environment import ROOT
from benchmarks.op_cases import CASES, PAPER
from benchmarks.quotes import RESULTS, other_results, suite_results
from benchmarks.report import facts, markdown, table_lines, warnings
from benchmarks.results import Results, digits, duration
from bgpt_fast import BGPTConfig
from bgpt_fast.files import atomic_write
from bgpt_fast.flops import peak_flops_of, training_flops

PAGE = ROOT / "docs" / "performance.md"
_GPU = "NVIDIA H200"
_COPY = 4.3e12
"""Copy bandwidth of an H200: bytes read and written per second."""
_PRODUCT = 790e12
"""FLOP/s of large bfloat16 matrix products on an H200."""
_KINDS = {
    "training": "A training step",
    "generation": "Generation",
    "scoring": "Scoring",
    "cpu states": "The CPU-state machine",
    "data": "Data",
    "checkpoint": "Checkpoints",
    "op": "Ops",
}


def _ratios(results: Results) -> list[str]:
    """Our speed relative to each baseline, for everything but ops."""
    rows = [
        (comparison.what, comparison.dtype, item.implementation, f"{times:.2f} × as fast")
        for comparison in results.comparisons("training", "generation", "scoring", "data")
        for item in comparison.items
        if (times := comparison.times_faster(item)) and not item.implementation.startswith("bgpt_fast")
    ]
    return table_lines(("what", "dtype", "beside", "ours is"), rows)


def _side_by_side(folders: Sequence[Path]) -> list[str]:
    """Our training steps relative to each baseline on every processor; empty for fewer than two processors."""
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for folder in folders:
        for results in suite_results(folder).values():
            threads = str(results.head["threads"])
            for comparison in results.comparisons("training"):
                for item in comparison.items:
                    if times := comparison.times_faster(item):
                        row = (comparison.what, comparison.dtype, threads, item.implementation)
                        cells.setdefault(row, {})[folder.name] = f"{times:.2f} ×"
    names = [folder.name for folder in folders if any(folder.name in row for row in cells.values())]
    if len(names) < 2:
        return []
    rows = [(*row, *(values.get(name, "") for name in names)) for row, values in sorted(cells.items())]
    lines = ["", "## Training on every processor", "", "How many times as fast as the baseline ours is.", ""]
    return lines + table_lines(("what", "dtype", "threads", "beside", *names), rows)


def _suite(path: Path, results: Results, folder: str) -> list[str]:
    """The lines for one result file of the suite."""
    lines = [f"### `{path.name}`", "", *(f"- {text}" for text in warnings(results)), ""]
    lines += [*table_lines(("", ""), facts(results)), "", *_ratios(results), ""]
    lines += [f"![{name}](performance/{folder}/{path.stem}-{name}.png)" for name in charts(results)]
    for kind, title in _KINDS.items():
        if results.comparisons(kind):
            lines += ["", f"#### {title}", "", markdown(results, kind).rstrip()]
    return lines


def _other(path: Path, content: Mapping[str, Any]) -> list[str]:
    """The lines for another result file: the machine, and its rows unchanged."""
    machine = ", ".join(f"{name} {value}" for name, value in content["machine"].items())
    rows = [_flat(row) for row in content["rows"]]
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = table_lines(names, [[row.get(name, "") for name in names] for row in rows])
    return [f"### `{path.name}`", "", machine, "", *table]


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    cells: dict[str, str] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            cells |= _flat(value, f"{prefix}{name} ")
        else:
            cells[prefix + name] = digits(value) if isinstance(value, float) else str(value)
    return cells


def _predictions() -> list[str]:
    """Lower bounds of times on an H200, computed only from counts of work."""
    config = BGPTConfig()
    a_patch = training_flops(config, [config.patch_length] * 64) / (64 * config.patch_length)
    datasheet = peak_flops_of(_GPU, torch.bfloat16)
    assert datasheet is not None
    rows = [
        ("training, the 110 M model, at most", f"{digits(_PRODUCT / a_patch)} patches/s"),
        ("… at 55 % of the datasheet, the target", f"{digits(0.55 * datasheet / a_patch)} patches/s"),
    ]
    for case in CASES:
        for direction, work in zip(("forward", "backward"), case.work(PAPER, 2), strict=True):
            if case.on_gpu and work.bytes:
                least = duration(max(work.bytes / _COPY, work.flops / _PRODUCT))
                rows.append((f"{case.name} {direction}, bfloat16, at least", least))
    return [
        "There is no result of a GPU yet ([GPU status](gpu-status.md)). Predicted from the least work, for one H200",
        f"({_PRODUCT / 1e12:.0f} TFLOP/s in bfloat16 matrix products and {_COPY / 1e12:.1f} TB/s in copies as others "
        f"measured them, {datasheet / 1e12:.0f} TFLOP/s by datasheet):",
        "",
        *table_lines(("what", "prediction"), rows),
    ]


def page() -> str:
    """The text of docs/performance.md."""
    lines = [
        "# Performance",
        "",
        "`bgpt-fast bench docs` writes this page from the files in `benchmarks/results/`; a test compares the two.",
        "Each figure was measured beside its baselines in one run, after a check that both compute the same. Times are",
        "medians, work is the least that must be done, and the peak rates were measured first in the same run",
        "(`benchmarks/README.md`).",
    ]
    has_gpu = False
    folders = sorted(path for path in RESULTS.iterdir() if path.is_dir())
    lines += _side_by_side(folders)
    for folder in folders:
        lines += ["", f"## {folder.name}"]
        for path, results in suite_results(folder).items():
            has_gpu |= results.head["device"] == "cuda"
            lines += ["", *_suite(path, results, folder.name)]
        for path, content in other_results(folder).items():
            lines += ["", *_other(path, content)]
    lines += ["", "## GPU", "", *([] if has_gpu else _predictions())]
    if has_gpu:
        lines.append("The results above are measured; `docs/kernels.md` says what each kernel compiles to.")
    if INSTRUCTIONS.exists():
        counts = json.loads(INSTRUCTIONS.read_text(encoding="utf-8"))
        lines += ["", "## Instructions of the C++ hot paths", ""]
        lines += [f"Counted by {counts['valgrind']}, AVX2, {counts['compiler']} (`bgpt-fast bench instructions`)."]
        rows = [(name, f"{number:,}") for name, number in counts["instructions"].items()]
        lines += ["", *table_lines(("path", "instructions"), rows)]
    return "\n".join(lines) + "\n"


def write() -> list[Path]:
    """Writes the page and its charts; returns their paths."""
    files = {PAGE: page().encode()}
    for folder in (path for path in RESULTS.iterdir() if path.is_dir()):
        for path, results in suite_results(folder).items():
            for name, figure in charts(results).items():
                files[PAGE.parent / "performance" / folder.name / f"{path.stem}-{name}.png"] = as_png(figure)
    for target, data in files.items():
        with atomic_write(target) as file:
            file.write(data)
    return list(files)


def main(words: list[str] | None = None) -> int:
    argparse.ArgumentParser(prog="bgpt-fast bench docs", description=__doc__.splitlines()[0]).parse_args(words)
    for path in write():
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
