"""cached_attention in plain torch.

Shape letters: T new tokens, H heads, d channels a head, D = H·d, L positions a slot, B slots.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cached_attention_reference(qkv: Tensor, keys: Tensor, values: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
    """Writes the new tokens to the cache; each then attends to its slot's positions up to its own: [T, D]."""
    _, H, d, L = keys.shape
    q, k, v = qkv.view(-1, 3, H, d).unbind(1)
    wide = torch.promote_types(qkv.dtype, torch.float32)
    keys[slots, :, :, positions] = k.to(keys.dtype)
    values[slots, :, positions] = v.to(values.dtype)
    scores = torch.einsum("thd,thdl->thl", q.to(wide), keys[slots].to(wide)) * d**-0.5
    future = torch.arange(L, device=qkv.device) > positions[:, None]
    weights = scores.masked_fill(future[:, None], -torch.inf).softmax(-1)
    # Unused positions may contain NaN, which a weight of 0 would not remove.
    visible = values[slots].to(wide).masked_fill(future[:, None, :, None], 0.0)
    return torch.einsum("thl,thld->thd", weights, visible).reshape(-1, H * d).to(qkv.dtype)
