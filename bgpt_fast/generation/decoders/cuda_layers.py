"""The weights of the CUDA decoder in its kernels' layout, and a decoder's layers applied to new tokens.

Shape letters: T tokens, D width, F hidden width, S bytes a patch, V tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from bgpt_fast.kernels.bias_gelu.op import bias_gelu
from bgpt_fast.kernels.byte_decode.packed import Layer
from bgpt_fast.kernels.invariant_linear.op import invariant_linear
from bgpt_fast.kernels.layer_norm.op import add_layer_norm, layer_norm
from bgpt_fast.layers import Block, Conv1D, Transformer
from bgpt_fast.model import BGPT

CUDA_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""The dtypes that linear layers may compute in; their sums, norms, the residual stream and softmax are float32."""


class DecoderWeights:
    """Copies of a transformer's weights: linear weights [outputs, inputs] in `dtype`, the others in float32.

    Args:
        transformer: on any device; the copies are on the same device.
        heads: number of attention heads.
        dtype: dtype of linear weights.
    """

    def __init__(self, transformer: Transformer, heads: int, dtype: torch.dtype) -> None:
        self.layers = [_layer(cast(Block, block), dtype) for block in transformer.h]
        self.ln_f_weight, self.ln_f_bias = (_copy(x, torch.float32) for x in transformer.ln_f.parameters())
        self.wpe = _copy(transformer.wpe.weight, torch.float32)
        self.eps, self.heads, self.dtype, self.device = transformer.ln_f.eps, heads, dtype, self.wpe.device

    @property
    def width(self) -> int:
        """D."""
        return len(self.ln_f_weight)

    @property
    def hidden(self) -> int:
        """F."""
        return len(self.layers[0].fc_bias)

    def tensors(self) -> list[Tensor]:
        """All weights in the order in which the CUDA kernel reads them."""
        return [tensor for layer in self.layers for tensor in layer] + [self.ln_f_weight, self.ln_f_bias, self.wpe]


class ByteWeights(DecoderWeights):
    """The byte decoder's weights, with the token embeddings and the head; plain weights for the op `byte_decode`.

    Args:
        model: a bGPT.
        precision: one of CUDA_PRECISIONS.
    """

    def __init__(self, model: BGPT, precision: str) -> None:
        transformer, dtype = model.byte_level_decoder.base.transformer, CUDA_PRECISIONS[precision]
        super().__init__(transformer, model.config.byte_heads, dtype)
        self.wte = _copy(transformer.wte.weight, torch.float32)
        self.head = _copy(transformer.wte.weight, dtype)
        config = model.config
        self.patch_size, self.vocab_size = config.patch_size, config.vocab_size
        self.eop, self.fill = config.eop, config.fill

    def tensors(self) -> list[Tensor]:
        return [*super().tensors(), self.wte, self.head]


class PatchWeights(DecoderWeights):
    """The patch decoder's weights, with the patch embedding; arguments as in ByteWeights."""

    def __init__(self, model: BGPT, precision: str) -> None:
        decoder = model.patch_level_decoder
        super().__init__(decoder.base, model.config.patch_heads, CUDA_PRECISIONS[precision])
        self.embedding_rows = _copy(decoder.patch_embedding.weight, torch.float32)
        self.embedding_bias = _copy(decoder.patch_embedding.bias, torch.float32)

    def tensors(self) -> list[Tensor]:
        return [*super().tensors(), self.embedding_rows, self.embedding_bias]


Attend = Callable[[int, Tensor], Tensor]
"""Attention of new tokens: (layer index, their qkv [T, 3 D]) → [T, D], in the layers' dtype."""


class CudaLayers:
    """A decoder's layers and final norm, applied to new tokens.

    Args:
        weights: the decoder's weights.
        batch_invariant: True uses `invariant_linear` for every product, so that a token's bits depend only on that
            token; False uses library matrix products, whose rounding depends on the number of tokens.
    """

    def __init__(self, weights: DecoderWeights, batch_invariant: bool = False) -> None:
        self.weights, self.batch_invariant = weights, batch_invariant
        self._biases = [[bias.to(weights.dtype, copy=True) for bias in _biases(layer)] for layer in weights.layers]

    def reload(self) -> None:
        """Copies the biases again after the weights have changed in place."""
        for layer, copies in zip(self.weights.layers, self._biases, strict=True):
            for target, bias in zip(copies, _biases(layer), strict=True):
                target.copy_(bias)

    def __call__(self, residual: Tensor, attend: Attend) -> Tensor:
        """Maps embeddings (positions included), float32 [T, D], to features [T, D] in the layers' dtype."""
        weights, eps = self.weights, self.weights.eps
        first = weights.layers[0]
        x = layer_norm(residual, first.ln_1_weight, first.ln_1_bias, eps=eps, out_dtype=weights.dtype)
        next_norms = [(layer.ln_1_weight, layer.ln_1_bias) for layer in weights.layers[1:]]
        next_norms.append((weights.ln_f_weight, weights.ln_f_bias))
        for i, (layer, biases, next_norm) in enumerate(zip(weights.layers, self._biases, next_norms, strict=True)):
            attended = attend(i, self.linear(x, layer.attn_weight, biases[0]))
            branch = self.linear(attended, layer.attn_proj_weight, biases[1])
            x, residual = add_layer_norm(branch, residual, layer.ln_2_weight, layer.ln_2_bias, eps=eps)
            branch = self.linear(self._hidden(x, layer), layer.mlp_proj_weight, biases[2])
            x, residual = add_layer_norm(branch, residual, *next_norm, eps=eps)
        return x

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [T, inputs] times weight [outputs, inputs], plus bias → [T, outputs], all in the layers' dtype."""
        return invariant_linear(x, weight.t(), bias) if self.batch_invariant else F.linear(x, weight, bias)

    def logits(self, x: Tensor, head: Tensor) -> Tensor:
        """x [T, D] times head [V, D] → float32 [T, V]: in bfloat16 the sums are not rounded."""
        if self.batch_invariant:
            return invariant_linear(x.float(), head.float().t())
        if x.dtype == torch.float32:
            return F.linear(x, head)
        return torch.mm(x, head.t(), out_dtype=torch.float32) if x.is_cuda else F.linear(x.float(), head.float())

    def _hidden(self, x: Tensor, layer: Layer) -> Tensor:
        if self.batch_invariant:
            return invariant_linear(x, layer.fc_weight.t(), layer.fc_bias, gelu=True)
        return bias_gelu(F.linear(x, layer.fc_weight), layer.fc_bias)


def _biases(layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
    return layer.attn_bias, layer.attn_proj_bias, layer.mlp_proj_bias


def _layer(block: Block, dtype: torch.dtype) -> Layer:
    attention = block.ln_1, block.attn.c_attn, block.attn.c_proj
    mlp = block.ln_2, block.mlp.c_fc, block.mlp.c_proj
    tensors = []
    for part in (*attention, *mlp):
        is_linear = isinstance(part, Conv1D)
        tensors.append(_copy(part.weight.t() if is_linear else part.weight, dtype if is_linear else torch.float32))
        tensors.append(_copy(part.bias, torch.float32))
    return Layer(*tensors)


def _copy(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    # Always a copy: a contiguous view may start at any address, and the kernel reads 16 bytes at a time.
    return parameter.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
