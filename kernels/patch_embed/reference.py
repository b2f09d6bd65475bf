"""patch_embed in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def patch_embed_reference(
    patches: Tensor,
    weight: Tensor,
    bias: Tensor,
    position_weight: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """One-hot of each byte, concatenated, through a linear layer: [P, S], [S·V, D], [D] → [P, D]; plus positions."""
    one_hot = F.one_hot(patches.long(), len(weight) // patches.shape[1]).to(weight.dtype)
    y = F.linear(one_hot.flatten(1), weight.t(), bias)
    return y if position_weight is None else y + position_weight[positions]


def patch_embed_backward_reference(dy: Tensor, patches: Tensor, vocab_size: int) -> Tensor:
    """Row sums of `dy` by token, one one-hot product per byte position: deterministic, P·V of memory at a time."""
    slots = [F.one_hot(slot, vocab_size).to(dy.dtype).t() @ dy for slot in patches.long().unbind(1)]
    return torch.cat(slots)


def patch_embed_position_backward_reference(dy: Tensor, positions: Tensor, length: int) -> Tensor:
    """Row sums of `dy` by position: [P, D], [P] → [length, D]."""
    return F.one_hot(positions, length).to(dy.dtype).t() @ dy
