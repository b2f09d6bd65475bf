"""bGPT in plain torch: the reference that every fast path is tested against (arXiv 2402.19155, section 3).

One document at a time, one-hot patches, explicit attention masks, no packing, no kernels. Never optimised.
Shape letters: P patches of a document, S bytes per patch, D width, H heads, V tokens (257), L tokens of a sequence.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bgpt_fast.config import BGPTConfig


class Documents(Protocol):
    """The part of the batch interface that the reference uses; `PackedPatches` implements it."""

    patches: Tensor
    cu_seqlens: Tensor


class ReferenceOutput(NamedTuple):
    """loss: mean nats per position; nats: float [T, S], for all patches but the extension patches, in packed order."""

    loss: Tensor
    nats: Tensor


class Conv1D(nn.Module):
    """GPT-2's linear layer, y = x W + b, with the weight stored [in, out]."""

    def __init__(self, inputs: int, outputs: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs).normal_(std=std))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Attention(nn.Module):
    """Causal multi-head self-attention over one sequence."""

    def __init__(self, config: BGPTConfig, num_layers: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = config.dropout
        self.c_attn = Conv1D(config.hidden_size, 3 * config.hidden_size, 0.02)
        self.c_proj = Conv1D(config.hidden_size, config.hidden_size, 0.02 / math.sqrt(2 * num_layers))

    def forward(self, x: Tensor) -> Tensor:
        length, width = x.shape
        q, k, v = (t.view(length, self.heads, -1).transpose(0, 1) for t in self.c_attn(x).split(width, dim=-1))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(future, -torch.inf).softmax(dim=-1)
        y = F.dropout(weights, self.dropout, self.training) @ v
        return F.dropout(self.c_proj(y.transpose(0, 1).reshape(length, width)), self.dropout, self.training)


class MLP(nn.Module):
    """Two linear layers with the tanh GELU between them."""

    def __init__(self, config: BGPTConfig, num_layers: int) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.c_fc = Conv1D(config.hidden_size, 4 * config.hidden_size, 0.02)
        self.c_proj = Conv1D(4 * config.hidden_size, config.hidden_size, 0.02 / math.sqrt(2 * num_layers))

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate="tanh")), self.dropout, self.training)


class Block(nn.Module):
    """A pre-LN GPT-2 layer."""

    def __init__(self, config: BGPTConfig, num_layers: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=1e-5)
        self.attn = Attention(config, num_layers, heads)
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=1e-5)
        self.mlp = MLP(config, num_layers)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """GPT-2 on the input embeddings [L, D] of one sequence: adds positions; layers; final LayerNorm."""

    def __init__(self, config: BGPTConfig, vocab_size: int, positions: int, num_layers: int, heads: int) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.wte = nn.Embedding(vocab_size, config.hidden_size)
        self.wpe = nn.Embedding(positions, config.hidden_size)
        nn.init.normal_(self.wte.weight, std=0.02)
        nn.init.normal_(self.wpe.weight, std=config.position_init_std)
        self.h = nn.ModuleList(Block(config, num_layers, heads) for _ in range(num_layers))
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=1e-5)

    def forward(self, embeddings: Tensor) -> Tensor:
        x = F.dropout(embeddings + self.wpe.weight[: len(embeddings)], self.dropout, self.training)
        for block in self.h:
            x = block(x)
        return self.ln_f(x)


class PatchLevelDecoder(nn.Module):
    """One-hot patches → linear layer → GPT-2: a feature for each patch."""

    def __init__(self, config: BGPTConfig) -> None:
        super().__init__()
        self.vocab_size = config.vocab_size
        self.patch_embedding = nn.Linear(config.patch_size * config.vocab_size, config.hidden_size)
        nn.init.normal_(self.patch_embedding.weight, std=0.02)
        nn.init.zeros_(self.patch_embedding.bias)
        self.base = Transformer(config, 1, config.patch_length, config.patch_num_layers, config.patch_heads)

    def forward(self, patches: Tensor) -> Tensor:
        one_hot = F.one_hot(patches.long(), self.vocab_size).to(self.patch_embedding.weight.dtype)
        return self.base(self.patch_embedding(one_hot.flatten(1)))


class LMHead(nn.Module):
    """GPT-2 with a language-model head whose weight is `transformer.wte.weight`."""

    def __init__(self, config: BGPTConfig) -> None:
        super().__init__()
        positions = config.patch_size + 1
        self.transformer = Transformer(config, config.vocab_size, positions, config.byte_num_layers, config.byte_heads)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight


class ByteLevelDecoder(nn.Module):
    """Logits of a patch's bytes, given the previous patch's feature and the preceding bytes of the patch."""

    def __init__(self, config: BGPTConfig) -> None:
        super().__init__()
        self.base = LMHead(config)

    def forward(self, feature: Tensor, patch: Tensor) -> Tensor:
        embeddings = torch.cat([feature[None], self.base.transformer.wte(patch[:-1].long())])
        return self.base.lm_head(self.base.transformer(embeddings))


class ReferenceBGPT(nn.Module):
    """The plain bGPT; `state_dict` names and values are interchangeable with `BGPT`'s."""

    def __init__(self, config: BGPTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_level_decoder = PatchLevelDecoder(config)
        self.byte_level_decoder = ByteLevelDecoder(config)

    def logits(self, batch: Documents) -> Tensor:
        """Teacher-forced logits [T, S, V] of all patches but the extension patches."""
        rows = []
        for start, end in itertools.pairwise(batch.cu_seqlens.tolist()):
            patches = batch.patches[start:end]
            features = self.patch_level_decoder(patches)
            rows += [self.byte_level_decoder(features[i - 1], patches[i]) for i in range(1, end - start)]
        return torch.stack(rows)

    def forward(self, batch: Documents) -> ReferenceOutput:
        """Mean negative log-likelihood in nats over all positions of all patches but the extension patches."""
        starts = batch.cu_seqlens[:-1].long()
        is_target = torch.ones(len(batch.patches), dtype=torch.bool, device=batch.patches.device)
        is_target[starts] = False
        logits = self.logits(batch)
        targets = batch.patches[is_target].long()
        nats = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none").view_as(targets)
        return ReferenceOutput(nats.mean(), nats)
