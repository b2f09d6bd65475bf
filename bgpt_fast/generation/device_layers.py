"""A decoder's weights as a GPU's engines read them, and its layers on new tokens. Not yet run on a GPU.

Shape letters: T tokens, D width, F hidden width, V = 257.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bgpt_fast.generation.packed import Layer
from bgpt_fast.kernels.bias_gelu.op import bias_gelu
from bgpt_fast.kernels.invariant_linear.op import invariant_linear
from bgpt_fast.kernels.layer_norm.op import add_layer_norm, layer_norm
from bgpt_fast.layers import Block, Conv1D, Transformer
from bgpt_fast.model import BGPT

DEVICE_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""What linear layers may compute in on a GPU; their sums, norms, the residual stream and softmax are float32."""


class DecoderWeights:
    """A decoder's layers, last norm and positions, copied where they are: linear weights [outputs, inputs] in the
    precision asked for, norms and biases float32."""

    def __init__(self, transformer: Transformer, heads: int, dtype: torch.dtype) -> None:
        self.layers = [_layer(cast(Block, block), dtype) for block in transformer.h]
        self.ln_f_weight, self.ln_f_bias = _norm(transformer.ln_f)
        self.wpe = _copied(transformer.wpe.weight, torch.float32)
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
        """All of them in the kernel's order."""
        return [tensor for layer in self.layers for tensor in layer] + [self.ln_f_weight, self.ln_f_bias, self.wpe]


class ByteWeights(DecoderWeights):
    """The byte decoder's, with the embeddings of tokens and the head.

    Args:
        model: a bGPT.
        precision: one of DEVICE_PRECISIONS.
    """

    def __init__(self, model: BGPT, precision: str) -> None:
        transformer, dtype = model.byte_level_decoder.base.transformer, DEVICE_PRECISIONS[precision]
        super().__init__(transformer, model.config.byte_heads, dtype)
        self.wte = _copied(transformer.wte.weight, torch.float32)
        self.head = _copied(transformer.wte.weight, dtype)
        self.patch_size = model.config.patch_size

    def tensors(self) -> list[Tensor]:
        return [*super().tensors(), self.wte, self.head]


class PatchWeights(DecoderWeights):
    """The patch decoder's, with the embeddings of patches; arguments as of ByteWeights."""

    def __init__(self, model: BGPT, precision: str) -> None:
        decoder = model.patch_level_decoder
        super().__init__(decoder.base, model.config.patch_heads, DEVICE_PRECISIONS[precision])
        self.embedding_rows = _copied(decoder.patch_embedding.weight, torch.float32)
        self.embedding_bias = _copied(decoder.patch_embedding.bias, torch.float32)

    def tensors(self) -> list[Tensor]:
        return [*super().tensors(), self.embedding_rows, self.embedding_bias]


Attend = Callable[[int, Tensor], Tensor]
"""(layer, queries, keys and values of new tokens [T, 3 D]) → what they attend to [T, D], in the layers' precision."""


class DeviceLayers:
    """A decoder's layers and last norm on new tokens.

    Args:
        weights: of the decoder.
        batch_invariant: products by `invariant_linear`, so that a token's bits depend on that token alone; else by the
            library, which chooses them by the number of tokens.
    """

    def __init__(self, weights: DecoderWeights, batch_invariant: bool = False) -> None:
        self.weights, self.batch_invariant = weights, batch_invariant
        self._biases = [[bias.to(weights.dtype, copy=True) for bias in _biases(layer)] for layer in weights.layers]

    def reload(self) -> None:
        """Takes note of new content of the weights; nothing moves."""
        for layer, own in zip(self.weights.layers, self._biases, strict=True):
            for to, bias in zip(own, _biases(layer), strict=True):
                to.copy_(bias)

    def __call__(self, total: Tensor, attend: Attend) -> Tensor:
        """The residual stream float32 [T, D], embeddings and positions, → features [T, D] in the layers' precision."""
        weights, eps = self.weights, self.weights.eps
        first = weights.layers[0]
        x = layer_norm(total, first.ln_1_weight, first.ln_1_bias, eps=eps, out_dtype=weights.dtype)
        followers = [(layer.ln_1_weight, layer.ln_1_bias) for layer in weights.layers[1:]]
        followers.append((weights.ln_f_weight, weights.ln_f_bias))
        for i, (layer, biases, following) in enumerate(zip(weights.layers, self._biases, followers, strict=True)):
            attended = attend(i, self.linear(x, layer.attn_weight, biases[0]))
            branch = self.linear(attended, layer.attn_proj_weight, biases[1])
            x, total = add_layer_norm(branch, total, layer.ln_2_weight, layer.ln_2_bias, eps=eps)
            branch = self.linear(self._hidden(x, layer), layer.mlp_proj_weight, biases[2])
            x, total = add_layer_norm(branch, total, *following, eps=eps)
        return x

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [T, inputs] times weight [outputs, inputs], plus bias → [T, outputs], all in the layers' precision."""
        return invariant_linear(x, weight.t(), bias) if self.batch_invariant else F.linear(x, weight, bias)

    def _hidden(self, x: Tensor, layer: Layer) -> Tensor:
        if self.batch_invariant:
            return invariant_linear(x, layer.fc_weight.t(), layer.fc_bias, gelu=True)
        return bias_gelu(F.linear(x, layer.fc_weight), layer.fc_bias)


def _biases(layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
    return layer.attn_bias, layer.attn_proj_bias, layer.mlp_proj_bias


def _layer(block: Block, dtype: torch.dtype) -> Layer:
    def linear(module: Conv1D) -> tuple[Tensor, Tensor]:
        return _copied(module.weight.t(), dtype), _copied(module.bias, torch.float32)

    return Layer(
        *_norm(block.ln_1),
        *linear(block.attn.c_attn),
        *linear(block.attn.c_proj),
        *_norm(block.ln_2),
        *linear(block.mlp.c_fc),
        *linear(block.mlp.c_proj),
    )


def _norm(norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    return _copied(norm.weight, torch.float32), _copied(norm.bias, torch.float32)


def _copied(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    # A copy at any rate: views that lie contiguously may start anywhere, and the kernel reads 16 bytes at a time.
    return parameter.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
