"""A file under way: what has been written of it, what is asked of the decoder next, and what becomes of the answer.

Shape letters: T patches, S bytes a patch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bgpt_fast.config import EOP
from bgpt_fast.generation.prompt import Generation

_NONE = -1
LEAST, MOST = 4, 1024  # bytes to guess at: the most, then twice what was right the last time, in these bounds


class Row(NamedTuple):
    """A patch to write: S tokens that are given and S guesses, -1 from where there are none; the tokens that there is
    room for; the bytes of the file before it; and whether to stop behind the first wrong guess."""

    given: list[int]
    guesses: list[int]
    room: int
    start: int
    verify: bool


class Sequence:
    """A file under way.

    Args:
        place: of its prompt in the list.
        index: its random stream.
        data: the prompt's bytes.
        limit: the bytes that it may have.
        patches: int16 [T, S], the whole patches of the prompt, that of the extension and `before` ones of a source
            included.
        before: patches of the source.
    """

    def __init__(self, place: int, index: int, data: bytes, limit: int, patches: Tensor, before: int) -> None:
        self.place, self.index, self.limit = place, index, limit
        self.data = bytearray(data)
        self.prompt_bytes = len(data)
        self.before = before
        self.size = patches.shape[1]
        self.start = (len(patches) - before - 1) * self.size  # of the patch to write next
        self.pending = patches  # what the patch decoder has not seen yet, after `cached` patches that it has
        self.cached = 0
        self.slot = -1
        self.finished = False
        self.window = MOST
        self.drafted = self.accepted = 0
        self._known = b""
        self._rows: list[Row] = []

    @property
    def done(self) -> bool:
        return self.finished or len(self.data) >= self.limit

    def ask(self, draft: bytes = b"") -> tuple[Tensor, list[Row]]:
        """What to do next.

        Args:
            draft: guesses at the bytes behind `data`.

        Returns:
            The patches [T, S] for the patch decoder, at positions `cached` and on, of which the last ones lead to a row
            each; and the rows, more than one where whole patches are guessed.
        """
        S = self.size
        given = self.data[self.start :]
        self._known = bytes(given + draft[: self.window])[: self.limit - self.start]
        count = max(1, -(-len(self._known) // S))
        self._rows = []
        for k in range(count):
            own = list(given) if k == 0 else []
            guesses = list(self._known[k * S : (k + 1) * S])
            self._rows.append(
                Row(
                    own + [_NONE] * (S - len(own)),
                    guesses + [_NONE] * (S - len(guesses)),
                    min(S, self.limit - self.start - k * S),
                    self.start + k * S,
                    verify=k > 0,
                )
            )
        patches = self.pending
        if count > 1:
            guessed = torch.tensor([row.guesses for row in self._rows[:-1]], dtype=torch.int16, device="cpu")
            patches = torch.cat([patches, guessed])
        return patches, self._rows

    def is_damaged(self, patches: list[list[int]], counts: list[int]) -> bool:
        """Whether a row has NaN or infinite logits that is not behind a wrong guess."""
        for row, patch, count in zip(self._rows, patches, counts, strict=True):
            if count < 0 or patch != row.guesses:
                return count < 0
        return False

    def take(self, patches: list[list[int]], counts: list[int]) -> None:
        """Accepts the rows that were asked for, of which `counts` tokens were written, up to the first wrong guess."""
        before, S = len(self.data), self.size
        feature = self.cached + len(self.pending) - 1  # position of the patch whose feature the first row came from
        for k, (row, patch, count) in enumerate(zip(self._rows, patches, counts, strict=True)):
            self.finished = patch[count - 1] == EOP
            self.data[row.start :] = bytes(patch[: count - self.finished])
            if k + 1 < len(self._rows) and patch == row.guesses:
                continue
            if count == S:
                self.start, self.cached = row.start + S, feature + k + 1
                self.pending = torch.tensor([patch], dtype=torch.int16, device="cpu")
            elif not self.done:
                # Amid a patch: its feature is computed again, from the patch before it.
                self.start, self.cached = row.start, feature + k
                self.pending = torch.tensor([patches[k - 1]], dtype=torch.int16, device="cpu")
            break
        self._count(before)

    def _count(self, before: int) -> None:
        guesses = self._known[before - self._rows[0].start :]
        written = self.data[before:]
        right = 0
        while right < min(len(guesses), len(written)) and guesses[right] == written[right]:
            right += 1
        self.drafted += len(guesses)
        self.accepted += right
        if guesses:
            self.window = min(max(2 * right, LEAST), MOST)

    def result(self) -> Generation:
        return Generation(bytes(self.data), self.finished, self.prompt_bytes, self.drafted, self.accepted)
