"""The CPU decoder of a model with a drafter, a smaller model that guesses the next bytes of each patch.

One pass of the model verifies all guesses, which reads its weights once where it would read them for each byte; that is
most of the time when one file is generated. A guess never changes a byte.

Shape letters: T patches of prefill, N patches to decode, S bytes a patch, D width of the model, E of the drafter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bgpt_fast.generation.decoders.cpu import CpuDecoder
from bgpt_fast.generation.decoders.request import DecodeRequest, DecodeResult
from bgpt_fast.kernels.byte_decode.op import ByteDrafter, byte_decode


class DraftedDecoder:
    """Both models' decoders, with the same slots; implements `Decoder`.

    Its features are float32 [T, D + E]: the model's, then the drafter's.
    """

    def __init__(self, decoder: CpuDecoder, drafter: CpuDecoder) -> None:
        self.device = decoder.device
        self._decoder, self._drafter = decoder, drafter
        self._width = decoder.weights.byte_decoder.width

    def prefill(self, patches: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """As `Decoder.prefill`."""
        arguments = patches, slots, positions
        return torch.cat([self._decoder.prefill(*arguments), self._drafter.prefill(*arguments)], dim=1)

    def write(self, request: DecodeRequest) -> DecodeResult:
        """As `Decoder.write`."""
        features, draft_features = request.features[:, : self._width], request.features[:, self._width :]
        drafter = ByteDrafter(self._drafter.weights.byte_decoder, draft_features)
        call = request._replace(features=features)
        tokens, counts, _, drafted = byte_decode(self._decoder.weights.byte_decoder, *call, drafter=drafter)
        return DecodeResult(tokens, counts, drafted)

    def logits(self, features: Tensor, tokens: Tensor, count: int) -> Tensor:
        """As `Decoder.logits`."""
        return self._decoder.logits(features[:, : self._width].contiguous(), tokens, count)
