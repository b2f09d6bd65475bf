"""What a rank of `bgpt-fast simulate` knows of its chunks; the ranks' results merge to those of one process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bgpt_fast.report.simulation_page import ProgramView
from bgpt_fast.tasks.cpu_states import format_difference
from bgpt_fast.tasks.cpu_states.assessment import Chunk, Scores
from bgpt_fast.tasks.cpu_states.chunk_journal import digest
from bgpt_fast.tasks.cpu_states.views import program_view


@dataclass(frozen=True)
class Example:
    """A program to show.

    Args:
        number: the program's, among all.
        name: of its file.
        difference: the true trace beside the predicted one.
        view: the program for the page.
    """

    number: int
    name: str
    difference: str
    view: ProgramView


class Results:
    """Scores, digests, names and examples of chunks; can be pickled.

    Args:
        state_bytes: C, the bytes of a state.
        num_examples: how many wrong and how many right programs to hold.
        holds_names: whether to hold all file names.
    """

    def __init__(self, state_bytes: int, num_examples: int, *, holds_names: bool) -> None:
        self.scores = Scores(state_bytes)
        self._num_examples, self._holds_names = num_examples, holds_names
        self._digests: dict[int, bytes] = {}
        self._names: dict[int, list[str]] = {}
        self._wrong: list[Example] = []
        self._right: list[Example] = []

    def add(self, index: int, first: int, names: Sequence[str], chunk: Chunk) -> None:
        """Adds a chunk.

        Args:
            index: the chunk's, among all.
            first: number of its first program among all.
            names: the programs' file names.
            chunk: traces, predictions and scores.
        """
        self.scores.merge(chunk.scores)
        self._digests[index] = digest(chunk.traces)
        if self._holds_names:
            self._names[index] = list(names)
        rows = zip(names, chunk.traces, chunk.predicted, chunk.forced, strict=True)
        for number, (name, truth, predicted, forced) in enumerate(rows, first):
            examples = self._right if predicted.to_bytes() == truth.to_bytes() else self._wrong
            if len(examples) < self._num_examples:
                view = program_view(name, truth, predicted, forced)
                examples.append(Example(number, name, format_difference(predicted, truth), view))

    def merge(self, other: Results) -> None:
        """Adds another rank's chunks; its time passed at the same time, so the longer one is that of both."""
        mine, theirs = self.scores, other.scores
        times = [(scores.seconds, scores.forced_seconds) for scores in (mine, theirs)]
        mine.merge(theirs)
        mine.seconds, mine.forced_seconds = (max(pair) for pair in zip(*times, strict=True))
        self._digests |= other._digests
        self._names |= other._names
        self._wrong = _first(self._wrong + other._wrong, self._num_examples)
        self._right = _first(self._right + other._right, self._num_examples)

    @property
    def names(self) -> list[str]:
        """All file names in the programs' order; empty if they are not held."""
        return [name for index in sorted(self._names) for name in self._names[index]]

    @property
    def programs_digest(self) -> str:
        """A digest of all programs, as `programs_digest` gives it."""
        return programs_digest(self._digests[index] for index in sorted(self._digests))

    @property
    def wrong_first(self) -> list[Example]:
        """The first wrong programs, then the first right ones."""
        return self._wrong + self._right


def programs_digest(digests: Iterable[bytes]) -> str:
    """The digest of the programs in chunks with these digests."""
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _first(examples: list[Example], count: int) -> list[Example]:
    return sorted(examples, key=lambda example: example.number)[:count]
