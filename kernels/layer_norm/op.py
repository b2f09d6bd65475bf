"""layer_norm and add_layer_norm: LayerNorm, and LayerNorm of a residual sum with dropout in the same pass.

Computed in float32 for every dtype: torch on the CPU sums bfloat16 gradients of weight and bias over all rows in
bfloat16, where the last rows are lost to rounding. On the CPU float32 and bfloat16 rows without dropout are computed in
C++ (csrc/layer_norm), everything else by the reference; on an NVIDIA GPU both ops are Triton kernels.

Shape letters: N rows, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bgpt_fast import _C
from bgpt_fast.kernels.common.checks import FLOATS, check_tensor, or_float32
from bgpt_fast.kernels.common.register import Op, Triton, has_no_float64, register
from bgpt_fast.kernels.layer_norm.reference import (
    add_layer_norm_backward_reference,
    add_layer_norm_reference,
    layer_norm_backward_reference,
    layer_norm_reference,
)

_MAX_GPU_WIDTH = 8192  # wider rows do not fit the registers of a Triton program
_BEST_ISA = 2  # the widest instruction set to use, where the processor has it


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5, out_dtype: torch.dtype | None = None
) -> Tensor:
    """LayerNorm of each row, (x − mean) / √(variance + eps) · weight + bias.

    Args:
        x: float [N, D], any strides.
        weight, bias: [D], of x's dtype or float32, both the same.
        eps: added to the variance.
        out_dtype: floating-point dtype of the result; None means x's.

    Returns:
        float [N, D], contiguous; each row depends only on that row of x.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or eps.

    Source: arXiv 1607.06450.
    """
    _check("layer_norm", x, weight, bias, eps)
    dtype = x.dtype if out_dtype is None else out_dtype
    if dtype not in FLOATS:
        raise TypeError(f"layer_norm: out_dtype: expected a float dtype, got {out_dtype}")
    return torch.ops.bgpt_fast.layer_norm(x, weight, bias, eps, dtype)[0]


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    dropout: float = 0.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """total = residual + dropout(x) and the LayerNorm of its rows, in one pass.

    Whether an element is dropped depends only on (seed, row, column) and is the same on every device; no mask is
    stored: the backward pass recomputes it.

    Args:
        x: float [N, D], any strides.
        residual: [N, D], of x's dtype or float32, any strides.
        weight, bias: [D], of x's dtype or float32, both the same.
        eps: added to the variance.
        dropout: probability with which an element of x is made zero; the others are scaled by 1/(1 − dropout).
        seed: dropout seed, 0 … 2⁶³ − 1; use a different one in each layer and step.

    Returns:
        y [N, D] in x's dtype, LayerNorm(total), and total [N, D] in residual's dtype; both contiguous.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device, eps, dropout or seed.

    Source: arXiv 1607.06450; the random stream is Philox (Salmon et al., SC 2011).
    """
    _check("add_layer_norm", x, weight, bias, eps)
    dtypes, shape = or_float32(x.dtype), tuple(x.shape)
    check_tensor("add_layer_norm", "residual", residual, dtypes=dtypes, shape=shape, device=x.device)
    if not 0.0 <= dropout <= 1.0:
        raise ValueError(f"add_layer_norm: dropout: expected a probability, got {dropout}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"add_layer_norm: seed: expected 0 … 2⁶³ − 1, got {seed}")
    y, total, _, _ = torch.ops.bgpt_fast.add_layer_norm(x, residual, weight, bias, eps, dropout, seed)
    return y, total


def _check(op: str, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> None:
    check_tensor(op, "x", x, dtypes=FLOATS, shape=("N", "D"), nonempty="D")
    check_tensor(op, "weight", weight, dtypes=or_float32(x.dtype), shape=(x.shape[1],), device=x.device)
    check_tensor(op, "bias", bias, dtypes=(weight.dtype,), shape=(x.shape[1],), device=x.device)
    if not eps >= 0.0:
        raise ValueError(f"{op}: eps: expected at least 0, got {eps}")


def _forward_cpu(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    if not _are_native(x.dtype, dtype):
        return layer_norm_reference(x.contiguous(), weight, bias, eps, dtype)
    y, _, mean, rstd = _norm_of_sum(None, x, weight, bias, eps, dtype)
    return y, mean, rstd


def _add_forward_cpu(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, dropout: float, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if dropout > 0.0 or not _are_native(x.dtype, residual.dtype):
        return add_layer_norm_reference(x.contiguous(), residual.contiguous(), weight, bias, eps, dropout, seed)
    return _norm_of_sum(x.contiguous(), residual, weight, bias, eps, x.dtype)


def _norm_of_sum(
    x: Tensor | None, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y in `dtype`, total, mean and rstd; without x, total is the residual."""
    residual, weight, bias = residual.contiguous(), weight.float().contiguous(), bias.float().contiguous()
    total = residual if x is None else torch.empty_like(residual)
    y = residual.new_empty(residual.shape, dtype=dtype)
    mean, rstd = (residual.new_empty(len(residual), dtype=torch.float32) for _ in range(2))
    added = 0 if x is None else x.data_ptr()
    rows = (residual.data_ptr(), total.data_ptr(), y.data_ptr())
    vectors = (weight.data_ptr(), bias.data_ptr(), mean.data_ptr(), rstd.data_ptr())
    (N, D), types, threads = y.shape, (_is_bf16(y), _is_bf16(total)), torch.get_num_threads()
    _C.layer_norm_forward(added, *rows, *vectors, N, D, eps, *types, threads, _BEST_ISA)
    return y, total, mean, rstd


def _backward_cpu(dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if not _are_native(dy.dtype, x.dtype):
        return layer_norm_backward_reference(dy.contiguous(), x.contiguous(), weight, mean, rstd)
    return _backward_of_sum(dy, None, x, weight, mean, rstd, None, None)


def _add_backward_cpu(dy, dtotal, total, weight, mean, rstd, dtype, dropout, seed, sums):  # type: ignore[no-untyped-def]
    if dropout > 0.0 or not _are_native(dtype, total.dtype):
        dtotal = None if dtotal is None else dtotal.contiguous()
        arguments = (dy.contiguous(), dtotal, total, weight, mean, rstd, dtype, dropout, seed, sums)
        return add_layer_norm_backward_reference(*arguments)
    # An op's outputs may not share memory, so equal gradients are returned once.
    dx = total.new_empty(0 if dtype == total.dtype else len(total), total.shape[1], dtype=dtype)
    column_sum = total.new_empty(total.shape[1] if sums else 0, dtype=torch.float32)
    copy = dx if len(dx) else None
    gradients = _backward_of_sum(dy, dtotal, total, weight, mean, rstd, copy, column_sum if sums else None)
    return dx, *gradients, column_sum.to(dtype)


def _backward_of_sum(
    dy: Tensor,
    addend: Tensor | None,
    total: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    dx: Tensor | None,
    column_sum: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dtotal, to which `addend` is added, dweight and dbias; writes dtotal to `dx`, and its sum over rows to
    `column_sum`, float32 [D]."""
    dy, total, wide_weight = dy.contiguous(), total.contiguous(), weight.float().contiguous()
    addend = None if addend is None else addend.contiguous()
    dtotal = torch.empty_like(total)
    dweight, dbias = (wide_weight.new_empty(weight.shape) for _ in range(2))
    added, copy, sums = (0 if t is None else t.data_ptr() for t in (addend, dx, column_sum))
    vectors = (wide_weight.data_ptr(), mean.data_ptr(), rstd.data_ptr(), dweight.data_ptr(), dbias.data_ptr(), sums)
    (N, D), types, threads = total.shape, (_is_bf16(dy), _is_bf16(total)), torch.get_num_threads()
    _C.layer_norm_backward(
        dy.data_ptr(), added, total.data_ptr(), dtotal.data_ptr(), copy, *vectors, N, D, *types, threads, _BEST_ISA
    )
    return dtotal, dweight.to(weight.dtype), dbias.to(weight.dtype)


def _are_native(*dtypes: torch.dtype) -> bool:
    """Whether the C++ kernels have these dtypes."""
    return all(dtype in (torch.float32, torch.bfloat16) for dtype in dtypes)


def _is_bf16(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _gpu_takes(*arguments: Any) -> bool:
    width = next(argument.shape[1] for argument in arguments if isinstance(argument, Tensor))
    return has_no_float64(*arguments) and width <= _MAX_GPU_WIDTH


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, _, _, _ = inputs
    _, mean, rstd = output
    ctx.set_materialize_grads(False)  # no tensors of zeros for mean and rstd
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, weight, mean, rstd)


def _backward(ctx, dy: Tensor | None, _dmean: None, _drstd: None):  # type: ignore[no-untyped-def]
    if dy is None:
        return None, None, None, None, None
    return *torch.ops.bgpt_fast.layer_norm_backward(dy, *ctx.saved_tensors), None, None


def _add_setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, _, weight, _, _, ctx.dropout, ctx.seed = inputs
    _, total, mean, rstd = output
    ctx.dtype = x.dtype
    ctx.set_materialize_grads(False)  # an unused total has the gradient None, not a tensor of zeros
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(total, weight, mean, rstd)


def _add_backward(ctx, dy, dtotal, _dmean, _drstd):  # type: ignore[no-untyped-def]
    total, weight, mean, rstd = ctx.saved_tensors
    dy = torch.zeros(total.shape, dtype=ctx.dtype, device=total.device) if dy is None else dy
    dx, dresidual, dweight, dbias, _ = torch.ops.bgpt_fast.add_layer_norm_backward(
        dy, dtotal, total, weight, mean, rstd, ctx.dtype, ctx.dropout, ctx.seed, False
    )
    same = ctx.dropout == 0.0 and ctx.dtype == total.dtype
    return dresidual if same else dx, dresidual, dweight, dbias, None, None, None


def _fake(x, weight, bias, eps, dtype):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape, dtype=dtype), *(x.new_empty(x.shape[0], dtype=_wide(x)) for _ in range(2))


def _add_fake(x, residual, weight, bias, eps, dropout, seed):  # type: ignore[no-untyped-def]
    y, mean, rstd = _fake(x, weight, bias, eps, x.dtype)
    return y, residual.new_empty(residual.shape), mean, rstd


def _add_backward_fake(dy, dtotal, total, weight, mean, rstd, dtype, dropout, seed, sums):  # type: ignore[no-untyped-def]
    same = dropout == 0.0 and dtype == total.dtype
    dx = total.new_empty(0 if same else total.shape[0], total.shape[1], dtype=dtype)
    column_sum = dx.new_empty(total.shape[1] if sums else 0)
    return dx, total.new_empty(total.shape), *(weight.new_empty(weight.shape) for _ in range(2)), column_sum


def _triton(launcher: str, reference: Callable[..., Any]) -> Triton:
    return Triton("layer_norm", launcher, reference, _gpu_takes)


OPS = (
    Op(
        "layer_norm(Tensor x, Tensor weight, Tensor bias, float eps, ScalarType dtype) -> (Tensor, Tensor, Tensor)",
        reference=layer_norm_reference,
        cpu=_forward_cpu,
        cuda=_triton("layer_norm_forward", layer_norm_reference),
        fake=_fake,
        setup_context=_setup_context,
        backward=_backward,
    ),
    Op(
        "layer_norm_backward(Tensor dy, Tensor x, Tensor weight, Tensor mean, Tensor rstd) -> (Tensor, Tensor, Tensor)",
        reference=layer_norm_backward_reference,
        cpu=_backward_cpu,
        cuda=_triton("layer_norm_backward", layer_norm_backward_reference),
        fake=lambda dy, x, weight, mean, rstd: tuple(t.new_empty(t.shape) for t in (x, weight, weight)),
    ),
    Op(
        "add_layer_norm(Tensor x, Tensor residual, Tensor weight, Tensor bias, float eps, float dropout, int seed)"
        " -> (Tensor, Tensor, Tensor, Tensor)",
        reference=add_layer_norm_reference,
        cpu=_add_forward_cpu,
        cuda=_triton("add_layer_norm_forward", add_layer_norm_reference),
        fake=_add_fake,
        setup_context=_add_setup_context,
        backward=_add_backward,
    ),
    Op(
        "add_layer_norm_backward(Tensor dy, Tensor? dtotal, Tensor total, Tensor weight, Tensor mean, Tensor rstd,"
        " ScalarType dtype, float dropout, int seed, bool sums) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        reference=add_layer_norm_backward_reference,
        cpu=_add_backward_cpu,
        cuda=_triton("add_layer_norm_backward", add_layer_norm_backward_reference),
        fake=_add_backward_fake,
    ),
)
_library = register(*OPS)
