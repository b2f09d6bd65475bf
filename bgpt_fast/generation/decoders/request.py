"""The input and the result of a decoder's `write`.

Shape letters: N patches, S bytes a patch, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bgpt_fast.kernels.byte_decode.sampling import Sampling


class DecodeRequest(NamedTuple):
    """N patches to decode. All tensors are on the decoder's device; those but `features` may be on the CPU.

    Args:
        features: float32 [N, D]: the patch decoder's feature of the patch before each one.
        prefix_tokens: int16 [N, S], known bytes, then -1 from the first position that the model chooses on.
        max_tokens: int64 [N], 1 … S: the number of tokens at which a patch ends.
        rng_streams: uint64 [N], the number of each file's random stream.
        byte_offsets: uint64 [N], each patch's byte offset in its file.
        sampling: how bytes are chosen.
        drafts: int16 [N, S] or None: guesses at the tokens after the prefix, then -1. CPU decoder only.
        verify: bool [N] or None: True for rows that end after their first wrong draft.
    """

    features: Tensor
    prefix_tokens: Tensor
    max_tokens: Tensor
    rng_streams: Tensor
    byte_offsets: Tensor
    sampling: Sampling
    drafts: Tensor | None = None
    verify: Tensor | None = None


@dataclass(frozen=True, eq=False)
class DecodeResult:
    """The tokens of N patches, on the CPU; results with the same tokens and counts are equal.

    Args:
        tokens: int16 [N, S]; the config's `fill` at the positions after the end.
        counts: int64 [N], tokens up to the end, including the `eop` that the model chose; -1 where logits were NaN or
            infinite.
        drafted: int64 [N, 2], number of tokens that the decoder's drafter proposed, and of those that were right; None
            without a drafter.
    """

    tokens: Tensor
    counts: Tensor
    drafted: Tensor | None = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DecodeResult):
            return NotImplemented
        return torch.equal(self.tokens, other.tokens) and torch.equal(self.counts, other.counts)

    __hash__ = None  # type: ignore[assignment]


class PendingResult(NamedTuple):
    """N patches that are being decoded.

    Args:
        tokens: int16 [N, S] on the decoder's device, as DecodeResult's; to be read there by what is launched after.
        wait: waits for the result.
    """

    tokens: Tensor
    wait: Callable[[], DecodeResult]
