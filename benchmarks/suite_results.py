"""What a JSON of the suite says: items, comparisons with peers, curves. Standard library only."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OURS = "bgpt_fast"


@dataclass(frozen=True)
class Item:
    """One measured item; `info` is its `extra_info` (suite.py says what is in it)."""

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
    """What was measured in one dtype, by implementation; ours first."""

    what: str
    dtype: str
    items: tuple[Item, ...]

    @property
    def ours(self) -> Item | None:
        return next((item for item in self.items if item.implementation == OURS), None)

    def times_faster(self, item: Item) -> float | None:
        """How many times faster ours is than an item: by rates where both have one, else by times."""
        ours = self.ours
        if ours is None or item is ours:
            return None
        if "units_per_s" in ours.info and "units_per_s" in item.info:
            return float(ours.info["units_per_s"]) / float(item.info["units_per_s"])
        return item.median / ours.median

    def between_own(self) -> list[float]:
        """How many times faster our variants of fewer bits are than each peer."""
        variants = [item for item in self.items if item.implementation.startswith(f"{OURS}, ")]
        peers = [item for item in self.items if not item.implementation.startswith(OURS)]
        return [
            variant.info["units_per_s"] / peer.info["units_per_s"]
            for variant in variants
            for peer in peers
            if "units_per_s" in variant.info and "units_per_s" in peer.info
        ]


@dataclass(frozen=True)
class Results:
    """A whole JSON: `head` is what conftest.py adds."""

    head: dict[str, Any]
    items: tuple[Item, ...]

    def comparisons(self, *kinds: str) -> list[Comparison]:
        """Of these kinds, or of all but the curves; in the order measured."""
        groups: dict[tuple[str, str], list[Item]] = {}
        for item in self.items:
            if item.kind in kinds or (not kinds and item.kind != "curve"):
                groups.setdefault((item.what, item.info["dtype"]), []).append(item)
        return [
            Comparison(what, dtype, tuple(sorted(items, key=lambda item: item.implementation != OURS)))
            for (what, dtype), items in groups.items()
        ]

    def curves(self) -> dict[str, list[Item]]:
        """The scaling curves by what they are, each by rising value."""
        found: dict[str, list[Item]] = {}
        for item in self.items:
            if item.kind == "curve":
                found.setdefault(item.what.removeprefix("curve: "), []).append(item)
        return {what: sorted(items, key=lambda item: item.info["value"]) for what, items in found.items()}

    @property
    def dtypes(self) -> list[str]:
        return list(dict.fromkeys(str(item.info["dtype"]) for item in self.items))

    @property
    def device_name(self) -> str:
        gpu = self.head["machine"].get("gpu")
        if self.head["device"] == "cuda" and gpu:
            return str(gpu["name"])
        return f"{self.head['machine'].get('processor', 'CPU')}, {self.head['threads']} threads"


def read(path: Path) -> Results:
    """Reads a JSON that `pytest benchmarks/ --benchmark-json` wrote.

    Raises:
        ValueError: it is no such file.
    """
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        items = tuple(Item(entry["fullname"], entry["extra_info"]) for entry in whole["benchmarks"])
        head = whole["bgpt_fast"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected a JSON that `bgpt-fast bench --json` wrote; {error!r}") from error
    if not items:
        raise ValueError(f"{path}: no item was measured")
    return Results(head, items)


def exponent(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The least-squares line through (log x, log y): y ≈ a · xᵉ.

    Returns:
        e and a; e is NaN for fewer than two different x.
    """
    xs = [math.log(x) for x, _ in points]
    ys = [math.log(y) for _, y in points]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    if not spread:
        return math.nan, math.nan
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    return slope, math.exp(mean_y - slope * mean_x)


def duration(seconds: float) -> str:
    """Seconds with three digits and the unit that suits them."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1:
            return f"{digits(seconds * factor)} {unit}"
    return f"{digits(seconds * 1e9)} ns"


def digits(value: float) -> str:
    """A number with three digits that count, thousands apart."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    places = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, places):,.{max(0, places)}f}"


def size(count: float) -> str:
    """Bytes with three digits and the unit that suits them."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= factor:
            return f"{digits(count / factor)} {unit}"
    return f"{digits(count)} B"


def rate(item: Item) -> str:
    """Units a second, if the item has any."""
    if "units_per_s" not in item.info:
        return ""
    per_second, unit = item.info["units_per_s"], item.info["unit"]
    return f"{size(per_second)}/s" if unit == "bytes" else f"{digits(per_second)} {unit}/s"


def limit(item: Item) -> str:
    """The share of the limit that binds, if there is one."""
    if "of_ceiling" not in item.info:
        return ""
    names = {"copy": "bandwidth", "matmul": "matrix product"}
    return f"{100 * item.info['of_ceiling']:.0f} % of {names[item.info['bound']]}"


def work_rate(item: Item) -> str:
    """TFLOP/s and GB/s of the least work; GFLOP/s where that is little."""
    parts = []
    if "tflop_per_s" in item.info:
        value = item.info["tflop_per_s"]
        parts.append(f"{digits(value)} TFLOP/s" if value >= 1 else f"{digits(1e3 * value)} GFLOP/s")
    if "gb_per_s" in item.info:
        parts.append(f"{digits(item.info['gb_per_s'])} GB/s")
    return ", ".join(parts)
