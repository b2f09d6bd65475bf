"""The figures that receipts hold, and the speed figures that a text quotes. Standard library only.

Receipts: `benchmarks/results/<device>/`, JSONs of the suite, and those of scripts, which name their ratios "ratio".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from suite_results import Results, read

RESULTS = Path(__file__).resolve().parent / "results"

_QUOTED = {
    "ratio": r"(\d[\d,.]*) ×",
    "instances": r"(\d[\d,.]*) (?:[\w-]+ ){0,2}instances",
    "rate": r"(\d[\d,.]*) ?(?:patches/s|B/s|bytes a second|patches a second|files a second)",
    "kilobytes": r"(\d[\d,.]*) ?KB/s",
    "megabytes": r"(\d[\d,.]*) ?MB/s",
}
_SCALES = {"kilobytes": 1e3, "megabytes": 1e6}


class Quote(NamedTuple):
    """A speed figure in a text: "ratio", "instances" (a second) or "rate", as it is written, and its line."""

    kind: str
    written: str
    line: str

    @property
    def value(self) -> float:
        return float(self.written.replace(",", ""))

    def is_rounded_from(self, exact: float) -> bool:
        """Whether a figure gives this one, by rounding to the digits that are written."""
        exact /= _SCALES.get(self.kind, 1.0)
        whole, _, fraction = self.written.replace(",", "").partition(".")
        zeros = 0 if fraction else len(whole) - len(whole.rstrip("0"))
        return abs(exact - self.value) <= 0.5000001 * 10.0 ** (zeros - len(fraction))


def quotes(text: str) -> list[Quote]:
    """The speed figures of a text; "×" between two numbers is a product, and is none."""
    found = []
    for line in text.splitlines():
        for kind, pattern in _QUOTED.items():
            for match in re.finditer(pattern, line):
                if not re.match(r" ?\d", line[match.end() :]):
                    found.append(Quote(kind, match[1].rstrip(".,"), line.strip()))
    return found


def suites(folder: Path) -> dict[Path, Results]:
    """The suite's own receipts below a folder of results."""
    return {path: read(path) for path in sorted(folder.glob("*.json")) if "bgpt_fast" in json.loads(path.read_text())}


def scripts(folder: Path) -> dict[Path, Any]:
    """The other receipts there."""
    loaded = {path: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    return {path: whole for path, whole in loaded.items() if "bgpt_fast" not in whole}


def held(folder: Path) -> dict[str, list[float]]:
    """Every speed figure that the receipts of one device hold, by kind of quote."""
    found: dict[str, list[float]] = {"ratio": [], "instances": [], "rate": []}
    for results in suites(folder).values():
        for comparison in results.comparisons():
            found["ratio"] += [times for item in comparison.items if (times := comparison.times_faster(item))]
            found["ratio"] += comparison.between_own()
            for item in comparison.items:
                if "units_per_s" in item.info:
                    kind = "instances" if item.info["unit"] == "instances" else "rate"
                    found[kind].append(float(item.info["units_per_s"]))
    for whole in scripts(folder).values():
        for path, value in _numbers(whole):
            if "ratio" in path[-1]:
                found["ratio"].append(value)
            elif any("instances_per_s" in word for word in path):
                found["instances"].append(value)
            elif path[-1].endswith("_per_s"):
                found["rate"].append(value)
    found["kilobytes"] = found["megabytes"] = found["rate"]
    return found


def _numbers(value: Any, path: tuple[str, ...] = ("",)) -> Iterator[tuple[tuple[str, ...], float]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _numbers(inner, (*path, str(name)))
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, float(value)


def unheld(text: str, folder: Path) -> list[Quote]:
    """The quotes of a text that no receipt of a device gives by rounding."""
    figures = held(folder)
    return [quote for quote in quotes(text) if not any(map(quote.is_rounded_from, figures[quote.kind]))]
