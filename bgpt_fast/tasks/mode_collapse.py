"""Whether generated files repeat themselves, or each other: distinct n-grams, loops, copies.

Source of distinct n-grams: Li et al. 2016 (arXiv 1510.03055); of repetition as their complement: Welleck et al. 2019
(arXiv 1908.04319), where n = 4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ORDERS = (1, 2, 4, 8)
WINDOW = 1024
MAX_PERIOD = 256
TAIL = 65536
COMPARED = 1000
_SHARED_ORDER = 8
_LOOPS, _COPIES, _SHARED, _DISTINCT = 0.5, 0.5, 0.5, 0.5


@dataclass(frozen=True)
class Repetition:
    """How one file repeats itself.

    Args:
        size: in bytes.
        distinct: of each order n, the distinct n-grams as a share of all, mean over stretches of 1,024 bytes, so that
            long files do not look worse for being long; 1 where there is no n-gram.
        loop_period: bytes of the pattern that the file ends by repeating; 0 if it does not.
        loop_share: share of the file, or of its last 65,536 bytes, that is this repetition, its first round included;
            at least two rounds count.
        longest_run: most equal bytes in a row.
    """

    size: int
    distinct: dict[int, float]
    loop_period: int
    loop_share: float
    longest_run: int


def repetition(data: bytes) -> Repetition:
    """How a file repeats itself, from its bytes.

    A loop is looked for at the end, where generation that has collapsed stays: the period of at most 256 bytes whose
    repetition covers most.
    """
    content = np.frombuffer(data, np.uint8)
    windows = [data[start : start + WINDOW] for start in range(0, len(data), WINDOW)] or [b""]
    # A short last stretch has little to repeat: it counts by its size.
    sizes = np.array([len(window) for window in windows], np.float64)
    weights = sizes if sizes.any() else np.ones(1)
    shares = {n: float(np.average([_distinct_share(w, n) for w in windows], weights=weights)) for n in ORDERS}
    period, share = _loop(content[-TAIL:])
    return Repetition(len(data), shares, period, share, _longest_run(content))


@dataclass(frozen=True)
class Diversity:
    """How a set of files repeats itself and each other.

    Args:
        files: how many.
        size: mean bytes.
        distinct: of each order n, the mean of the files' `Repetition.distinct`.
        distinct_in_all: of each order n, the distinct n-grams of the first 1,024 bytes of the first 1,000 files as a
            share of all of them.
        loop_share: mean `Repetition.loop_share`.
        looping: share of the files of which at least half is a loop.
        longest_run: the longest of all.
        copies: share of the files that equal an earlier one.
        shared: share of a file's distinct 8-grams that stand in another file too, mean over these 1,000 files' first
            1,024 bytes.
        signs: what speaks for mode collapse, in words; empty if nothing does.
    """

    files: int
    size: float
    distinct: dict[int, float]
    distinct_in_all: dict[int, float]
    loop_share: float
    looping: float
    longest_run: int
    copies: float
    shared: float
    signs: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "files": self.files,
            "mean_bytes": self.size,
            **{f"distinct_{n}": share for n, share in self.distinct.items()},
            **{f"distinct_{n}_in_all": share for n, share in self.distinct_in_all.items()},
            "loop_share": self.loop_share,
            "looping_files": self.looping,
            "longest_run": self.longest_run,
            "copies": self.copies,
            "shared_8grams": self.shared,
            "signs_of_collapse": list(self.signs),
        }


def diversity(files: Iterable[bytes], reference: Diversity | None = None) -> Diversity:
    """How a set of files repeats itself and each other, and whether that looks like mode collapse.

    Signs, each named in the result: over half of the files are loops by half or more; over half equal an earlier file;
    over half of the 8-grams stand in other files too; and, of each order n, fewer than half as many distinct n-grams as
    in `reference`. Of the first three, a share must also go over half of the way from the reference's to 1: real files
    of one kind may share headers, and silence is a loop.

    Args:
        files: contents, such as what a model generated; at least one. Taken one by one and not kept.
        reference: of real files of the same kind; None judges without.

    Raises:
        ValueError: no files.
    """
    each: list[Repetition] = []
    digests: set[bytes] = set()
    heads: list[bytes] = []
    for data in files:
        each.append(repetition(data))
        digests.add(hashlib.blake2b(data, digest_size=16).digest())
        if len(heads) < COMPARED:
            heads.append(bytes(data[:WINDOW]))
    if not each:
        raise ValueError("diversity: files: expected at least one, got none")
    made = Diversity(
        files=len(each),
        size=float(np.mean([found.size for found in each])),
        distinct={n: float(np.mean([found.distinct[n] for found in each])) for n in ORDERS},
        distinct_in_all={n: _distinct_in_all(heads, n) for n in ORDERS},
        loop_share=float(np.mean([found.loop_share for found in each])),
        looping=float(np.mean([found.loop_share >= _LOOPS for found in each])),
        longest_run=max(found.longest_run for found in each),
        copies=1 - len(digests) / len(each),
        shared=_shared(heads),
    )
    return Diversity(**{**made.__dict__, "signs": tuple(_signs(made, reference))})


def _signs(made: Diversity, reference: Diversity | None) -> list[str]:
    signs = []
    shares = (
        ("looping", _LOOPS, "of the files are loops by half or more"),
        ("copies", _COPIES, "of the files equal an earlier one"),
        ("shared", _SHARED, f"of the files' {_SHARED_ORDER}-grams stand in other files too"),
    )
    for name, limit, words in shares:
        value = getattr(made, name)
        usual = 0.0 if reference is None else getattr(reference, name)
        if value > limit and value > usual + (1 - usual) * limit:
            signs.append(f"{value:.0%} {words}" + ("" if reference is None else f" (real files: {usual:.0%})"))
    if reference is not None:
        for n in ORDERS:
            if made.distinct[n] < _DISTINCT * reference.distinct[n]:
                signs.append(f"{made.distinct[n]:.1%} distinct {n}-grams (real files: {reference.distinct[n]:.1%})")
    return signs


def _grams(data: bytes, n: int) -> set[bytes]:
    return {data[start : start + n] for start in range(len(data) - n + 1)}


def _distinct_share(data: bytes, n: int) -> float:
    count = len(data) - n + 1
    return len(_grams(data, n)) / count if count > 0 else 1.0


def _distinct_in_all(heads: list[bytes], n: int) -> float:
    count = sum(max(len(head) - n + 1, 0) for head in heads)
    return len(set().union(*(_grams(head, n) for head in heads))) / count if count else 1.0


def _shared(heads: list[bytes]) -> float:
    grams = [_grams(head, _SHARED_ORDER) for head in heads]
    once: set[bytes] = set()
    more: set[bytes] = set()
    for own in grams:
        more |= own & once
        once |= own
    shares = [len(own & more) / len(own) for own in grams if own]
    return float(np.mean(shares)) if shares else 0.0


def _loop(content: NDArray[np.uint8]) -> tuple[int, float]:
    """The period whose repetition at the end covers most, the shortest of equals, and the share that it covers."""
    best, covered = 0, 0
    for period in range(1, min(MAX_PERIOD, len(content) // 2) + 1):
        different = np.flatnonzero(content[period:] != content[:-period])
        tail = len(content) - (int(different[-1]) + 1 if len(different) else 0)
        if tail >= 2 * period and tail > covered:
            best, covered = period, tail
    return best, covered / max(len(content), 1)


def _longest_run(content: NDArray[np.uint8]) -> int:
    edges = np.flatnonzero(np.diff(content)) + 1
    return int(np.diff(np.concatenate([[0], edges, [len(content)]])).max(initial=0))
