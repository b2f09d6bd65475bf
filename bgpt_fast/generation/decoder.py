"""The two decoders of a bGPT over caches of keys and values, from operations that treat each token on its own.

On the CPU every operation here gives a token the same bits whatever else is in the call: `invariant_linear`,
`cached_attention` and `patch_embed` by construction, layer norm, additions and look-ups because torch computes them row
by row. Shape letters: T tokens, D width, H heads, d = D / H, L positions a slot, B slots, S bytes a patch, V = 257.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bgpt_fast.kernels.cached_attention.op import cached_attention
from bgpt_fast.kernels.invariant_linear.op import invariant_linear
from bgpt_fast.kernels.patch_embed.op import patch_embed
from bgpt_fast.layers import Block, Conv1D, Transformer
from bgpt_fast.model import BGPT

_TOKENS_AT_ONCE = 512  # bounds the activations of a prefill; enough to keep the products at full speed


class _Norm:
    def __init__(self, norm: nn.LayerNorm) -> None:
        self.weight, self.bias, self.eps = _float32(norm.weight), _float32(norm.bias), norm.eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[1:], self.weight, self.bias, self.eps)


class _Linear:
    def __init__(self, linear: Conv1D) -> None:
        self.weight, self.bias = _float32(linear.weight), _float32(linear.bias)

    def __call__(self, x: Tensor, gelu: bool = False) -> Tensor:
        return invariant_linear(x, self.weight, self.bias, gelu=gelu)


class _Block:
    """A layer and its cache."""

    def __init__(self, block: Block, slots: int, length: int) -> None:
        self.ln_1, self.c_attn, self.attn_proj = (
            _Norm(block.ln_1),
            _Linear(block.attn.c_attn),
            _Linear(block.attn.c_proj),
        )
        self.ln_2, self.c_fc, self.mlp_proj = _Norm(block.ln_2), _Linear(block.mlp.c_fc), _Linear(block.mlp.c_proj)
        heads = block.attn.heads
        width, device = self.attn_proj.weight.shape[1] // heads, self.attn_proj.weight.device
        self.keys = torch.empty(slots, heads, width, length, dtype=torch.float32, device=device)
        self.values = torch.empty(slots, heads, length, width, dtype=torch.float32, device=device)

    def __call__(self, x: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        attended = cached_attention(self.c_attn(self.ln_1(x)), self.keys, self.values, slots, positions)
        x = x + self.attn_proj(attended)
        return x + self.mlp_proj(self.c_fc(self.ln_2(x), gelu=True))


class _CachedTransformer:
    """GPT-2's positions, layers and final norm, for new tokens [T, D] at `positions` [T] of `slots` [T]."""

    def __init__(self, transformer: Transformer, slots: int, length: int) -> None:
        self.wpe = _float32(transformer.wpe.weight)
        self.blocks = [_Block(cast(Block, block), slots, length) for block in transformer.h]
        self.ln_f = _Norm(transformer.ln_f)

    def __call__(self, x: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        x = x + self.wpe[positions]
        for block in self.blocks:
            x = block(x, slots, positions)
        return self.ln_f(x)


class CachedDecoder:
    """Both decoders of a model in float32, with caches for `slots` sequences of up to `length` patches.

    Args:
        model: its weights are converted if they have another dtype. Later changes to them may be seen or not.
        slots: sequences that can be under way at once.
        length: patches a sequence.

    Raises:
        MemoryError: the caches do not fit.
    """

    def __init__(self, model: BGPT, slots: int, length: int) -> None:
        config = model.config
        self.patch_size = config.patch_size
        try:
            self.patch_decoder = _CachedTransformer(model.patch_level_decoder.base, slots, length)
            self.byte_decoder = _CachedTransformer(model.byte_level_decoder.base.transformer, slots, self.patch_size)
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            entries = config.patch_num_layers * length + config.byte_num_layers * self.patch_size
            size = 8 * slots * config.hidden_size * entries / 2**30
            raise MemoryError(
                f"Generator: no memory for the caches of {slots} sequences of {length} patches, {size:.1f} GiB; "
                "lower max_batch or max_new_bytes"
            ) from error
        embedding = model.patch_level_decoder.patch_embedding
        # Transposed twice: the rows that patch_embed gathers are laid out once, not at each call.
        self.patch_embedding = embedding.weight.detach().float().t().contiguous().t(), _float32(embedding.bias)
        self.wte = _float32(model.byte_level_decoder.base.transformer.wte.weight)
        self.head = self.wte.t().contiguous()

    def features(self, patches: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """Features [T, D] of new patches int16 [T, S]; all patches before them in their slots must have been given."""
        parts = []
        for start in range(0, len(patches), _TOKENS_AT_ONCE):
            part = slice(start, start + _TOKENS_AT_ONCE)
            embeddings = patch_embed(patches[part], *self.patch_embedding)
            parts.append(self.patch_decoder(embeddings, slots[part], positions[part]))
        return torch.cat(parts)

    def logits(self, inputs: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """Logits [T, V] of the byte at `positions` of each slot's patch.

        Args:
            inputs: float32 [T, D], at position 0 the feature of the patch before, then `wte` of the byte before.
        """
        return invariant_linear(self.byte_decoder(inputs, slots, positions), self.head)


def _float32(parameter: Tensor) -> Tensor:
    return parameter.detach().float().contiguous()
