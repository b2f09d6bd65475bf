"""Writes docs/performance.md and its charts from the receipts in benchmarks/results/, and from nothing else.

python benchmarks/suite_docs.py        # or: bgpt-fast bench docs
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from op_cases import CASES, PAPER
from suite_charts import as_png, charts
from suite_instructions import RECEIPT as INSTRUCTIONS
from suite_receipts import RESULTS, scripts, suites
from suite_report import facts, markdown, warnings
from suite_results import Results, digits, duration

from bgpt_fast import BGPTConfig
from bgpt_fast.files import atomic_write
from bgpt_fast.flops import peak_flops_of, training_flops

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
_GPU = "NVIDIA H200"
_COPY = 4.3e12
"""Bytes read and written a second that copies reach on an H200."""
_PRODUCT = 790e12
"""Operations a second that large bfloat16 matrix products reach on an H200."""
_KINDS = {
    "training": "A training step",
    "generation": "Generation",
    "scoring": "Scoring",
    "cpu states": "The CPU-state machine",
    "data": "Data",
    "checkpoint": "Checkpoints",
    "op": "Ops",
}
_NOT_YET = "not yet run on a GPU"


def _ratios(results: Results) -> list[str]:
    """Ours beside each peer, whole-engine figures first."""
    lines = ["| what | dtype | beside | ours is |", "| --- | --- | --- | --- |"]
    for comparison in results.comparisons("training", "generation", "scoring", "data"):
        for item in comparison.items:
            times = comparison.times_faster(item)
            if times and not item.implementation.startswith("bgpt_fast"):
                lines.append(
                    f"| {comparison.what} | {comparison.dtype} | {item.implementation} | {times:.2f} × as fast |"
                )
    return lines


def _suite(path: Path, results: Results, folder: str) -> list[str]:
    """One receipt of the suite."""
    lines = [f"### `{path.name}`", "", *(f"- {text}" for text in warnings(results)), ""]
    lines += ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in facts(results)), ""]
    lines += [*_ratios(results), ""]
    lines += [f"![{name}](performance/{folder}/{path.stem}-{name}.png)" for name in _chart_names(results)]
    for kind, title in _KINDS.items():
        if results.comparisons(kind):
            lines += ["", f"#### {title}", "", markdown(results, kind).rstrip()]
    return lines


def _chart_names(results: Results) -> list[str]:
    return list(charts(results))


def _script(path: Path, whole: Mapping[str, Any]) -> list[str]:
    """A receipt of a script: the machine, and its rows as they are."""
    machine = whole.get("machine", {})
    lines = [f"### `{path.name}`", "", ", ".join(f"{name} {value}" for name, value in machine.items()), ""]
    rows = whole.get("rows", whole.get("instances_per_second", {}))
    if isinstance(rows, Mapping):
        return [*lines, "| what | a second |", "| --- | --- |", *(f"| {k} | {digits(v)} |" for k, v in rows.items())]
    flat = [_flat(row) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    lines += [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    return [*lines, *(f"| {' | '.join(row.get(name, '') for name in names)} |" for row in flat)]


def _flat(row: Mapping[str, Any], before: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{name} ")
        elif isinstance(value, float):
            found[before + name] = digits(value)
        else:
            found[before + name] = str(value)
    return found


def _predictions() -> list[str]:
    """What an H200 should need, by counting alone."""
    config = BGPTConfig()
    a_patch = training_flops(config, [config.patch_length] * 64) / (64 * config.patch_length)
    datasheet = peak_flops_of(_GPU, torch.bfloat16)
    assert datasheet is not None
    lines = [
        f"No receipt from a GPU is here: **{_NOT_YET}**. By counting, for one H200 ({_PRODUCT / 1e12:.0f} TFLOP/s in",
        f"bfloat16 matrix products and {_COPY / 1e12:.1f} TB/s in copies as others measured them, "
        f"{datasheet / 1e12:.0f} TFLOP/s by datasheet):",
        "",
        "| what | prediction | measured |",
        "| --- | --- | --- |",
        f"| training, the 110 M model, ceiling | {digits(_PRODUCT / a_patch)} patches/s | {_NOT_YET} |",
        f"| … at 55 % of the datasheet, the least that is accepted | {digits(0.55 * datasheet / a_patch)} patches/s "
        f"| {_NOT_YET} |",
    ]
    for case in CASES:
        if not case.on_gpu:
            continue
        for direction, work in zip(("forward", "backward"), case.work(PAPER, 2), strict=True):
            if work.bytes:
                floor = max(work.bytes / _COPY, work.flops / _PRODUCT)
                lines.append(f"| {case.name} {direction}, bfloat16, at least | {duration(floor)} | {_NOT_YET} |")
    return lines


def page() -> str:
    """The whole page."""
    lines = [
        "# Performance",
        "",
        "Written by `bgpt-fast bench docs` from the receipts in `benchmarks/results/`; a test holds the two together.",
        "Each figure was measured beside its peers in one run, after both were seen to compute the same. Times are",
        "medians, work is the least that must be done, and the limits were measured first in the same run",
        "(`benchmarks/README.md`).",
    ]
    has_gpu = False
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        lines += ["", f"## {folder.name}"]
        for path, results in suites(folder).items():
            has_gpu |= results.head["device"] == "cuda"
            lines += ["", *_suite(path, results, folder.name)]
        for path, whole in scripts(folder).items():
            lines += ["", *_script(path, whole)]
    lines += ["", "## GPU", "", *([] if has_gpu else _predictions())]
    if has_gpu:
        lines.append("The receipts above are measured; `docs/kernels.md` has what each kernel compiles to.")
    if INSTRUCTIONS.exists():
        found = json.loads(INSTRUCTIONS.read_text(encoding="utf-8"))
        lines += ["", "## Instructions of the C++ hot paths", ""]
        lines += [f"Counted by {found['valgrind']}, AVX2, {found['compiler']} (`bgpt-fast bench instructions`)."]
        lines += ["", "| path | instructions |", "| --- | --- |"]
        lines += [f"| {name} | {number:,} |" for name, number in found["instructions"].items()]
    return "\n".join(lines) + "\n"


def write() -> list[Path]:
    """Writes the page and its charts; returns what it wrote."""
    files = {PAGE: page().encode()}
    for folder in (path for path in RESULTS.iterdir() if path.is_dir()):
        for path, results in suites(folder).items():
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
