"""The byte-level decoder: predicts each byte of a patch from the previous patch's feature and the bytes before it.

Shape letters: T patches, S bytes per patch, D width, V tokens.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bgpt_fast.config import BGPTConfig
from bgpt_fast.kernels.byte_attention.op import byte_attention, byte_attention_projected
from bgpt_fast.kernels.byte_embed.op import byte_embed
from bgpt_fast.kernels.common.register import is_transformed
from bgpt_fast.kernels.linear_cross_entropy.op import linear_cross_entropy
from bgpt_fast.layers import Linear, Transformer

CHUNK, LARGE_CHUNK = 2048, 8192
"""Patches per chunk; activations are freed after each chunk, so memory use does not grow with the batch size. A GPU
with `_LARGE_MEMORY` takes the larger chunks: with small ones it waits for the host, which launches their kernels."""
_LARGE_MEMORY = 64e9  # bytes; a large chunk takes 7 GB in the paper's model


class LMHead(nn.Module):
    """GPT-2 with a language-model head whose weight is `transformer.wte.weight`."""

    def __init__(self, config: BGPTConfig) -> None:
        super().__init__()
        positions = config.patch_size + 1
        self.transformer = Transformer(config, config.vocab_size, positions, config.byte_num_layers, config.byte_heads)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight


class ByteLevelDecoder(nn.Module):
    """GPT-2 over S positions of a patch. The released code runs S + 1 and discards the last; `wpe` keeps its row."""

    def __init__(self, config: BGPTConfig) -> None:
        super().__init__()
        self.heads, self.pad = config.byte_heads, config.pad
        self.base = LMHead(config)

    def forward(self, features: Tensor, patches: Tensor, counted: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The loss of each byte of each patch: in chunks, but in one piece under torch.compile and torch.func.

        Args:
            features: float [T, D], for each patch the feature of the patch before it.
            patches: int16 [T, S], the true bytes; byte s is predicted from the bytes before it.
            counted: bool [T], the patches that are in the loss; None means all.

        Returns:
            The mean loss in nats per position (scalar, differentiable), without patches that are not counted and
            positions whose symbol is the config's `pad`; the loss of each, float32 [T, S], detached.
        """
        # A number of chunks would be a graph of its own, and torch.func cannot differentiate what `_InChunks` does.
        if torch.compiler.is_compiling() or is_transformed():
            nats = self.nats(features, patches, counted)
            return self._mean(nats, patches, counted), nats.detach()
        chunk = chunk_size(features.device)
        if len(patches) > chunk and torch.is_grad_enabled():
            weights = [weight for weight in self.parameters() if weight.requires_grad]
            loss, nats = _InChunks.apply(features, patches, counted, self, chunk, *weights)
            return loss, nats
        parts = [slice(begin, begin + chunk) for begin in range(0, max(1, len(patches)), chunk)]
        nats = torch.cat([self.nats(features[p], patches[p], None if counted is None else counted[p]) for p in parts])
        return self._mean(nats, patches, counted), nats.detach()

    def nats(self, features: Tensor, patches: Tensor, counted: Tensor | None = None) -> Tensor:
        """−log p of each byte, 0 where it is not in the loss: float32 [T, S]; arguments as `forward`."""
        rows, weight = self._rows(features, patches), self.base.lm_head.weight
        nats = linear_cross_entropy(rows, weight.to(rows.dtype), patches.flatten()).view(patches.shape)
        in_loss = self._in_loss(patches, counted)
        return nats if in_loss is None else nats.masked_fill(~in_loss, 0.0)

    def positions(self, patches: Tensor, counted: Tensor | None = None) -> Tensor | int:
        """How many positions of these patches are in the loss; at least 1."""
        in_loss = self._in_loss(patches, counted)
        return patches.numel() if in_loss is None else in_loss.sum().clamp(min=1)

    def _in_loss(self, patches: Tensor, counted: Tensor | None) -> Tensor | None:
        """Which positions are in the loss, bool [T, S]; None means all."""
        real = None if self.pad is None else patches != self.pad
        if counted is None:
            return real
        whole = counted[:, None].expand(patches.shape)
        return whole if real is None else whole & real

    def _mean(self, nats: Tensor, patches: Tensor, counted: Tensor | None) -> Tensor:
        is_mean = self.pad is None and counted is None
        return nats.mean() if is_mean else nats.sum() / self.positions(patches, counted)

    def logits(self, features: Tensor, patches: Tensor) -> Tensor:
        """Logits [T, S, V] of each byte; arguments as `forward`."""
        rows = self._rows(features, patches)
        weight = self.base.lm_head.weight.to(rows.dtype)
        return F.linear(rows, weight).view(*patches.shape, len(weight))

    def _rows(self, features: Tensor, patches: Tensor) -> Tensor:
        T, S = patches.shape
        transformer = self.base.transformer

        def attend(x: Tensor, projection: Linear, dropout: float) -> Tensor:
            if dropout == 0.0 and x.is_cuda:
                return byte_attention_projected(x.view(T, S, -1), *projection, self.heads).view(x.shape)
            if dropout == 0.0:
                return byte_attention(projection(x).view(T, S, 3, self.heads, -1)).view(x.shape)
            q, k, v = projection(x).view(T, S, 3, self.heads, -1).transpose(1, 3).unbind(2)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
            return y.transpose(1, 2).reshape(x.shape)

        embeddings = byte_embed(features, patches, transformer.wte.weight, transformer.wpe.weight)
        return transformer(embeddings.flatten(0, 1), attend)


def chunk_size(device: torch.device) -> int:
    """Patches per chunk of the byte decoder on a device."""
    is_large = device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory >= _LARGE_MEMORY
    return max(CHUNK, LARGE_CHUNK) if is_large else CHUNK


class _InChunks(torch.autograd.Function):
    """The mean loss and its gradient, computed in chunks because all activations would not fit into memory at once.

    Patches are independent in the byte decoder: each chunk runs forward and backward before the next one starts, and
    weight gradients are summed in float32. `backward` only scales them, so nothing is computed twice.
    """

    @staticmethod
    def forward(ctx, features, patches, counted, decoder, size, *weights):  # type: ignore[no-untyped-def]
        decoder = cast(ByteLevelDecoder, decoder)
        dfeatures = torch.empty_like(features)
        sums = [torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32)) for weight in weights]
        nats = []
        for begin in range(0, len(patches), size):
            chunk = slice(begin, begin + size)
            with torch.enable_grad():
                part = features[chunk].detach().requires_grad_()
                chunk_nats = decoder.nats(part, patches[chunk], None if counted is None else counted[chunk])
                dpart, *gradients = torch.autograd.grad(chunk_nats.sum(), [part, *weights])
            dfeatures[chunk] = dpart
            for total, gradient in zip(sums, gradients, strict=True):
                total += gradient
            nats.append(chunk_nats.detach())
        ctx.save_for_backward(dfeatures, *(total.to(weight.dtype) for total, weight in zip(sums, weights, strict=True)))
        ctx.positions = decoder.positions(patches, counted)
        all_nats = torch.cat(nats)
        ctx.mark_non_differentiable(all_nats)
        return decoder._mean(all_nats, patches, counted), all_nats

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dloss, _):  # type: ignore[no-untyped-def]
        dfeatures, *gradients = ctx.saved_tensors
        scale = dloss / ctx.positions
        scaled = (gradient * scale.to(gradient.dtype) for gradient in (dfeatures, *gradients))
        return next(scaled), None, None, None, None, *scaled
