"""layer_norm and add_layer_norm in the plainest torch, with the stream of random words that dropout draws from."""

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def layer_norm_reference(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm of each row: y [N, D] in `dtype`, and the rows' mean and 1/deviation [N]."""
    rows = widened(x)
    mean = rows.mean(1)
    centred = rows - mean[:, None]
    rstd = (centred.square().mean(1) + eps).rsqrt()
    return (centred * rstd[:, None] * weight + bias).to(dtype), mean, rstd


def layer_norm_backward_reference(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Its gradient: dx [N, D], dweight and dbias [D], all in float32 or float64."""
    dy, normal = widened(dy).to(mean.dtype), (widened(x) - mean[:, None]) * rstd[:, None]
    scaled = dy * weight
    dx = scaled - scaled.mean(1)[:, None] - normal * (scaled * normal).mean(1)[:, None]
    return dx * rstd[:, None], (dy * normal).sum(0), dy.sum(0)


def add_reference(x: Tensor, residual: Tensor, dropout: float, seed: int, first: int = 0) -> Tensor:
    """residual + dropout(x), computed in float32 or float64, in the residual's dtype."""
    return (widened(residual) + drop(widened(x), dropout, seed, first)).to(residual.dtype)


def drop(x: Tensor, dropout: float, seed: int, first: int = 0) -> Tensor:
    """x [N, D], which is rows `first` … of a tensor, with each element scaled by 1/(1 − dropout) or made zero."""
    if dropout == 0.0:
        return x
    words = dropout_words(seed, x.shape[0], x.shape[1], x.device, first)
    return x * ((words >= dropout_threshold(dropout)) * dropout_scale(dropout))


def dropout_threshold(dropout: float) -> int:
    """The 32-bit words below it drop their element; 0 for no dropout."""
    return min(round(dropout * 2**32), _MASK)


def dropout_scale(dropout: float) -> float:
    """What the kept elements are multiplied by."""
    return 0.0 if dropout == 1.0 else 1.0 / (1.0 - dropout)


def dropout_words(seed: int, rows: int, width: int, device: torch.device | None = None, first: int = 0) -> Tensor:
    """Random 32-bit words of the rows from `first` on, as int64 [rows, width].

    In column c it is word c % 4 of Philox-4x32-10 at counter (c // 4, 0, row, row >> 32): of the seed, row and column
    alone, so that any part of the stream can be had again at any time.

    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
    """
    row = torch.arange(first, first + rows, device=device)[:, None]
    column = torch.arange(-(-width // 4), device=device)[None, :]
    c0, c1, c2, c3 = column, torch.zeros_like(column), row & _MASK, row >> 32
    k0, k1 = seed & _MASK, seed >> 32
    for _ in range(10):
        # The products wrap at 64 bits, which are the bits wanted.
        even, odd = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c2 = (odd >> 32 & _MASK) ^ c1 ^ k0, (even >> 32 & _MASK) ^ c3 ^ k1
        c1, c3 = odd & _MASK, even & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return torch.stack([c0, c1, c2, c3], dim=2).flatten(1)[:, :width]


def widened(x: Tensor) -> Tensor:
    """x in float32, or in float64 where it is that."""
    return x if x.dtype == torch.float64 else x.float()
