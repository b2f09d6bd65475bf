"""byte_attention in plain torch."""

import math

import torch
from torch import Tensor


def byte_attention_reference(qkv: Tensor) -> Tensor:
    """Causal attention within each patch: [T, S, 3, H, d] → [T, S, H, d]."""
    return torch.einsum("thij,tjhd->tihd", _weights(qkv), qkv[:, :, 2]).contiguous()


def byte_attention_backward_reference(dy: Tensor, qkv: Tensor) -> Tensor:
    """The gradient of byte_attention: dy [T, S, H, d], qkv → dqkv [T, S, 3, H, d]."""
    q, k, v = qkv.unbind(2)
    weights = _weights(qkv)
    dweights = torch.einsum("tihd,tjhd->thij", dy, v)
    dscores = weights * (dweights - (weights * dweights).sum(-1, keepdim=True)) / math.sqrt(qkv.shape[-1])
    dq = torch.einsum("thij,tjhd->tihd", dscores, k)
    dk = torch.einsum("thij,tihd->tjhd", dscores, q)
    dv = torch.einsum("thij,tihd->tjhd", weights, dy)
    return torch.stack([dq, dk, dv], dim=2)


def _weights(qkv: Tensor) -> Tensor:
    q, k, _ = qkv.unbind(2)
    scores = torch.einsum("tihd,tjhd->thij", q, k) / math.sqrt(qkv.shape[-1])
    future = torch.ones(qkv.shape[1], qkv.shape[1], dtype=torch.bool, device=qkv.device).triu(1)
    return scores.masked_fill(future, -torch.inf).softmax(-1)
