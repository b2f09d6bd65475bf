"""layer_norm and add_layer_norm in plain torch, and the random words of the dropout.

Shape letters: N rows, D width.
"""

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def layer_norm_reference(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm of each row: y [N, D] in `dtype`, and each row's mean and rstd [N] in float32 or float64."""
    rows = widened(x)
    mean = rows.mean(1)
    centred = rows - mean[:, None]
    rstd = (centred.square().mean(1) + eps).rsqrt()
    return (centred * rstd[:, None] * weight + bias).to(dtype), mean, rstd


def layer_norm_backward_reference(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of layer_norm: dx [N, D] in x's dtype, dweight and dbias [D] in weight's dtype."""
    dx, dweight, dbias = _wide_backward(dy, x, weight, mean, rstd)
    return dx.to(x.dtype), dweight.to(weight.dtype), dbias.to(weight.dtype)


def add_layer_norm_reference(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, dropout: float, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y = LayerNorm(total) in x's dtype, total = residual + dropout(x) in residual's, and total's mean and rstd."""
    total = add_reference(x, residual, dropout, seed).contiguous()
    y, mean, rstd = layer_norm_reference(total, weight, bias, eps, x.dtype)
    return y, total, mean, rstd


def add_layer_norm_backward_reference(
    dy: Tensor,
    dtotal: Tensor | None,
    total: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    dtype: torch.dtype,
    dropout: float,
    seed: int,
    sums: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx in `dtype`, dresidual in total's dtype, dweight and dbias [D], and dx's sum over rows in `dtype`.

    An op's outputs may not share memory, so equal gradients are returned once: dx is empty, [0, D], if it equals
    dresidual. The sum, the gradient of a bias that x contains, is [D], without `sums` [0].
    """
    dsum, dweight, dbias = _wide_backward(dy, total, weight, mean, rstd)
    dsum = dsum if dtotal is None else dsum + dtotal
    dx = drop(dsum, dropout, seed)
    column_sum = dx.sum(0) if sums else dx.new_empty(0)
    dx = dx[:0] if dropout == 0.0 and dtype == total.dtype else dx
    gradients = dsum.to(total.dtype), dweight.to(weight.dtype), dbias.to(weight.dtype)
    return dx.to(dtype, copy=True), *gradients, column_sum.to(dtype)


def _wide_backward(dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dy, normal = widened(dy).to(mean.dtype), (widened(x) - mean[:, None]) * rstd[:, None]
    scaled = dy * weight
    dx = scaled - scaled.mean(1)[:, None] - normal * (scaled * normal).mean(1)[:, None]
    return dx * rstd[:, None], (dy * normal).sum(0), dy.sum(0)


def add_reference(x: Tensor, residual: Tensor, dropout: float, seed: int, first: int = 0) -> Tensor:
    """residual + dropout(x), computed in float32 or float64, in the residual's dtype."""
    return (widened(residual) + drop(widened(x), dropout, seed, first)).to(residual.dtype)


def drop(x: Tensor, dropout: float, seed: int, first: int = 0) -> Tensor:
    """Dropout of x [N, D], whose rows are rows `first`, `first` + 1, … of the tensor that the seed belongs to."""
    if dropout == 0.0:
        return x
    words = dropout_words(seed, x.shape[0], x.shape[1], x.device, first)
    return x * ((words >= dropout_threshold(dropout)) * dropout_scale(dropout))


def dropout_threshold(dropout: float) -> int:
    """Elements whose 32-bit word is below this are dropped; 0 drops none."""
    return min(round(dropout * 2**32), _MASK)


def dropout_scale(dropout: float) -> float:
    """The factor of the elements that are not dropped."""
    return 0.0 if dropout == 1.0 else 1.0 / (1.0 - dropout)


def dropout_words(seed: int, rows: int, width: int, device: torch.device | None = None, first: int = 0) -> Tensor:
    """Random 32-bit words for `rows` rows from `first` on, as int64 [rows, width].

    Column c has word c % 4 of Philox-4x32-10 at counter (c // 4, 0, row, row >> 32): a function of only seed, row and
    column, so any part can be recomputed at any time.

    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
    """
    row = torch.arange(first, first + rows, device=device)[:, None]
    column = torch.arange(-(-width // 4), device=device)[None, :]
    c0, c1, c2, c3 = column, torch.zeros_like(column), row & _MASK, row >> 32
    k0, k1 = seed & _MASK, seed >> 32
    for _ in range(10):
        # The products may overflow 64 bits and wrap, as in Philox.
        even, odd = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c2 = (odd >> 32 & _MASK) ^ c1 ^ k0, (even >> 32 & _MASK) ^ c3 ^ k1
        c1, c3 = odd & _MASK, even & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return torch.stack([c0, c1, c2, c3], dim=2).flatten(1)[:, :width]


def widened(x: Tensor) -> Tensor:
    """x converted to float32; float64 is left unchanged."""
    return x if x.dtype == torch.float64 else x.float()
