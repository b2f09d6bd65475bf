"""Compares two runs: which items became slower by more than the noise measured in the runs.

    bgpt-fast bench compare before.json after.json

The noise of an item is the largest ratio between its medians in runs of the same code (`bgpt-fast bench --runs 2`
records them as `medians`), in either file; for a file of one run it is the spread within that run (p80 over p20). A
change is a difference larger than the noise and larger than 3 %. The exit code is 1 if an item became slower.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.results import Item, duration, read
from bgpt_fast.files import write_json

SMALLEST_CHANGE = 0.03


@dataclass(frozen=True)
class Change:
    """One item in both runs: `ratio` is the time after over the time before."""

    name: str
    before: float
    after: float
    noise: float
    is_measured: bool
    """Whether both files contain several runs, from which the noise was measured."""

    @property
    def ratio(self) -> float:
        return self.after / self.before

    @property
    def verdict(self) -> str:
        """ "slower", "faster" or "same"."""
        threshold = 1 + max(self.noise, SMALLEST_CHANGE)
        if self.ratio > threshold:
            return "slower"
        return "faster" if self.ratio < 1 / threshold else "same"


def _medians(item: Item) -> list[float]:
    return item.info.get("medians", [item.median])


def _noise(item: Item) -> float:
    medians = _medians(item)
    if len(medians) > 1:
        return max(medians) / min(medians) - 1
    return item.info["p80"] / item.info["p20"] - 1


def changes(before: Iterable[Item], after: Iterable[Item]) -> list[Change]:
    """The items that both runs have, in the order of the second."""
    old = {item.name: item for item in before}
    pairs = [(old[item.name], item) for item in after if item.name in old]
    return [
        Change(
            pair[1].name,
            *(statistics.median(_medians(item)) for item in pair),
            noise=max(map(_noise, pair)),
            is_measured=all(len(_medians(item)) > 1 for item in pair),
        )
        for pair in pairs
    ]


def merge(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Merges the JSONs of several runs of the same code: the first one, with every item's median in each run added."""
    medians: dict[str, list[float]] = {}
    for run in runs:
        for entry in run["benchmarks"]:
            medians.setdefault(entry["fullname"], []).append(entry["extra_info"]["median"])
    benchmarks = [
        {**entry, "extra_info": {**entry["extra_info"], "medians": medians[entry["fullname"]]}}
        for entry in runs[0]["benchmarks"]
    ]
    return {**runs[0], "benchmarks": benchmarks}


def differing_conditions(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Everything except the code that differs between two runs, according to their heads (`Results.head`)."""
    pairs = {name: (before[name], after[name]) for name in ("size", "device", "threads", "openmp_wait_policy")}
    for name in ("processor", "packages"):
        pairs[name] = (before["machine"].get(name), after["machine"].get(name))
    lines = [f"{name}: {old} before, {new} after" for name, (old, new) in pairs.items() if old != new]
    for dtype in before["peak"].keys() & after["peak"].keys():
        ratio = after["peak"][dtype]["matmul_flops"] / before["peak"][dtype]["matmul_flops"]
        if abs(ratio - 1) > 0.1:
            lines.append(f"the machine's own matrix product, {dtype}, ran at {ratio:.2f} times its rate before")
    return lines


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bgpt-fast bench compare", description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="two JSONs, before and after")
    parser.add_argument("--all", action="store_true", help="show unchanged items as well")
    parser.add_argument("--merge", type=Path, metavar="JSON", help="instead: write all runs as one JSON")
    arguments = parser.parse_args(words)
    if arguments.merge:
        write_json(arguments.merge, merge([json.loads(path.read_text(encoding="utf-8")) for path in arguments.runs]))
        return 0
    if len(arguments.runs) != 2:
        parser.error(f"expected two JSONs, got {len(arguments.runs)}")
    try:
        before, after = map(read, arguments.runs)
    except (OSError, ValueError) as error:
        print(f"bgpt-fast bench compare: {error}", file=sys.stderr)
        return 2
    rows = changes(before.items, after.items)
    if not rows:
        print("bgpt-fast bench compare: the two runs have no item in common", file=sys.stderr)
        return 2
    for line in differing_conditions(before.head, after.head):
        print(f"beware: {line}")
    if not all(row.is_measured for row in rows):
        print("beware: some items were run once, and their noise is the spread within that run: use --runs 2")
    for row in sorted(rows, key=lambda row: -row.ratio):
        if arguments.all or row.verdict != "same":
            print(
                f"{row.verdict:6s} {row.ratio:6.2f} × the time (noise {100 * row.noise:.0f} %)  "
                f"{duration(row.before)} → {duration(row.after)}  {row.name}"
            )
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in ("slower", "faster", "same")}
    print(f"{len(rows)} items: {counts['slower']} slower, {counts['faster']} faster, {counts['same']} the same")
    return 1 if counts["slower"] else 0


if __name__ == "__main__":
    sys.exit(main())
