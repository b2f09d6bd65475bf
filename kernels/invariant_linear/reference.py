"""invariant_linear in plain torch, where the order of the sums is the library's own."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def invariant_linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    """x [M, K] · weight [K, N] + bias [N], then the tanh GELU if asked."""
    y = F.linear(x, weight.t(), bias)
    return F.gelu(y, approximate="tanh") if gelu else y
