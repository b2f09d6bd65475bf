"""The two decoders of a bGPT on the CPU, each step of either in one call of C++ from weights that are packed once.

Shape letters: T tokens, N patches, D width, S bytes a patch, B slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

import numpy as np
import torch
from torch import Tensor

from bgpt_fast.config import VOCAB_SIZE
from bgpt_fast.generation.packed import Layer, PackedByteDecoder, PackedCache, PackedTransformer
from bgpt_fast.generation.sampling import Sampling
from bgpt_fast.generation.writing import DecodeRequest, DecodeResult
from bgpt_fast.kernels.patch_embed.op import patch_embed
from bgpt_fast.layers import Block, Transformer
from bgpt_fast.model import BGPT


class PackedModel:
    """A model's weights as they are now, packed for `precision`; `nbytes` is what the packed ones take.

    The embeddings of patches are shared with the model where it is float32, and copied otherwise.
    """

    def __init__(self, model: BGPT, precision: str) -> None:
        config = model.config
        byte_transformer = model.byte_level_decoder.base.transformer
        self.patch_decoder = _packed(model.patch_level_decoder.base, config.patch_heads, precision)
        byte_decoder = _packed(byte_transformer, config.byte_heads, precision)
        self.byte_decoder = PackedByteDecoder(byte_decoder, byte_transformer.wte.weight, config.patch_size)
        self.nbytes = self.patch_decoder.nbytes + byte_decoder.nbytes
        embedding = model.patch_level_decoder.patch_embedding
        self.patch_embedding = tuple(
            parameter.detach().float().contiguous() for parameter in (embedding.weight, embedding.bias)
        )


class CpuDecoder:
    """A packed model with a cache for `slots` sequences of up to `length` patches.

    Every token's bits depend on that token and on what it sees alone.

    Raises:
        MemoryError: the cache does not fit.
    """

    def __init__(self, model: PackedModel, slots: int, length: int) -> None:
        self.model = model
        self.device = torch.device("cpu")
        self.cache = PackedCache(model.patch_decoder, slots, length)

    def features(self, patches: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """Features [T, D] of new patches int16 [T, S]; all patches before them in their slots must have been given."""
        embeddings = patch_embed(patches, *self.model.patch_embedding)
        return self.model.patch_decoder.features(embeddings, self.cache, slots, positions)

    def write(self, features: Tensor, writing: DecodeRequest, sampling: Sampling) -> DecodeResult:
        """Writes the patches behind `features` [N, D]."""
        decoded = self.model.byte_decoder.decode(
            features,
            writing.given,
            writing.room,
            torch.tensor(writing.indices, dtype=torch.uint64, device=self.device),
            torch.tensor(writing.starts, dtype=torch.uint64, device=self.device),
            drafts=writing.drafts,
            verify=writing.verify,
            temperature=sampling.temperature,
            top_k=min(sampling.top_k, VOCAB_SIZE),
            top_p=sampling.top_p,
            seed=sampling.seed,
        )
        return DecodeResult(decoded.tokens.tolist(), decoded.counts.tolist())


def state_of(parameters: Iterable[Tensor]) -> Iterator[object]:
    """What tells, held against what it was before, whether any of these tensors, which are on the CPU, has changed.

    Torch counts most changes in place, but not a fused optimizer's, those through `.data`, or any of a tensor of
    inference mode: these show in the sum of all 64-bit words of its content.
    """
    for parameter in parameters:
        version = 0 if parameter.is_inference() else parameter._version
        content = parameter.detach().contiguous().view(-1).view(torch.uint8).numpy()
        whole = len(content) // 8 * 8
        total = int(content[:whole].view(np.uint64).sum()) + int.from_bytes(content[whole:].tobytes(), "little")
        yield id(parameter), parameter.data_ptr(), version, total


def _packed(transformer: Transformer, heads: int, precision: str) -> PackedTransformer:
    layers = []
    for module in transformer.h:
        block = cast(Block, module)
        linears = (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)
        c_attn, attn_proj, c_fc, mlp_proj = ((linear.weight, linear.bias) for linear in linears)
        norms = [(norm.weight, norm.bias) for norm in (block.ln_1, block.ln_2)]
        layers.append(Layer(*norms[0], *c_attn, *attn_proj, *norms[1], *c_fc, *mlp_proj))
    norm = transformer.ln_f
    last = (norm.weight, norm.bias)
    return PackedTransformer(layers, last, transformer.wpe.weight, heads=heads, eps=norm.eps, precision=precision)
