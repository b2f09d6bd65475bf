"""patch_attention in plain torch."""

import itertools
import math

import torch
from torch import Tensor


def patch_attention_reference(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Causal attention within each document: q, k, v [P, H, d], cu_seqlens [B+1] → [P, H, d]."""
    y = torch.empty_like(q)
    for start, end in itertools.pairwise(cu_seqlens.tolist()):
        scores = torch.einsum("qhd,khd->hqk", q[start:end], k[start:end]) / math.sqrt(q.shape[-1])
        future = torch.ones(end - start, end - start, dtype=torch.bool, device=q.device).triu(1)
        y[start:end] = torch.einsum("hqk,khd->qhd", scores.masked_fill(future, -torch.inf).softmax(-1), v[start:end])
    return y
