"""invariant_linear in plain torch, with the summation order of torch's matrix product."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def invariant_linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    """x [M, K] · weight [K, N] + bias [N], then the tanh GELU if `gelu`."""
    y = F.linear(x, weight.t(), bias)
    return F.gelu(y, approximate="tanh") if gelu else y
