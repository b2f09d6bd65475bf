"""Two runs side by side: which items are slower by more than the noise that the runs measured themselves.

    python benchmarks/suite_compare.py before.json after.json      # or: bgpt-fast bench compare before.json after.json

The noise of an item is the largest ratio between its medians in runs of the same code (`bgpt-fast bench --runs 2` keeps
them as `medians`), in either file; where a file has one run, the spread within it (p80 over p20) stands in. A figure
that moved by more than that and than the least share (3 %) is a change. The exit code is 1 where something got slower.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suite_results import Item, duration, read

from bgpt_fast.files import write_json

LEAST = 0.03
"""A share below which no change is called one."""


@dataclass(frozen=True)
class Change:
    """One item in both runs: `ratio` is the time after over the time before."""

    name: str
    before: float
    after: float
    noise: float
    is_measured: bool

    @property
    def ratio(self) -> float:
        return self.after / self.before

    @property
    def verdict(self) -> str:
        """ "slower", "faster" or "same"."""
        threshold = 1 + max(self.noise, LEAST)
        if self.ratio > threshold:
            return "slower"
        return "faster" if self.ratio < 1 / threshold else "same"


def noise(item: Item) -> tuple[float, bool]:
    """The share by which an item's time wanders, and whether runs of the same code say so."""
    medians = item.info.get("medians", ())
    if len(medians) > 1:
        return max(medians) / min(medians) - 1, True
    return item.info["p80"] / item.info["p20"] - 1, False


def centre(item: Item) -> float:
    """The median of the medians of all runs."""
    medians = sorted(item.info.get("medians", (item.median,)))
    return float(medians[len(medians) // 2] + medians[(len(medians) - 1) // 2]) / 2


def changes(before: Iterable[Item], after: Iterable[Item]) -> list[Change]:
    """The items that both runs have, in the order of the second."""
    old = {item.name: item for item in before}
    found = []
    for item in after:
        if item.name in old:
            noises = [noise(old[item.name]), noise(item)]
            worst = max(value for value, _ in noises)
            is_measured = all(measured for _, measured in noises)
            found.append(Change(item.name, centre(old[item.name]), centre(item), worst, is_measured))
    return found


def merged(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The JSON of several runs of the same code: the first one's, with every item's median in each run."""
    medians: dict[str, list[float]] = {}
    for run in runs:
        for entry in run["benchmarks"]:
            medians.setdefault(entry["fullname"], []).append(entry["extra_info"]["median"])
    benchmarks = [
        {**entry, "extra_info": {**entry["extra_info"], "medians": medians[entry["fullname"]]}}
        for entry in runs[0]["benchmarks"]
    ]
    return {**runs[0], "benchmarks": benchmarks}


def merge_files(paths: list[Path], output: Path) -> None:
    """Writes the JSON of several runs of the same code."""
    write_json(output, merged([json.loads(path.read_text(encoding="utf-8")) for path in paths]))


def differing_conditions(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What else than the code differs between the runs' heads."""
    found = [
        f"{name}: {before[name]} before, {after[name]} after"
        for name in ("size", "device", "threads", "openmp_wait_policy")
        if before[name] != after[name]
    ]
    for name in ("processor", "packages"):
        if before["machine"].get(name) != after["machine"].get(name):
            found.append(f"{name}: {before['machine'].get(name)} before, {after['machine'].get(name)} after")
    for dtype in before["limits"].keys() & after["limits"].keys():
        ratio = after["limits"][dtype]["matmul_flops"] / before["limits"][dtype]["matmul_flops"]
        if abs(ratio - 1) > 0.1:
            found.append(f"the machine's own matrix product, {dtype}, ran at {ratio:.2f} times its rate before")
    return found


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bgpt-fast bench compare", description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--all", action="store_true", help="show what is the same as well")
    arguments = parser.parse_args(words)
    try:
        before, after = read(arguments.before), read(arguments.after)
    except (OSError, ValueError) as error:
        print(f"bgpt-fast bench compare: {error}", file=sys.stderr)
        return 2
    found = changes(before.items, after.items)
    if not found:
        print("bgpt-fast bench compare: the two runs have no item in common", file=sys.stderr)
        return 2
    for line in differing_conditions(before.head, after.head):
        print(f"beware: {line}")
    if not all(change.is_measured for change in found):
        print(
            "beware: not every item was run twice; the spread within a run stands in, and runs differ by more: --runs 2"
        )
    for change in sorted(found, key=lambda change: -change.ratio):
        if arguments.all or change.verdict != "same":
            print(
                f"{change.verdict:6s} {change.ratio:6.2f} × the time (noise {100 * change.noise:.0f} %)  "
                f"{duration(change.before)} → {duration(change.after)}  {change.name}"
            )
    slower = sum(change.verdict == "slower" for change in found)
    faster = sum(change.verdict == "faster" for change in found)
    print(f"{len(found)} items: {slower} slower, {faster} faster, {len(found) - slower - faster} the same")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
