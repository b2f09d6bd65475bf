"""bias_gelu in plain torch."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def bias_gelu_reference(x: Tensor, bias: Tensor) -> Tensor:
    """GELU(x + bias) by its tanh formula, [N, F] in x's dtype, computed in float32 or float64."""
    return F.gelu(_widened(x) + _widened(bias), approximate="tanh").to(x.dtype).contiguous()


def bias_gelu_backward_reference(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of bias_gelu: dx [N, F] in x's dtype, dbias [F] in bias's dtype; and bias_gelu's result."""
    z = _widened(x) + _widened(bias)
    slope = math.sqrt(2 / math.pi)
    tanh = torch.tanh(slope * (z + 0.044715 * z**3))
    dz = _widened(dy) * 0.5 * (1 + tanh + z * (1 - tanh**2) * slope * (1 + 3 * 0.044715 * z**2))
    return dz.to(x.dtype).contiguous(), dz.sum(0).to(bias.dtype), bias_gelu_reference(x, bias)


def _widened(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
