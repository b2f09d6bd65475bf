"""The GPT-2 layers that both decoders are made of.

Shape letters: N rows (patches or bytes), D width, H heads, d = D / H.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bgpt_fast.config import VOCAB_SIZE, BGPTConfig

INIT_STD = 0.02

Attend = Callable[[Tensor, float], Tensor]
"""Attention over rows: (qkv [N, 3, H, d], dropout) → [N, H, d]; knows which rows see which."""


def byte_embeddings(config: BGPTConfig) -> Tensor:
    """Initial embeddings of the 257 tokens, float32 [257, D], as `config.byte_init` says."""
    table = torch.empty(VOCAB_SIZE, config.hidden_size).normal_(std=config.byte_init_std)
    if config.byte_init == "numeric":
        features = _numeric_features()
        projection = torch.empty(features.shape[1], config.hidden_size).normal_(std=config.byte_init_std)
        # 0.3² + 0.95² ≈ 1: the standard deviation stays, and each byte keeps a part of its own.
        table[:256] = 0.3 * table[:256] + 0.95 * features @ projection
    return table


def position_embeddings(config: BGPTConfig, positions: int) -> Tensor:
    """Initial position embeddings, float32 [positions, D], as `config.position_init` says."""
    if config.position_init == "normal":
        return torch.empty(positions, config.hidden_size).normal_(std=config.position_init_std)
    # Periods 2, 2·2^(1/8), … : half a position and twice a position are frequencies of the table too.
    pairs = -(-config.hidden_size // 2)
    frequencies = math.pi * 2.0 ** (-torch.arange(pairs) / 8)
    angles = torch.arange(float(positions))[:, None] * frequencies
    table = torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, : config.hidden_size]
    return table * (config.position_init_std * math.sqrt(2))


def _numeric_features() -> Tensor:
    """What a byte is as a number, float32 [256, 31]: bits, phases of seven periods, magnitude, soft thresholds."""
    value = torch.arange(256.0)[:, None]
    bits = ((value.int() >> torch.arange(8)) & 1) * 2.0 - 1.0
    phases = 2 * math.pi * value * 2.0 ** torch.arange(7) / 256
    magnitude = (value - 127.5) / 74
    thresholds = torch.sigmoid((value - torch.arange(16, 256, 32)) / 8) * 2 - 1
    return F.normalize(torch.cat([bits, phases.cos(), phases.sin(), magnitude, thresholds], dim=1))


class LayerNorm(nn.LayerNorm):
    """LayerNorm with eps 1e-5 that computes in float32 whatever the dtype: in bfloat16 the CPU's own sums its weight
    gradients over all rows in bfloat16, and the last ones vanish."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dtype not in (torch.bfloat16, torch.float16):
            return super().forward(x)
        y = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return y.to(x.dtype)


class Conv1D(nn.Module):
    """GPT-2's linear layer y = x W + b; the weight is stored [in, out] as in released checkpoints."""

    def __init__(self, inputs: int, outputs: int, std: float = INIT_STD) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs).normal_(std=std))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.t(), self.bias)


class Attention(nn.Module):
    """Multi-head self-attention; which rows see which is the caller's `attend`."""

    def __init__(self, config: BGPTConfig, num_layers: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = config.dropout
        self.c_attn = Conv1D(config.hidden_size, 3 * config.hidden_size)
        self.c_proj = Conv1D(config.hidden_size, config.hidden_size, INIT_STD / math.sqrt(2 * num_layers))

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        qkv = self.c_attn(x).view(len(x), 3, self.heads, x.shape[1] // self.heads)
        y = attend(qkv, self.dropout if self.training else 0.0)
        return F.dropout(self.c_proj(y.reshape(x.shape)), self.dropout, self.training)


class MLP(nn.Module):
    """Linear, tanh GELU, linear."""

    def __init__(self, config: BGPTConfig, num_layers: int) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.c_fc = Conv1D(config.hidden_size, 4 * config.hidden_size)
        self.c_proj = Conv1D(4 * config.hidden_size, config.hidden_size, INIT_STD / math.sqrt(2 * num_layers))

    def forward(self, x: Tensor) -> Tensor:
        y = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return F.dropout(y, self.dropout, self.training)


class Block(nn.Module):
    """A pre-LN GPT-2 layer on rows [N, D]."""

    def __init__(self, config: BGPTConfig, num_layers: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.hidden_size)
        self.attn = Attention(config, num_layers, heads)
        self.ln_2 = LayerNorm(config.hidden_size)
        self.mlp = MLP(config, num_layers)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        x = x + self.attn(self.ln_1(x), attend)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """GPT-2's embeddings, layers and final LN, under the released names.

    Args:
        vocab_size: rows of `wte`.
        positions: rows of `wpe`.
        num_layers, heads: of this decoder.
    """

    def __init__(self, config: BGPTConfig, vocab_size: int, positions: int, num_layers: int, heads: int) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.wte = nn.Embedding(vocab_size, config.hidden_size)
        self.wpe = nn.Embedding(positions, config.hidden_size)
        if vocab_size == VOCAB_SIZE:
            self.wte.weight = nn.Parameter(byte_embeddings(config))
        else:
            nn.init.normal_(self.wte.weight, std=INIT_STD)
        self.wpe.weight = nn.Parameter(position_embeddings(config, positions))
        self.h = nn.ModuleList(Block(config, num_layers, heads) for _ in range(num_layers))
        self.ln_f = LayerNorm(config.hidden_size)

    def forward(self, embeddings: Tensor, attend: Attend) -> Tensor:
        """Embeddings [N, D], positions added already, → features [N, D]."""
        x = F.dropout(embeddings, self.dropout, self.training)
        for block in self.h:
            x = block(x, attend)
        return self.ln_f(x)
