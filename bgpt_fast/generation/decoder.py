"""The two decoders of a bGPT over caches of keys and values, operation by operation in torch.

It generates and scores where there is nothing faster: the CPU has `CpuDecoder`, CUDA `CudaDecoder`, which are both
tested against this one. On the CPU every operation here gives a token the same bits whatever else is in the call:
`invariant_linear`, `cached_attention` and `patch_embed` by construction, layer norm, additions and look-ups because
torch computes them row by row. Shape letters: T tokens, N patches, D width, H heads, d = D / H, L positions a slot, B
slots, S bytes a patch, V = 257.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bgpt_fast.config import EOP
from bgpt_fast.generation.sampling import Sampling, choose
from bgpt_fast.generation.writing import DecodeRequest, DecodeResult
from bgpt_fast.kernels.cached_attention.op import cached_attention
from bgpt_fast.kernels.invariant_linear.op import invariant_linear
from bgpt_fast.kernels.patch_embed.op import patch_embed
from bgpt_fast.layers import Block, Conv1D, Transformer
from bgpt_fast.model import BGPT


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


class EagerDecoder:
    """Both decoders of a model in float32, with caches for `slots` sequences of up to `length` patches.

    Args:
        model: its weights are converted if they have another dtype. Later changes to them may be seen or not.
        slots: sequences that can be under way at once.
        length: patches a sequence.

    Raises:
        MemoryError: the caches do not fit.
    """

    def __init__(self, model: BGPT, slots: int, length: int) -> None:
        self.patch_size = model.config.patch_size
        self.device = model.byte_level_decoder.base.lm_head.weight.device
        try:
            self.patch_decoder = _CachedTransformer(model.patch_level_decoder.base, slots, length)
            self.byte_decoder = _CachedTransformer(model.byte_level_decoder.base.transformer, slots, self.patch_size)
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            raise MemoryError(str(error)) from error
        embedding = model.patch_level_decoder.patch_embedding
        self.patch_embedding = _float32(embedding.weight), _float32(embedding.bias)
        self.wte = _float32(model.byte_level_decoder.base.transformer.wte.weight)
        self.head = self.wte.t().contiguous()

    def features(self, patches: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """Features [T, D] of new patches int16 [T, S]; all patches before them in their slots must have been given."""
        return self.patch_decoder(patch_embed(patches, *self.patch_embedding), slots, positions)

    def logits(self, inputs: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """Logits [T, V] of the byte at `positions` of each slot's patch.

        Args:
            inputs: float32 [T, D], at position 0 the feature of the patch before, then `wte` of the byte before.
        """
        return invariant_linear(self.byte_decoder(inputs, slots, positions), self.head)

    def write(self, features: Tensor, writing: DecodeRequest, sampling: Sampling) -> DecodeResult:
        """Writes the patches behind `features` [N, D], without drafts."""
        assert writing.drafts is None
        N, S = writing.given.shape
        given, room = writing.given.tolist(), writing.room.tolist()
        tokens, counts = [[EOP] * S for _ in range(N)], [0] * N
        rows, inputs = list(range(N)), features
        for s in range(S):
            slots = torch.tensor(rows, device=features.device)
            logits = self.logits(inputs, slots, torch.full_like(slots, s))
            finite = logits.isfinite().all(1)
            if not bool(finite.all()):
                for row, good in zip(rows, finite.tolist(), strict=True):
                    counts[row] = counts[row] if good else -1
                return DecodeResult(tokens, counts)
            positions = [writing.starts[row] + s for row in rows]
            chosen = choose(logits, sampling, [writing.indices[row] for row in rows], positions)
            going = []
            for row, token in zip(rows, chosen, strict=True):
                is_given = given[row][s] >= 0
                tokens[row][s] = given[row][s] if is_given else token
                counts[row] = s + 1
                if s + 1 < room[row] and (is_given or token != EOP):
                    going.append(row)
            rows = going
            if not rows:
                break
            inputs = self.wte[torch.tensor([tokens[row][s] for row in rows], device=features.device)]
        return DecodeResult(tokens, counts)


def _float32(parameter: Tensor) -> Tensor:
    return parameter.detach().float().contiguous()
