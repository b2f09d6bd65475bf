"""The decoder for devices without an engine of their own: operation by operation in torch, with key-value caches.

The CPU and CUDA decoders are tested against it. On the CPU every operation here gives a token the same bits whatever
else is in the call: `invariant_linear`, `cached_attention` and `patch_embed` by construction; layer norm, additions and
look-ups because torch computes them row by row.

Shape letters: T tokens, N patches, D width, H heads, d = D / H, L positions a slot, B slots, S bytes a patch, V = 257.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bgpt_fast.config import EOP, VOCAB_SIZE
from bgpt_fast.generation.decoders.request import DecodeRequest, DecodeResult
from bgpt_fast.kernels.byte_decode.sampling import choose
from bgpt_fast.kernels.cached_attention.op import cached_attention
from bgpt_fast.kernels.invariant_linear.op import invariant_linear
from bgpt_fast.kernels.patch_embed.op import patch_embed
from bgpt_fast.layers import Block, Conv1D, Transformer
from bgpt_fast.model import BGPT


class EagerDecoder:
    """A model's patch decoder and byte decoder in float32; implements `Decoder`.

    Args:
        model: its weights are converted if they have another dtype. Later changes to them may take effect or not.
        slots: sequences in the cache.
        length: patches a sequence.

    Raises:
        MemoryError: the cache does not fit.
    """

    def __init__(self, model: BGPT, slots: int, length: int) -> None:
        byte_transformer = model.byte_level_decoder.base.transformer
        self.device = byte_transformer.wte.weight.device
        try:
            self.patch_decoder = _Transformer(model.patch_level_decoder.base)
            self.byte_decoder = _Transformer(byte_transformer)
            self._cache = self.patch_decoder.new_cache(slots, length)
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            raise MemoryError(str(error)) from error
        embedding = model.patch_level_decoder.patch_embedding
        self.patch_embedding = _float32(embedding.weight), _float32(embedding.bias)
        self.wte = _float32(byte_transformer.wte.weight)
        self.head = self.wte.t().contiguous()

    def prefill(self, patches: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """As `Decoder.prefill`."""
        return self.patch_decoder(patch_embed(patches, *self.patch_embedding), self._cache, slots, positions)

    def write(self, request: DecodeRequest) -> DecodeResult:
        """As `Decoder.write`; a call stops at the first NaN or infinite logits."""
        assert request.drafts is None
        N, S = request.prefix_tokens.shape
        prefix, max_tokens = request.prefix_tokens.tolist(), request.max_tokens.tolist()
        streams, offsets = request.rng_streams.tolist(), request.byte_offsets.tolist()
        tokens, counts = [[EOP] * S for _ in range(N)], [0] * N
        rows, inputs = list(range(N)), request.features
        cache = self.byte_decoder.new_cache(N, S)
        for s in range(S):
            logits = self._step(inputs, cache, torch.tensor(rows, device=self.device), s)
            is_finite = logits.isfinite().all(1).tolist()
            if not all(is_finite):
                for row, row_is_finite in zip(rows, is_finite, strict=True):
                    counts[row] = counts[row] if row_is_finite else -1
                break
            positions = [offsets[row] + s for row in rows]
            chosen = choose(logits, request.sampling, [streams[row] for row in rows], positions)
            active = []
            for row, token in zip(rows, chosen, strict=True):
                in_prefix = prefix[row][s] >= 0
                tokens[row][s] = prefix[row][s] if in_prefix else token
                counts[row] = s + 1
                if s + 1 < max_tokens[row] and (in_prefix or token != EOP):
                    active.append(row)
            rows = active
            if not rows:
                break
            inputs = self.wte[torch.tensor([tokens[row][s] for row in rows], device=self.device)]
        return DecodeResult(tokens, counts)

    def logits(self, features: Tensor, tokens: Tensor, count: int) -> Tensor:
        """As `Decoder.logits`."""
        N, S = tokens.shape
        logits = features.new_full((N, S, VOCAB_SIZE), torch.nan)
        rows, cache = torch.arange(N, device=self.device), self.byte_decoder.new_cache(N, S)
        for s in range(count):
            inputs = features if s == 0 else self.wte[tokens[:, s - 1].long()]
            logits[:, s] = self._step(inputs, cache, rows, s)
        return logits

    def _step(self, inputs: Tensor, cache: _Cache, rows: Tensor, s: int) -> Tensor:
        """Logits [T, V] at position s of some rows.

        `inputs` [T, D]: at position 0 the feature of the patch before, then `wte` of the byte before.
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
