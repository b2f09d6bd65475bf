"""The CPU decoder: the patch decoder's layers in one C++ call, and all bytes of a patch in one call of the op
`byte_decode`, both with weights that are packed once.

Shape letters: T tokens, N patches, D width, S bytes a patch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

import numpy as np
import torch
from torch import Tensor

from bgpt_fast.generation.decoders.request import DecodeRequest, DecodeResult
from bgpt_fast.kernels.byte_decode.op import byte_decode
from bgpt_fast.kernels.byte_decode.packed import Layer, PackedByteDecoder, PackedCache, PackedTransformer
from bgpt_fast.kernels.patch_embed.op import patch_embed
from bgpt_fast.layers import Block, Transformer
from bgpt_fast.model import BGPT


class CpuDecoder:
    """Packed weights with a cache for `slots` sequences of up to `length` patches; implements `Decoder`.

    The bits computed for a token depend only on that token and on the tokens that it attends to.
    """

    def __init__(self, weights: CpuWeights, slots: int, length: int) -> None:
        self.weights = weights
        self.device = torch.device("cpu")
        self.cache = PackedCache(weights.patch_decoder, slots, length)

    def prefill(self, patches: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """As `Decoder.prefill`."""
        embeddings = patch_embed(patches, *self.weights.patch_embedding)
        return self.weights.patch_decoder.features(embeddings, self.cache, slots, positions)

    def write(self, request: DecodeRequest) -> DecodeResult:
        """As `Decoder.write`."""
        decoded = byte_decode(self.weights.byte_decoder, *request)
        return DecodeResult(decoded.tokens, decoded.counts)

    def logits(self, features: Tensor, tokens: Tensor, count: int) -> Tensor:
        """As `Decoder.logits`."""
        zeros = torch.zeros(len(tokens), dtype=torch.uint64, device=self.device)
        max_tokens = torch.full((len(tokens),), count, dtype=torch.int64, device=self.device)
        decoder = self.weights.byte_decoder
        decoded = byte_decode(decoder, features, tokens, max_tokens, zeros, zeros, return_logits=True)
        if bool((decoded.counts < 0).any()):
            raise FloatingPointError("NaN or infinite logits; the model's weights are damaged or too large")
        assert decoded.logits is not None
        return decoded.logits


class CpuWeights:
    """A packed copy of a model's weights as they are now; later changes of the model's do not change it.

    Args:
        model: on the CPU.
        precision: one of PRECISIONS.
    """

    def __init__(self, model: BGPT, precision: str) -> None:
        config = model.config
        byte_transformer = model.byte_level_decoder.base.transformer
        self.patch_decoder = _pack(model.patch_level_decoder.base, config.patch_heads, precision)
        byte_decoder = _pack(byte_transformer, config.byte_heads, precision)
        self.byte_decoder = PackedByteDecoder(
            byte_decoder, byte_transformer.wte.weight, config.patch_size, eop=config.eop, fill=config.fill
        )
        self.nbytes = self.patch_decoder.nbytes + byte_decoder.nbytes
        embedding = model.patch_level_decoder.patch_embedding
        weight, bias = (parameter.detach().to(torch.float32, copy=True) for parameter in embedding.parameters())
        self.patch_embedding = weight.contiguous(), bias.contiguous()


def fingerprint(parameters: Iterable[Tensor]) -> Iterator[object]:
    """Values that change when one of these tensors on the CPU changes or is replaced.

    Torch's version counter misses changes by a fused optimizer, through `.data`, or to inference-mode tensors; the sum
    of the content's 64-bit words, which is included, detects these.
    """
    for parameter in parameters:
        version = 0 if parameter.is_inference() else parameter._version
        content = parameter.detach().contiguous().view(-1).view(torch.uint8).numpy()
        in_words = len(content) // 8 * 8
        total = int(content[:in_words].view(np.uint64).sum()) + int.from_bytes(content[in_words:].tobytes(), "little")
        yield id(parameter), parameter.data_ptr(), version, total


def _pack(transformer: Transformer, heads: int, precision: str) -> PackedTransformer:
    layers = []
    for module in transformer.h:
        block = cast(Block, module)
        attention = block.ln_1, block.attn.c_attn, block.attn.c_proj
        mlp = block.ln_2, block.mlp.c_fc, block.mlp.c_proj
        layers.append(Layer(*(tensor for part in (*attention, *mlp) for tensor in (part.weight, part.bias))))
    ln_f = transformer.ln_f
    return PackedTransformer(
        layers, (ln_f.weight, ln_f.bias), transformer.wpe.weight, heads=heads, eps=ln_f.eps, precision=precision
    )
