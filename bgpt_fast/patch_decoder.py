"""The patch-level decoder: computes a feature for each patch from this and all previous patches of its document.

Shape letters: P patches, S bytes per patch, D width, B documents, V tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bgpt_fast.config import BGPTConfig
from bgpt_fast.documents import patch_positions
from bgpt_fast.kernels.patch_attention.op import DocumentGroups, patch_attention
from bgpt_fast.kernels.patch_embed.op import patch_embed
from bgpt_fast.layers import Linear, Transformer, byte_embeddings, compute_dtype


class PatchEmbedding(nn.Module):
    """The linear projection of one-hot patches, computed as a gather and sum of weight rows.

    `weight` is [S·V, D], so that each of the S rows that a patch needs is contiguous. The released checkpoints store
    [D, S·V]; `state_dict` and `load_state_dict` convert.
    """

    def __init__(self, config: BGPTConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.cat([byte_embeddings(config) for _ in range(config.patch_size)]))
        self.bias = nn.Parameter(torch.zeros(config.hidden_size))
        self.register_state_dict_post_hook(_transpose_weight)
        self.register_load_state_dict_pre_hook(_transpose_weight)

    def forward(self, patches: Tensor, position_weight: Tensor, positions: Tensor) -> Tensor:
        dtype = compute_dtype(self.weight)
        tables = (self.weight.to(dtype), self.bias.to(dtype), position_weight.to(dtype))
        return patch_embed(patches, *tables, positions)


def _transpose_weight(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    name = f"{prefix}weight"
    if name in state_dict:
        state_dict[name] = state_dict[name].t()


class PatchLevelDecoder(nn.Module):
    """GPT-2 over patches; as in the released code, `base.wte` has one row and is never used."""

    def __init__(self, config: BGPTConfig) -> None:
        super().__init__()
        self.heads = config.patch_heads
        self.patch_embedding = PatchEmbedding(config)
        self.base = Transformer(config, 1, config.patch_length, config.patch_num_layers, config.patch_heads)

    def forward(
        self,
        patches: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        host_offsets: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Features of packed patches.

        Args:
            patches: int16 [P, S].
            cu_seqlens: int32 [B+1].
            max_seqlen: number of patches of the longest document.
            host_offsets: `cu_seqlens` on the CPU, if it is there.
            rows: int64 [R], the patches whose features are needed; None means all.

        Returns:
            float [P, D] or [R, D], in the compute dtype.
        """
        P = patches.shape[0]  # len() would make it a constant of a graph
        _, positions = patch_positions(cu_seqlens, P)
        embeddings = self.patch_embedding(patches, self.base.wpe.weight, positions)
        groups = DocumentGroups(cu_seqlens, max_seqlen, host_offsets)

        def attend(x: Tensor, projection: Linear, dropout: float) -> Tensor:
            q, k, v = projection(x).view(P, 3, self.heads, -1).unbind(1)
            return patch_attention(q, k, v, cu_seqlens, max_seqlen, dropout=dropout, groups=groups).reshape(x.shape)

        return self.base(embeddings, attend, rows)
