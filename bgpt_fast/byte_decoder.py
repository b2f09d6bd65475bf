"""The byte-level decoder: a patch's bytes, each from the previous patch's feature and the bytes before it.

Shape letters: T patches, S bytes a patch, D width, V = 257 tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bgpt_fast.config import VOCAB_SIZE, BGPTConfig
from bgpt_fast.kernels.byte_attention.op import byte_attention
from bgpt_fast.layers import Transformer


class LMHead(nn.Module):
    """GPT-2 with a language-model head whose weight is `transformer.wte.weight`."""

    def __init__(self, config: BGPTConfig) -> None:
        super().__init__()
        positions = config.patch_size + 1
        self.transformer = Transformer(config, VOCAB_SIZE, positions, config.byte_num_layers, config.byte_heads)
        self.lm_head = nn.Linear(config.hidden_size, VOCAB_SIZE, bias=False)
        self.lm_head.weight = self.transformer.wte.weight


class ByteLevelDecoder(nn.Module):
    """S positions a patch. The released code runs S + 1 and throws the last away; the extra row of `wpe` is kept."""

    def __init__(self, config: BGPTConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.base = LMHead(config)

    def forward(self, features: Tensor, patches: Tensor) -> Tensor:
        """Logits of each byte of each patch.

        Args:
            features: float [T, D] of the patches before.
            patches: int16 [T, S], the true bytes; byte s is predicted from the bytes before it.

        Returns:
            float [T, S, V].
        """
        T, S = patches.shape
        transformer = self.base.transformer
        embeddings = torch.cat([features[:, None], transformer.wte(patches[:, :-1].long())], dim=1)
        embeddings = embeddings + transformer.wpe.weight[:S]

        def attend(qkv: Tensor, dropout: float) -> Tensor:
            if dropout == 0.0:
                return byte_attention(qkv.view(T, S, *qkv.shape[1:])).flatten(0, 1)
            q, k, v = (t.reshape(T, S, *t.shape[1:]).transpose(1, 2) for t in qkv.unbind(1))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
            return y.transpose(1, 2).flatten(0, 1)

        rows = transformer(embeddings.flatten(0, 1), attend)
        return self.base.lm_head(rows).view(T, S, VOCAB_SIZE)
