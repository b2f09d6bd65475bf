"""The speed figures that a text quotes, and whether result files contain them. Standard library only.

Result files are `benchmarks/results/<processor>/`: JSONs of the suite, and others, which name their ratios "ratio".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.results import Results, read

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
    """A speed figure in a text: "ratio", "instances" (a second) or "rate", its digits, and its line."""

    kind: str
    digits: str
    line: str

    @property
    def value(self) -> float:
        return float(self.digits.replace(",", ""))

    def is_rounded_from(self, exact: float) -> bool:
        """Whether rounding a measured figure to this quote's digits gives the quote."""
        exact /= _SCALES.get(self.kind, 1.0)
        whole, _, fraction = self.digits.replace(",", "").partition(".")
        zeros = 0 if fraction else len(whole) - len(whole.rstrip("0"))
        return abs(exact - self.value) <= 0.5000001 * 10.0 ** (zeros - len(fraction))


def quotes(text: str) -> list[Quote]:
    """The speed figures in a text; "×" between two numbers is a product and does not count."""
    return [
        Quote(kind, match[1].rstrip(".,"), line.strip())
        for line in text.splitlines()
        for kind, pattern in _QUOTED.items()
        for match in re.finditer(pattern + r"(?! ?\d)", line)
    ]


def suite_results(folder: Path) -> dict[Path, Results]:
    """The suite's result files in a folder."""
    return {path: read(path) for path in sorted(folder.glob("*.json")) if "bgpt_fast" in json.loads(path.read_text())}


def other_results(folder: Path) -> dict[Path, Any]:
    """The other JSON files in a folder."""
    contents = {path: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    return {path: content for path, content in contents.items() if "bgpt_fast" not in content}


def measured_figures(folder: Path) -> dict[str, list[float]]:
    """Every speed figure in the results of one device, by kind of quote."""
    ratios: list[float] = []
    instances: list[float] = []
    rates: list[float] = []
    for results in suite_results(folder).values():
        for comparison in results.comparisons():
            ratios += [times for item in comparison.items if (times := comparison.times_faster(item))]
            ratios += comparison.variants_times_faster()
            for item in comparison.items:
                if "units_per_s" in item.info:
                    (instances if item.info["unit"] == "instances" else rates).append(float(item.info["units_per_s"]))
    for content in other_results(folder).values():
        for name, value in _numbers(content):
            if "ratio" in name:
                ratios.append(value)
            elif name.endswith("_per_s"):
                (instances if "instances" in name else rates).append(value)
    return {"ratio": ratios, "instances": instances, **dict.fromkeys(("rate", "kilobytes", "megabytes"), rates)}


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a JSON value with its innermost key."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)


def unsupported(text: str, folder: Path) -> list[Quote]:
    """The quotes in a text that are not a rounded result of a device (the results in `folder`)."""
    figures = measured_figures(folder)
    return [quote for quote in quotes(text) if not any(map(quote.is_rounded_from, figures[quote.kind]))]
