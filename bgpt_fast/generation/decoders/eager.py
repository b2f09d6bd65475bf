"""The decoder for all other devices: operation by operation in torch, with key-value caches.

The CPU and CUDA decoders are tested against it. On the CPU every operation here gives a token the same bits, whatever
other tokens are in the call: `invariant_linear`, `cached_attention` and `patch_embed` by construction; layer norm,
additions and look-ups because torch computes them row by row.

Shape letters: T tokens, N patches, D width, H heads, d = D / H, L positions a slot, B slots, S bytes a patch, V tokens.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bgpt_fast.generation.decoders.request import DecodeRequest, DecodeResult
from bgpt_fast.kernels.byte_decode.reference import byte_decode_accept_reference
from bgpt_fast.kernels.cached_attention.op import cached_attention
from bgpt_fast.kernels.invariant_linear.op import invariant_linear
from bgpt_fast.kernels.patch_embed.op import patch_embed
from bgpt_fast.layers import Block, Conv1D, Transformer
from bgpt_fast.model import BGPT


class EagerDecoder:
    """A model's patch decoder and byte decoder in float32; implements `Decoder`.

    Args:
        model: its weights are converted if they have another dtype. Later changes to them may or may not take effect.
        slots: sequences in the cache.
        length: patches a sequence.
    """

    def __init__(self, model: BGPT, slots: int, length: int) -> None:
        byte_transformer = model.byte_level_decoder.base.transformer
        self.eop, self.fill = model.config.eop, model.config.fill
        self.device = byte_transformer.wte.weight.device
        self.patch_decoder = _Transformer(model.patch_level_decoder.base)
        self.byte_decoder = _Transformer(byte_transformer)
        self._cache = self.patch_decoder.new_cache(slots, length)
        embedding = model.patch_level_decoder.patch_embedding
        self.patch_embedding = _float32(embedding.weight), _float32(embedding.bias)
        self.wte = _float32(byte_transformer.wte.weight)
        self.head = self.wte.t().contiguous()

    def prefill(self, patches: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """As `Decoder.prefill`."""
        return self.patch_decoder(patch_embed(patches, *self.patch_embedding), self._cache, slots, positions)

    def write(self, request: DecodeRequest) -> DecodeResult:
        """As `Decoder.write`, without drafts."""
        assert request.drafts is None
        N, S = request.prefix_tokens.shape
        streams, offsets = (numbers.view(torch.int64) for numbers in (request.rng_streams, request.byte_offsets))
        inputs = request.prefix_tokens, request.max_tokens, streams, offsets
        prefix, max_tokens, streams, offsets = (values.to(self.device) for values in inputs)
        tokens, active = torch.full_like(prefix, self.fill), torch.ones_like(max_tokens, dtype=torch.uint8)
        counts, next_tokens = torch.zeros_like(max_tokens), torch.zeros_like(max_tokens)
        call = prefix, max_tokens, streams, offsets, request.sampling.to_tensor(), tokens, counts, next_tokens, active
        rows, cache = torch.arange(N, device=self.device), self.byte_decoder.new_cache(N, S)
        for s in range(S):
            x = request.features if s == 0 else self.wte[next_tokens]
            byte_decode_accept_reference(self._step(x, cache, rows, s), *call, s, self.eop)
            if not bool(active.any()):
                break
        return DecodeResult(tokens.cpu(), counts.cpu())

    def logits(self, features: Tensor, tokens: Tensor, count: int) -> Tensor:
        """As `Decoder.logits`."""
        N, S = tokens.shape
        logits = features.new_full((N, S, len(self.wte)), torch.nan)
        rows, cache = torch.arange(N, device=self.device), self.byte_decoder.new_cache(N, S)
        for s in range(count):
            inputs = features if s == 0 else self.wte[tokens[:, s - 1].long()]
            logits[:, s] = self._step(inputs, cache, rows, s)
        return logits

    def _step(self, inputs: Tensor, cache: _Cache, rows: Tensor, s: int) -> Tensor:
        """Logits [T, V] at position s of some rows.

        `inputs` [T, D]: at position 0 the feature of the previous patch, later `wte` of the previous byte.
        """
        return invariant_linear(self.byte_decoder(inputs, cache, rows, torch.full_like(rows, s)), self.head)


_Cache = list[tuple[Tensor, Tensor]]
"""For each layer keys [B, H, d, L] and values [B, H, L, d]."""


class _Transformer:
    """GPT-2's positions, layers and final norm in float32."""

    def __init__(self, transformer: Transformer) -> None:
        self.wpe = _float32(transformer.wpe.weight)
        self.blocks = [_Block(cast(Block, block)) for block in transformer.h]
        self.ln_f = _Norm(transformer.ln_f)

    def new_cache(self, slots: int, length: int) -> _Cache:
        """An uninitialised cache for `slots` sequences of up to `length` tokens."""

        def empty(heads: int, *shape: int) -> Tensor:
            return torch.empty(slots, heads, *shape, dtype=torch.float32, device=self.wpe.device)

        D = self.wpe.shape[1]
        sizes = [(block.heads, D // block.heads) for block in self.blocks]
        return [(empty(heads, width, length), empty(heads, length, width)) for heads, width in sizes]

    def __call__(self, x: Tensor, cache: _Cache, slots: Tensor, positions: Tensor) -> Tensor:
        """Features [T, D] of new tokens [T, D] at `positions` [T] of `slots` [T]."""
        x = x + self.wpe[positions]
        for block, (keys, values) in zip(self.blocks, cache, strict=True):
            x = block(x, keys, values, slots, positions)
        return self.ln_f(x)


class _Block:
    def __init__(self, block: Block) -> None:
        self.heads = block.attn.heads
        self.ln_1, self.ln_2 = _Norm(block.ln_1), _Norm(block.ln_2)
        self.c_attn, self.attn_proj = _Linear(block.attn.c_attn), _Linear(block.attn.c_proj)
        self.c_fc, self.mlp_proj = _Linear(block.mlp.c_fc), _Linear(block.mlp.c_proj)

    def __call__(self, x: Tensor, keys: Tensor, values: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        x = x + self.attn_proj(cached_attention(self.c_attn(self.ln_1(x)), keys, values, slots, positions))
        return x + self.mlp_proj(self.c_fc(self.ln_2(x), gelu=True))


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


def _float32(parameter: Tensor) -> Tensor:
    return parameter.detach().float().contiguous()
