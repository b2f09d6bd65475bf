"""linear_cross_entropy in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def linear_cross_entropy_reference(x: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """nats and lse, both [N], of x [N, D], weight [V, D], targets [N]; NaN where the target is not a token."""
    logits = _logits(x, weight)
    token = (targets >= 0) & (targets < len(weight))
    lse = logits.logsumexp(1).masked_fill(~token, torch.nan)
    return lse - logits.gather(1, targets.long().where(token, 0)[:, None])[:, 0], lse


def linear_cross_entropy_backward_reference(
    dnats: Tensor, x: Tensor, weight: Tensor, targets: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of linear_cross_entropy: dx [N, D] and dweight [V, D]."""
    onehot = targets[:, None] == torch.arange(len(weight), device=x.device)
    probabilities = (_logits(x, weight) - lse[:, None]).exp()
    dlogits = ((probabilities - onehot.to(lse.dtype)) * dnats[:, None]).to(x.dtype)
    return dlogits @ weight, dlogits.t() @ x


def _logits(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight).to(torch.promote_types(x.dtype, torch.float32))
