"""Reads a JSON of the suite: items, comparisons with baselines, curves. Standard library only."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.names import OURS, RELEASED

_OLD_NAMES = {"limits": "peak", "peers": "baselines", "of_ceiling": "of_peak", "floor": "least_seconds"}
"""Keys that results of version 0.1 have."""


@dataclass(frozen=True)
class Item:
    """One measured item; `info` is its `extra_info`, which suite.py describes."""

    name: str
    info: dict[str, Any]

    @property
    def what(self) -> str:
        return str(self.info["what"])

    @property
    def implementation(self) -> str:
        return str(self.info["implementation"])

    @property
    def median(self) -> float:
        return float(self.info["median"])

    @property
    def kind(self) -> str:
        return str(self.info.get("kind", ""))


@dataclass(frozen=True)
class Comparison:
    """Implementations measured on the same work in one dtype; ours comes first."""

    what: str
    dtype: str
    items: tuple[Item, ...]

    @property
    def ours(self) -> Item | None:
        return next((item for item in self.items if item.implementation == OURS), None)

    def times_faster(self, item: Item) -> float | None:
        """How many times faster ours is than an item: by rates if both have one, otherwise by times."""
        ours = self.ours
        if ours is None or item is ours:
            return None
        if "units_per_s" in ours.info and "units_per_s" in item.info:
            return float(ours.info["units_per_s"]) / float(item.info["units_per_s"])
        return item.median / ours.median

    def variants_times_faster(self) -> list[float]:
        """How many times faster our variants of fewer bits are than each baseline."""
        rates = {item.implementation: item.info.get("units_per_s") for item in self.items}
        variants = [rate for name, rate in rates.items() if name.startswith(f"{OURS}, ")]
        baselines = [rate for name, rate in rates.items() if not name.startswith(OURS)]
        return [variant / baseline for variant in variants for baseline in baselines if variant and baseline]


@dataclass(frozen=True)
class Results:
    """The content of a JSON; `head` is the part that conftest.py adds."""

    head: dict[str, Any]
    items: tuple[Item, ...]

    def comparisons(self, *kinds: str) -> list[Comparison]:
        """Comparisons of these kinds or, if none are given, of all but the curves, in the order measured."""
        groups: dict[tuple[str, str], list[Item]] = {}
        for item in self.items:
            if item.kind in kinds or (not kinds and item.kind != "curve"):
                groups.setdefault((item.what, item.info["dtype"]), []).append(item)
        return [
            Comparison(what, dtype, tuple(sorted(items, key=lambda item: item.implementation != OURS)))
            for (what, dtype), items in groups.items()
        ]

    def curves(self) -> dict[str, list[Item]]:
        """The scaling curves by name, each sorted by the value that varies."""
        curves: dict[str, list[Item]] = {}
        for item in sorted(self.items, key=lambda item: item.info.get("value", 0)):
            if item.kind == "curve":
                curves.setdefault(item.what.removeprefix("curve: "), []).append(item)
        return curves

    @property
    def dtypes(self) -> list[str]:
        return list(dict.fromkeys(str(item.info["dtype"]) for item in self.items))

    @property
    def device_name(self) -> str:
        gpu = self.head["machine"].get("gpu")
        if self.head["device"] == "cuda" and gpu:
            return str(gpu["name"])
        return f"{self.head['machine'].get('processor', 'CPU')}, {self.head['threads']} threads"


def _renamed(entries: dict[str, Any]) -> dict[str, Any]:
    return {_OLD_NAMES.get(name, name): value for name, value in entries.items()}


def read(path: Path) -> Results:
    """Reads a JSON that `pytest benchmarks/ --benchmark-json` wrote.

    Raises:
        ValueError: the file is not such a JSON.
    """
    try:
        text = path.read_text(encoding="utf-8").replace('"released way"', f'"{RELEASED}"')  # as in version 0.1
        content = json.loads(text)
        items = tuple(Item(entry["fullname"], _renamed(entry["extra_info"])) for entry in content["benchmarks"])
        head = _renamed(content["bgpt_fast"])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected a JSON that `bgpt-fast bench --json` wrote; {error!r}") from error
    if not items:
        raise ValueError(f"{path}: expected at least one measured item, got none")
    return Results(head, items)


def exponent(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The least-squares line through (log x, log y): y ≈ a · xᵉ.

    Returns:
        e and a; e is NaN for fewer than two different x.
    """
    xs, ys = zip(*((math.log(x), math.log(y)) for x, y in points), strict=True)
    if len(set(xs)) < 2:
        return math.nan, math.nan
    slope, intercept = statistics.linear_regression(xs, ys)
    return slope, math.exp(intercept)


def duration(seconds: float) -> str:
    """Seconds with three digits, in s, ms, µs or ns."""
    return _with_unit(seconds, {"s": 1, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9})


def size(count: float) -> str:
    """Bytes with three digits, in GB, MB, KB or B."""
    return _with_unit(count, {"GB": 1e9, "MB": 1e6, "KB": 1e3, "B": 1})


def _with_unit(value: float, units: dict[str, float]) -> str:
    """The value in the largest unit that does not exceed it, or in the last unit if all exceed it."""
    name = next((name for name, unit in units.items() if value >= unit), list(units)[-1])
    return f"{digits(value / units[name])} {name}"


def digits(value: float) -> str:
    """A number with three significant digits and commas between thousands."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    places = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, places):,.{max(0, places)}f}"


def rate(item: Item) -> str:
    """Units per second, if the item has any."""
    if "units_per_s" not in item.info:
        return ""
    per_second, unit = item.info["units_per_s"], item.info["unit"]
    return f"{size(per_second)}/s" if unit == "bytes" else f"{digits(per_second)} {unit}/s"


def share_of_peak(item: Item) -> str:
    """The share reached of the peak rate that bounds the item, if there is one."""
    if "of_peak" not in item.info:
        return ""
    names = {"copy": "bandwidth", "matmul": "matrix product"}
    return f"{100 * item.info['of_peak']:.0f} % of {names[item.info['bound']]}"


def work_rate(item: Item) -> str:
    """TFLOP/s (GFLOP/s if small) and GB/s of the minimum work."""
    parts = []
    if "tflop_per_s" in item.info:
        value = item.info["tflop_per_s"]
        parts.append(f"{digits(value)} TFLOP/s" if value >= 1 else f"{digits(1e3 * value)} GFLOP/s")
    if "gb_per_s" in item.info:
        parts.append(f"{digits(item.info['gb_per_s'])} GB/s")
    return ", ".join(parts)
