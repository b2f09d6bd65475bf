"""matrix_product in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def matrix_product_reference(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """a b + bias, [M, N] in a's dtype."""
    return a @ b if bias is None else torch.addmm(bias, a, b)
