"""bGPT in plain torch, as one writes it with care and without kernels of one's own: the baseline for training.

Patches are gathered rows, attention is SDPA, the byte decoder runs 16 positions of all target patches at once, and
linears add their bias in the product. Documents of equal length only; `torch.compile` takes it whole.
Shape letters: B documents, L patches of each, S bytes a patch, D width, V = 257 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bgpt_fast import BGPTConfig, PackedPatches, ReferenceBGPT
from bgpt_fast.config import VOCAB_SIZE
from bgpt_fast.reference import Conv1D, Transformer


def _linear(x: Tensor, layer: Conv1D) -> Tensor:
    return torch.addmm(layer.bias, x.flatten(0, 1), layer.weight).unflatten(0, x.shape[:2])


def _layers(transformer: Transformer, x: Tensor, heads: int) -> Tensor:
    """GPT-2's layers over embeddings [sequences, length, D]."""
    x = x + transformer.wpe.weight[: x.shape[1]]
    for block in transformer.h:
        qkv = _linear(block.ln_1(x), block.attn.c_attn)
        q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in qkv.chunk(3, dim=2))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + _linear(attended, block.attn.c_proj)
        hidden = F.gelu(_linear(block.ln_2(x), block.mlp.c_fc), approximate="tanh")
        x = x + _linear(hidden, block.mlp.c_proj)
    return transformer.ln_f(x)


class PlainBGPT(nn.Module):
    """The loss of documents of equal length, without dropout.

    Args:
        config: sizes.
        weights: a `state_dict` of `BGPT`.
    """

    def __init__(self, config: BGPTConfig, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.config = config
        whole = ReferenceBGPT(config)
        whole.load_state_dict(weights)
        embedding = whole.patch_level_decoder.patch_embedding
        # Stored [S·V, D], so that the rows that a patch needs are contiguous.
        self.patch_table = nn.Parameter(embedding.weight.detach().t().contiguous())
        self.patch_bias = embedding.bias
        self.patch_decoder = whole.patch_level_decoder.base
        self.byte_decoder = whole.byte_level_decoder.base.transformer
        self.register_buffer("offsets", torch.arange(config.patch_size) * VOCAB_SIZE)

    def forward(self, batch: PackedPatches) -> Tensor:
        """The mean loss in nats per position."""
        return self._loss(batch.patches.view(batch.num_documents, -1, self.config.patch_size))

    def _loss(self, patches: Tensor) -> Tensor:
        """The mean loss of patches int16 [B, L, S]."""
        rows = (patches.long() + self.offsets).flatten(0, 1)
        embedded = F.embedding_bag(rows, self.patch_table, mode="sum") + self.patch_bias
        embedded = embedded.unflatten(0, patches.shape[:2])
        features = _layers(self.patch_decoder, embedded, self.config.patch_heads)[:, :-1].flatten(0, 1)
        targets = patches[:, 1:].flatten(0, 1).long()
        table = self.byte_decoder.wte.weight
        inputs = torch.cat([features[:, None], F.embedding(targets[:, :-1], table).to(features.dtype)], dim=1)
        logits = F.linear(_layers(self.byte_decoder, inputs, self.config.byte_heads), table)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
