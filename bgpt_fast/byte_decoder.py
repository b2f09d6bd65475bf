"""The byte-level decoder: a patch's bytes, each from the previous patch's feature and the bytes before it.

Shape letters: T patches, S bytes a patch, D width, V = 257 tokens.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bgpt_fast.config import VOCAB_SIZE, BGPTConfig
from bgpt_fast.kernels.byte_attention.op import byte_attention_projected
from bgpt_fast.kernels.byte_embed.op import byte_embed
from bgpt_fast.kernels.linear_cross_entropy.op import linear_cross_entropy
from bgpt_fast.layers import Conv1D, Transformer

CHUNK = 2048
"""Patches a chunk: a chunk's activations are freed before the next one, so that memory does not grow with a batch."""


class LMHead(nn.Module):
    """GPT-2 with a language-model head whose weight is `transformer.wte.weight`."""

    def __init__(self, config: BGPTConfig) -> None:
        super().__init__()
        positions = config.patch_size + 1
        self.transformer = Transformer(config, VOCAB_SIZE, positions, config.byte_num_layers, config.byte_heads)
        self.lm_head = nn.Linear(config.hidden_size, VOCAB_SIZE, bias=False)
        self.lm_head.weight = self.transformer.wte.weight


class ByteLevelDecoder(nn.Module):
    """GPT-2 over S positions a patch. The released code runs S + 1 and discards the last; `wpe` has a row for it."""

    def __init__(self, config: BGPTConfig) -> None:
        super().__init__()
        self.heads = config.byte_heads
        self.base = LMHead(config)

    def forward(self, features: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each byte of each patch.

        Args:
            features: float [T, D], each of the patch before.
            patches: int16 [T, S], the true bytes; byte s is predicted from the bytes before it.

        Returns:
            The mean nats a position, a scalar with a gradient; and the nats of each, float32 [T, S], without one.
        """
        if len(patches) > CHUNK and torch.is_grad_enabled():
            weights = [weight for weight in self.parameters() if weight.requires_grad]
            loss, nats = _InChunks.apply(features, patches, self, *weights)
            return loss, nats
        nats = torch.cat([self.nats(*chunk) for chunk in zip(features.split(CHUNK), patches.split(CHUNK), strict=True)])
        return nats.mean(), nats.detach()

    def nats(self, features: Tensor, patches: Tensor) -> Tensor:
        """−log p of each byte, float32 [T, S]; arguments as `forward`."""
        rows, weight = self._rows(features, patches), self.base.lm_head.weight
        return linear_cross_entropy(rows, weight.to(rows.dtype), patches.flatten()).view(patches.shape)

    def logits(self, features: Tensor, patches: Tensor) -> Tensor:
        """Logits [T, S, V] of each byte; arguments as `forward`."""
        rows = self._rows(features, patches)
        return F.linear(rows, self.base.lm_head.weight.to(rows.dtype)).view(*patches.shape, VOCAB_SIZE)

    def _rows(self, features: Tensor, patches: Tensor) -> Tensor:
        T, S = patches.shape
        transformer = self.base.transformer

        def attend(x: Tensor, projection: Conv1D, dropout: float) -> Tensor:
            if dropout == 0.0:
                weight, bias = projection.weight.to(x.dtype), projection.bias.to(x.dtype)
                return byte_attention_projected(x.view(T, S, -1), weight, bias, self.heads).view(x.shape)
            q, k, v = projection(x).view(T, S, 3, self.heads, -1).transpose(1, 3).unbind(2)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
            return y.transpose(1, 2).reshape(x.shape)

        embeddings = byte_embed(features, patches, transformer.wte.weight, transformer.wpe.weight)
        return transformer(embeddings.flatten(0, 1), attend)


class _InChunks(torch.autograd.Function):
    """The mean loss of more patches than fit into memory at once, computed together with its gradient.

    The byte decoder's patches are independent of each other: each chunk runs forward and backward before the next one,
    and weight gradients are summed in float32. `backward` only scales them, so nothing is computed twice.
    """

    @staticmethod
    def forward(ctx, features, patches, decoder, *weights):  # type: ignore[no-untyped-def]
        decoder = cast(ByteLevelDecoder, decoder)
        dfeatures = torch.empty_like(features)
        sums = [torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32)) for weight in weights]
        nats = []
        for begin in range(0, len(patches), CHUNK):
            chunk = slice(begin, begin + CHUNK)
            with torch.enable_grad():
                part = features[chunk].detach().requires_grad_()
                chunk_nats = decoder.nats(part, patches[chunk])
                dpart, *gradients = torch.autograd.grad(chunk_nats.sum(), [part, *weights])
            dfeatures[chunk] = dpart
            for total, gradient in zip(sums, gradients, strict=True):
                total += gradient
            nats.append(chunk_nats.detach())
        ctx.save_for_backward(dfeatures, *(total.to(weight.dtype) for total, weight in zip(sums, weights, strict=True)))
        ctx.positions = patches.numel()
        all_nats = torch.cat(nats)
        ctx.mark_non_differentiable(all_nats)
        return all_nats.mean(), all_nats

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dloss, _):  # type: ignore[no-untyped-def]
        dfeatures, *gradients = ctx.saved_tensors
        scale = dloss / ctx.positions
        return dfeatures * scale.to(dfeatures.dtype), None, None, *(g * scale.to(g.dtype) for g in gradients)
