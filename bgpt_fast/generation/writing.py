"""What the engine asks of a decoder for a round of patches, and what it gets.

Shape letters: N patches, S bytes a patch.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class DecodeRequest(NamedTuple):
    """A patch to write for each of N files.

    Args:
        given: int16 [N, S], on the CPU: the prompt's bytes, then -1 from where the model writes.
        room: int64 [N], on the CPU, 1 … S: bytes after which a patch is cut.
        drafts: int16 [N, S] or None: guesses at what the model writes, -1 from where there is none.
        verify: bool [N] or None: rows that end behind the first wrong guess.
        indices: N; each file's random stream.
        starts: N; bytes of each file before its patch.
    """

    given: Tensor
    room: Tensor
    drafts: Tensor | None
    verify: Tensor | None
    indices: list[int]
    starts: list[int]


class DecodeResult(NamedTuple):
    """tokens: N lists of S, `EOP` where the model ended the file and behind it; counts: N, tokens up to the end, that
    `EOP` included, or -1 where the model gave NaN or infinite logits."""

    tokens: list[list[int]]
    counts: list[int]
