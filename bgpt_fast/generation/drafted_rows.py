"""The rows of a step with drafts: a sequence has a row for each patch that its draft fills, and these are verified.

Shape letters: R running sequences, N rows to decode, S bytes a patch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bgpt_fast.generation.drafting import Drafter
from bgpt_fast.generation.sequences import Rows, Sequences

MIN_DRAFT_BYTES, MAX_DRAFT_BYTES = 4, 1024
"""Minimum and maximum number of drafted bytes that a step verifies. The first step uses the maximum; each later one
twice as many as were correct in the previous step, within these limits."""


class DraftedRows(NamedTuple):
    """The rows of a step.

    Args:
        rows: each sequence's, one after the other.
        drafts: int16 [N, S], guesses at the patches' tokens, known ones included; -1 where there is none.
        first: int64 [R], index of each sequence's first row.
        expected: each sequence's known and drafted bytes from its first row on.
        sizes: int64 [R], each file's bytes so far.
    """

    rows: Rows
    drafts: NDArray[np.int16]
    first: NDArray[np.int64]
    expected: list[bytes]
    sizes: NDArray[np.int64]

    @property
    def verify(self) -> NDArray[np.bool_]:
        """bool [N]: whether a row stops after the first wrong draft; a sequence's first row never does."""
        verify = np.ones(len(self.drafts), np.bool_)
        verify[self.first] = False
        return verify

    def last(self, tokens: NDArray[np.int16]) -> NDArray[np.int64]:
        """int64 [R]: each sequence's first row with a wrong draft, or its last row; `tokens`: int16 [N, S]."""
        stops = (tokens != self.drafts).any(1)
        stops[np.append(self.first[1:], len(tokens)) - 1] = True
        stops = np.flatnonzero(stops)
        return stops[np.searchsorted(stops, self.first)]


class Drafts:
    """Drafts of all sequences in progress, and how many of them were right.

    Args:
        drafter: proposes the next bytes of each file.
        sequences: the files.
    """

    def __init__(self, drafter: Drafter, sequences: Sequences) -> None:
        self.drafter, self.sequences = drafter, sequences
        slots = len(sequences.sizes)
        self.limits = np.zeros(slots, np.int64)
        self.num_drafted, self.num_accepted = np.zeros(slots, np.int64), np.zeros(slots, np.int64)

    def add(self, slots: NDArray[np.int64]) -> None:
        """Begins new files in these slots."""
        self.limits[slots] = MAX_DRAFT_BYTES
        self.num_drafted[slots] = self.num_accepted[slots] = 0

    def extend(self, rows: Rows) -> DraftedRows:
        """Drafts the next bytes of the sequences of these rows, one row each, and adds a row for each further patch."""
        S = rows.before.shape[1]
        expected = [self._expected(*one) for one in zip(rows.slots.tolist(), rows.byte_offsets.tolist(), strict=True)]
        counts = np.array([max(1, -(-len(one) // S)) for one in expected])
        first = np.cumsum(counts) - counts
        drafts = np.full((counts.sum(), S), -1, np.int16)
        for row, one in zip(first.tolist(), expected, strict=True):
            drafts.reshape(-1)[row * S : row * S + len(one)] = np.frombuffer(one, np.uint8)
        slots = np.repeat(rows.slots, counts)
        place = np.arange(len(drafts)) - np.repeat(first, counts)  # of the row in its sequence
        byte_offsets = np.repeat(rows.byte_offsets, counts) + place * S
        before = np.roll(drafts, 1, 0)
        before[first] = rows.before
        prefix_tokens = np.full_like(drafts, -1)
        prefix_tokens[first] = rows.prefix_tokens
        positions = np.repeat(rows.positions, counts) + place
        max_tokens = self.sequences.max_tokens(slots, byte_offsets)
        extended = Rows(slots, before, positions, prefix_tokens, max_tokens, byte_offsets)
        return DraftedRows(extended, drafts, first, expected, self.sequences.sizes[rows.slots])

    def _expected(self, slot: int, byte_offset: int) -> bytes:
        data, index = self.sequences.content(slot), int(self.sequences.index[slot])
        draft = self.drafter(index, data)[: self.limits[slot]]
        return (data[byte_offset:] + draft)[: self.sequences.limits[slot] - byte_offset]

    def count(self, drafted: DraftedRows) -> None:
        """Counts the drafts that were right, after the files were updated."""
        rows, first = drafted.rows, drafted.first
        slots, offsets = rows.slots[first].tolist(), rows.byte_offsets[first].tolist()
        for slot, offset, size, expected in zip(slots, offsets, drafted.sizes.tolist(), drafted.expected, strict=True):
            drafts, new = expected[size - offset :], self.sequences.content(slot)[size:]
            right = 0
            while right < min(len(drafts), len(new)) and drafts[right] == new[right]:
                right += 1
            self.num_drafted[slot] += len(drafts)
            self.num_accepted[slot] += right
            if drafts:
                self.limits[slot] = min(max(2 * right, MIN_DRAFT_BYTES), MAX_DRAFT_BYTES)
