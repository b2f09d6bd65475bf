"""Mode collapse of generated files: whether they repeat themselves or each other (distinct n-grams, loops, copies).

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
    """The repetition within one file.

    Args:
        size: in bytes.
        distinct: by order n, the share of distinct n-grams, averaged over windows of 1,024 bytes, so that it does not
            depend on the file's length; 1 if there are no n-grams.
        loop_period: length in bytes of the pattern that repeats at the end of the file; 0 if there is none.
        loop_share: share of the file, or of its last 65,536 bytes, that the repetitions (at least two) cover.
        longest_run: largest number of equal bytes in a row.
    """

    size: int
    distinct: dict[int, float]
    loop_period: int
    loop_share: float
    longest_run: int


def repetition(data: bytes) -> Repetition:
    """Returns the repetition within a file.

    A loop is searched for at the end, since a collapsed generation does not leave its loop: the period, at most 256
    bytes, that covers the most bytes.
    """
    content = np.frombuffer(data, np.uint8)
    windows = [data[start : start + WINDOW] for start in range(0, len(data), WINDOW)] or [b""]
    # Windows are weighted by size, since a short last one has few repetitions.
    sizes = np.array([len(window) for window in windows], np.float64)
    weights = sizes if sizes.any() else np.ones(1)
    shares = {n: float(np.average([_distinct_share(w, n) for w in windows], weights=weights)) for n in ORDERS}
    period, share = _loop(content[-TAIL:])
    return Repetition(len(data), shares, period, share, _longest_run(content))


@dataclass(frozen=True)
class Diversity:
    """The repetition within and between files of a set.

    Args:
        files: number of files.
        size: mean size in bytes.
        distinct: by order n, the mean of the files' `Repetition.distinct`.
        distinct_in_all: by order n, the share of distinct n-grams among those of the first 1,024 bytes of the first
            1,000 files.
        loop_share: mean `Repetition.loop_share`.
        looping: share of the files with a `loop_share` of at least one half.
        longest_run: maximum over the files.
        copies: share of the files that equal an earlier one.
        shared: share of a file's distinct 8-grams that another file also has, mean over the first 1,024 bytes of these
            1,000 files.
        signs: descriptions of signs of mode collapse; empty if there are none.
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
    """Returns the repetition within and across a set of files, and signs of mode collapse.

    Signs are: over half of the files are loops by half or more; over half equal an earlier file; over half of the
    8-grams are in other files too; or, for an order n, there are fewer than half as many distinct n-grams as in
    `reference`. With a reference, the first three shares must also be over half of the way from the reference's share
    to 1, since real files of one kind may share headers, and silence is a loop.

    Args:
        files: contents, at least one; only one is in memory at a time.
        reference: the result for real files of the same kind, if any.

    Raises:
        ValueError: no files.
    """
    repetitions: list[Repetition] = []
    digests: set[bytes] = set()
    heads: list[bytes] = []
    for data in files:
        repetitions.append(repetition(data))
        digests.add(hashlib.blake2b(data, digest_size=16).digest())
        if len(heads) < COMPARED:
            heads.append(bytes(data[:WINDOW]))
    if not repetitions:
        raise ValueError("diversity: files: expected at least one, got none")
    result = Diversity(
        files=len(repetitions),
        size=float(np.mean([one.size for one in repetitions])),
        distinct={n: float(np.mean([one.distinct[n] for one in repetitions])) for n in ORDERS},
        distinct_in_all={n: _distinct_in_all(heads, n) for n in ORDERS},
        loop_share=float(np.mean([one.loop_share for one in repetitions])),
        looping=float(np.mean([one.loop_share >= _LOOPS for one in repetitions])),
        longest_run=max(one.longest_run for one in repetitions),
        copies=1 - len(digests) / len(repetitions),
        shared=_shared(heads),
    )
    return Diversity(**{**result.__dict__, "signs": tuple(_signs(result, reference))})


def _signs(result: Diversity, reference: Diversity | None) -> list[str]:
    signs = []
    shares = (
        ("looping", _LOOPS, "of the files are loops by half or more"),
        ("copies", _COPIES, "of the files equal an earlier one"),
        ("shared", _SHARED, f"of the files' {_SHARED_ORDER}-grams are in other files too"),
    )
    for name, limit, words in shares:
        value = getattr(result, name)
        usual = 0.0 if reference is None else getattr(reference, name)
        if value > limit and value > usual + (1 - usual) * limit:
            signs.append(f"{value:.0%} {words}" + ("" if reference is None else f" (real files: {usual:.0%})"))
    if reference is not None:
        for n in ORDERS:
            if result.distinct[n] < _DISTINCT * reference.distinct[n]:
                signs.append(f"{result.distinct[n]:.1%} distinct {n}-grams (real files: {reference.distinct[n]:.1%})")
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
    """Returns the period whose repetitions at the end cover the most bytes (of ties, the shortest), and their share."""
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
