"""The files that are being generated, as arrays with a row for each slot; a step prepares and updates all at once.

Shape letters: n prompts, B slots, R running sequences, N rows to decode, T patches of a prefill, S bytes a patch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bgpt_fast.config import EOP
from bgpt_fast.generation.packed_prompts import PackedPrompts
from bgpt_fast.generation.prompt import Generation


class Rows(NamedTuple):
    """The patches that a step decodes; each follows a patch that the step adds to the cache.

    Args:
        slots: int64 [N], the sequence of each.
        before: int16 [N, S], the complete patch before each.
        positions: int64 [N], its position in the cache.
        prefix_tokens: int16 [N, S], known tokens, then -1 from the first position that the model chooses on.
        max_tokens: int64 [N], tokens that still fit into the file, at most S.
        byte_offsets: int64 [N], each patch's byte offset in its file.
    """

    slots: NDArray[np.int64]
    before: NDArray[np.int16]
    positions: NDArray[np.int64]
    prefix_tokens: NDArray[np.int16]
    max_tokens: NDArray[np.int64]
    byte_offsets: NDArray[np.int64]

    def take(self, index: NDArray[np.int64]) -> Rows:
        """The rows at these places."""
        slots, before, positions, prefix_tokens, max_tokens, byte_offsets = self
        places = positions[index], prefix_tokens[index], max_tokens[index], byte_offsets[index]
        return Rows(slots[index], before[index], *places)


class Sequences:
    """Files that are being generated.

    Args:
        prompts: all files' prompts, of which `slots` are in progress at the same time.
        limits: int64 [n], maximum size of each file in bytes.
        slots: B.
    """

    def __init__(self, prompts: PackedPrompts, limits: NDArray[np.int64], slots: int) -> None:
        self.prompts, self._all_limits = prompts, limits
        self._S = S = prompts.patches.shape[1]
        most_patches = int((-(-limits // S) - prompts.sizes // S).max())
        self.index = np.zeros(slots, np.int64)  # of the prompt in the list
        self.rng_streams = np.zeros(slots, np.uint64)
        self.sizes, self.limits = np.zeros(slots, np.int64), np.zeros(slots, np.int64)  # bytes of the file
        self.finished, self.is_done = np.zeros(slots, np.bool_), np.zeros(slots, np.bool_)
        # The last complete patch, which is not in the decoder's cache yet, and its position there.
        self._last_patches = np.zeros((slots, S), np.int16)
        self._positions = np.zeros(slots, np.int64)
        self._prefix_tokens = np.zeros((slots, S), np.int16)  # of the next patch; then -1
        # The bytes from the first decoded patch on, and that patch's index; memory that is not written is not used.
        self._decoded = np.empty((slots, most_patches, S), np.uint8)
        self._first_patches = np.zeros(slots, np.int64)

    def add(self, slots: NDArray[np.int64], index: NDArray[np.int64]) -> None:
        """Begins files, one in each of these slots, from the prompts with these indices."""
        prompts, S, sizes = self.prompts, self._S, self.prompts.sizes[index]
        self.index[slots], self.rng_streams[slots] = index, prompts.rng_streams[index]
        self.sizes[slots], self.limits[slots] = sizes, self._all_limits[index]
        self.finished[slots], self.is_done[slots] = False, sizes >= self._all_limits[index]
        self._first_patches[slots] = sizes // S
        complete = self._complete_patches(index)
        self._positions[slots] = complete - 1
        last = prompts.offsets[index] + complete - 1
        self._last_patches[slots] = prompts.patches[last]
        is_cut = sizes % S > 0
        prefixes = np.full((len(slots), S), -1, np.int16)
        # The prompt's incomplete last patch is padded with 256.
        tokens = prompts.patches[last[is_cut] + 1]
        prefixes[is_cut] = np.where(tokens == EOP, -1, tokens)
        self._prefix_tokens[slots] = prefixes

    def prompt_patches(
        self, slots: NDArray[np.int64]
    ) -> tuple[NDArray[np.int16], NDArray[np.int64], NDArray[np.int64]]:
        """The complete patches of new files' prompts but the last: patches int16 [T, S], slots and positions [T]."""
        index = self.index[slots]
        counts = self._complete_patches(index) - 1
        ends = np.cumsum(counts)
        positions = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
        patches = self.prompts.patches[np.repeat(self.prompts.offsets[index], counts) + positions]
        return patches, np.repeat(slots, counts), positions

    def _complete_patches(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Patches of prompts, their sources and extension patches included, that are complete."""
        return self.prompts.source_patches[index] + 1 + self.prompts.sizes[index] // self._S

    def rows(self, slots: NDArray[np.int64]) -> Rows:
        """The next patch of each of these sequences."""
        sizes = self.sizes[slots]
        byte_offsets = sizes - sizes % self._S
        max_tokens = self.max_tokens(slots, byte_offsets)
        last, positions, prefix_tokens = self._last_patches[slots], self._positions[slots], self._prefix_tokens[slots]
        return Rows(slots, last, positions, prefix_tokens, max_tokens, byte_offsets)

    def following(self, rows: Rows) -> tuple[NDArray[np.int64], Rows]:
        """The patches after those of `rows` while these are being decoded; their `before` has no meaning.

        Files that ended earlier, or that these rows bring to their limit, have none; one that these rows end otherwise
        has one that is to be discarded.

        Returns:
            The places of those rows that another follows, int64 [M], and these M others.
        """
        byte_offsets = rows.byte_offsets + self._S
        index = np.flatnonzero(~self.is_done[rows.slots] & (byte_offsets < self.limits[rows.slots]))
        slots, before, positions, prefix_tokens, _, _ = rows.take(index)
        byte_offsets, unknown = byte_offsets[index], np.full_like(prefix_tokens, -1)
        max_tokens = self.max_tokens(slots, byte_offsets)
        return index, Rows(slots, before, positions + 1, unknown, max_tokens, byte_offsets)

    def max_tokens(self, slots: NDArray[np.int64], byte_offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 [N]: how many tokens of a patch at this offset of the file in this slot are within its limit."""
        return np.minimum(self.limits[slots] - byte_offsets, self._S)

    def update(
        self,
        rows: Rows,
        tokens: NDArray[np.int16],
        counts: NDArray[np.int64],
        last: NDArray[np.int64] | None = None,
    ) -> int:
        """Appends decoded rows to their files.

        Args:
            rows: the decoded ones.
            tokens: int16 [N, S].
            counts: int64 [N], tokens decoded in each row.
            last: int64 [R], index of the last row that belongs to each file, where a sequence has several rows; what
                follows it is discarded.

        Returns:
            The number of new bytes.
        """
        S = self._S
        # Also tokens past a file's size, which have no meaning there.
        self._decoded[rows.slots, rows.byte_offsets // S - self._first_patches[rows.slots]] = tokens
        if last is not None:
            rows, tokens, counts = rows.take(last), tokens[last], counts[last]
        slots, finished = rows.slots, tokens[np.arange(len(counts)), counts - 1] == EOP
        sizes = rows.byte_offsets + counts - finished
        new_bytes = int((sizes - self.sizes[slots]).sum())
        self.sizes[slots], self.finished[slots] = sizes, finished
        self.is_done[slots] = finished | (sizes >= self.limits[slots])
        if last is None:
            self._positions[slots], self._last_patches[slots], self._prefix_tokens[slots] = (
                rows.positions + 1,
                tokens,
                -1,
            )
            return new_bytes
        # A patch that is not complete, after a wrong draft, is decoded again: its tokens are the prefix.
        is_full = counts == S
        self._positions[slots] = rows.positions + is_full
        self._last_patches[slots] = np.where(is_full[:, None], tokens, rows.before)
        is_known = ~is_full[:, None] & (np.arange(S) < counts[:, None])
        self._prefix_tokens[slots] = np.where(is_known, tokens, -1)
        return new_bytes

    def content(self, slot: int) -> bytes:
        """A file's bytes so far."""
        index, size = int(self.index[slot]), int(self.sizes[slot])
        prompt = self.prompts.data[index]
        start = len(prompt) // self._S * self._S
        if size == len(prompt):
            return prompt
        return prompt[:start] + self._decoded[slot].reshape(-1)[: size - start].tobytes()

    def result(self, slot: int, drafted: int = 0, accepted: int = 0) -> tuple[int, Generation]:
        """The prompt's index and the generated file."""
        index = int(self.index[slot])
        prompt_bytes = len(self.prompts.data[index])
        return index, Generation(self.content(slot), bool(self.finished[slot]), prompt_bytes, drafted, accepted)
