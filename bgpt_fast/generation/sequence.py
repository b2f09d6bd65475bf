"""A file that is being generated: its bytes so far, the next decoding step, and the update from the step's result.

Shape letters: T patches, S bytes a patch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bgpt_fast.config import EOP
from bgpt_fast.generation.prompt import Generation

MIN_DRAFT_BYTES, MAX_DRAFT_BYTES = 4, 1024
"""Minimum and maximum number of drafted bytes that a step verifies. The first step uses the maximum; each later one
twice as many as were correct in the previous step, within these limits."""


class Row(NamedTuple):
    """A patch to decode.

    Args:
        prefix_tokens: S tokens; -1 from the first position that the model chooses on.
        drafts: S guesses at the patch's tokens, -1 where there is none.
        max_tokens: tokens that still fit into the file.
        byte_offset: offset of the patch's first byte in the file.
        verify: whether to stop after the first wrong draft.
    """

    prefix_tokens: list[int]
    drafts: list[int]
    max_tokens: int
    byte_offset: int
    verify: bool


class DecodeStep(NamedTuple):
    """What a sequence needs next from the decoder.

    Args:
        patches: int16 [T, S] for the prefill, at the sequence's positions from `cached_patches` on.
        rows: patches to decode; each follows one of the last patches of the prefill.
    """

    patches: Tensor
    rows: list[Row]


class Sequence:
    """A file that is being generated.

    Args:
        prompt_index: index of its prompt in the list.
        rng_stream: number of its random stream.
        data: the prompt's bytes.
        limit: maximum size of the file in bytes.
        patches: int16 [T, S]: the source's patches, the extension patch, and the prompt's complete patches.
        source_patches: number of patches of the source.
    """

    def __init__(
        self, prompt_index: int, rng_stream: int, data: bytes, limit: int, patches: Tensor, source_patches: int
    ) -> None:
        self.prompt_index, self.rng_stream, self.limit = prompt_index, rng_stream, limit
        self.data = bytearray(data)
        self.prompt_bytes = len(data)
        self.source_patches = source_patches
        self.patch_size = patches.shape[1]
        self.byte_offset = (len(patches) - source_patches - 1) * self.patch_size  # of the next patch to decode
        self.pending = patches  # patches that are not in the decoder's cache yet
        self.cached_patches = 0
        self.slot = -1
        self.finished = False
        self.draft_limit = MAX_DRAFT_BYTES
        self.num_drafted = self.num_accepted = 0
        self._expected = b""  # the bytes from `byte_offset` on, drafted ones included
        self._rows: list[Row] = []

    @property
    def done(self) -> bool:
        """Whether generation of the file has ended."""
        return self.finished or len(self.data) >= self.limit

    def prepare(self, draft: bytes = b"") -> DecodeStep:
        """The next step of decoding.

        Args:
            draft: a guess at the bytes that follow `data`. Each patch that it fills adds a row.
        """
        S = self.patch_size
        prefix = self.data[self.byte_offset :]
        self._expected = bytes(prefix + draft[: self.draft_limit])[: self.limit - self.byte_offset]
        self._rows = [
            Row(
                _padded(prefix if k == 0 else b"", S),
                _padded(self._expected[k * S : (k + 1) * S], S),
                max_tokens=min(S, self.limit - self.byte_offset - k * S),
                byte_offset=self.byte_offset + k * S,
                verify=k > 0,
            )
            for k in range(max(1, -(-len(self._expected) // S)))
        ]
        patches = self.pending
        if len(self._rows) > 1:
            drafted = torch.tensor([row.drafts for row in self._rows[:-1]], dtype=torch.int16, device="cpu")
            patches = torch.cat([patches, drafted])
        return DecodeStep(patches, self._rows)

    def is_damaged(self, patches: list[list[int]], counts: list[int]) -> bool:
        """Whether a row has NaN or infinite logits, apart from rows after a wrong draft, which are discarded."""
        for row, patch, count in zip(self._rows, patches, counts, strict=True):
            if count < 0 or patch != row.drafts:
                return count < 0
        return False

    def update(self, patches: list[list[int]], counts: list[int]) -> None:
        """Appends the tokens of the step's rows up to the first wrong draft.

        Args:
            patches: S tokens for each row.
            counts: number of tokens decoded in each row.
        """
        size_before, S = len(self.data), self.patch_size
        position = self.cached_patches + len(self.pending) - 1  # of the patch before the first row
        for k, (row, patch, count) in enumerate(zip(self._rows, patches, counts, strict=True)):
            self.finished = patch[count - 1] == EOP
            self.data[row.byte_offset :] = bytes(patch[: count - self.finished])
            if k + 1 < len(self._rows) and patch == row.drafts:
                continue
            if count == S:
                self.byte_offset, self.cached_patches = row.byte_offset + S, position + k + 1
                self.pending = torch.tensor([patch], dtype=torch.int16, device="cpu")
            elif not self.done:
                # A wrong draft within the patch: the patch before it is recomputed, for its feature.
                self.byte_offset, self.cached_patches = row.byte_offset, position + k
                self.pending = torch.tensor([patches[k - 1]], dtype=torch.int16, device="cpu")
            break
        self._count_drafts(size_before)

    def _count_drafts(self, size_before: int) -> None:
        drafts = self._expected[size_before - self._rows[0].byte_offset :]
        new = self.data[size_before:]
        right = 0
        while right < min(len(drafts), len(new)) and drafts[right] == new[right]:
            right += 1
        self.num_drafted += len(drafts)
        self.num_accepted += right
        if drafts:
            self.draft_limit = min(max(2 * right, MIN_DRAFT_BYTES), MAX_DRAFT_BYTES)

    def result(self) -> Generation:
        """The generated file."""
        return Generation(bytes(self.data), self.finished, self.prompt_bytes, self.num_drafted, self.num_accepted)


def _padded(data: bytes | bytearray, size: int) -> list[int]:
    return [*data, *[-1] * (size - len(data))]
