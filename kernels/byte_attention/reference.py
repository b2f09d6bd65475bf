"""byte_attention in the plainest torch."""

import math

import torch
from torch import Tensor


def byte_attention_reference(qkv: Tensor) -> Tensor:
    """Causal attention within each patch: [T, S, 3, H, d] → [T, S, H, d]."""
    q, k, v = qkv.unbind(2)
    scores = torch.einsum("tihd,tjhd->thij", q, k) / math.sqrt(qkv.shape[-1])
    future = torch.ones(qkv.shape[1], qkv.shape[1], dtype=torch.bool, device=qkv.device).triu(1)
    return torch.einsum("thij,tjhd->tihd", scores.masked_fill(future, -torch.inf).softmax(-1), v)
