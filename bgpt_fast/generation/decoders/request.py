"""What a decoder is asked to decode, and what it returns.

Shape letters: N patches, S bytes a patch, D width.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from bgpt_fast.kernels.byte_decode.sampling import Sampling


class DecodeRequest(NamedTuple):
    """N patches to decode. All tensors but `features` are on the CPU.

    Args:
        features: float32 [N, D] on the decoder's device: the patch decoder's feature of the patch before each.
        prefix_tokens: int16 [N, S], bytes that are known, then -1 from the first one that the model chooses.
        max_tokens: int64 [N], 1 … S: tokens after which a patch ends.
        rng_streams: uint64 [N], each file's random stream.
        byte_offsets: uint64 [N], bytes of each file before its patch.
        sampling: how bytes are chosen.
        drafts: int16 [N, S] or None: guesses at the tokens after the prefix, then -1. Only the CPU decoder takes them.
        verify: bool [N] or None: rows that end after their first wrong draft.
    """

    features: Tensor
    prefix_tokens: Tensor
    max_tokens: Tensor
    rng_streams: Tensor
    byte_offsets: Tensor
    sampling: Sampling
    drafts: Tensor | None = None
    verify: Tensor | None = None


class DecodeResult(NamedTuple):
    """The tokens of N patches.

    Args:
        tokens: N lists of S tokens; `EOP` where the model ended the file, and after the end.
        counts: N; tokens up to the end, that `EOP` included, or -1 where logits were NaN or infinite.
    """

    tokens: list[list[int]]
    counts: list[int]
