"""bias_gelu: the bias of a linear layer and the tanh GELU behind it, in one pass.

Only x and bias are kept for the backward. On a CPU both ways are C++ in float32 (csrc/linear/bias_gelu.h) and torch in
other dtypes; on an NVIDIA GPU they are Triton kernels (not yet run on a GPU).

Shape letters: N rows, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bgpt_fast import _C
from bgpt_fast.kernels.bias_gelu.reference import bias_gelu_backward_reference, bias_gelu_reference
from bgpt_fast.kernels.common.autograd import refuse_second_derivative
from bgpt_fast.kernels.common.checks import check_tensor

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_HALVES = (torch.bfloat16, torch.float16)
_BEST_ISA = 2  # at most: what the processor lacks is not used
_CPU_ROWS = 64  # of a piece that is widened to float32 at a time, so that it stays in the cache

_library = torch.library.Library("bgpt_fast", "FRAGMENT")
_library.define("bias_gelu(Tensor x, Tensor bias) -> Tensor")
_library.define("bias_gelu_backward(Tensor dy, Tensor x, Tensor bias) -> (Tensor, Tensor)")


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """GELU(x + bias) by its tanh formula, computed in float32 and rounded once.

    Args:
        x: float [N, F], any strides.
        bias: [F], of x's dtype or float32.

    Returns:
        [N, F] in x's dtype, contiguous; an element depends on its x and bias alone.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or device.

    Source: arXiv 1606.08415, section 2.
    """
    _check("bias_gelu", x, bias)
    return torch.ops.bgpt_fast.bias_gelu(x, bias)


def bias_gelu_backward(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of `bias_gelu`, for those who write their backward themselves.

    Args:
        dy: [N, F] in x's dtype, any strides: the gradient of the result.
        x, bias: what `bias_gelu` was given.

    Returns:
        dx [N, F] in x's dtype, contiguous, and dbias [F] in bias's, summed in float32 in an order that depends on the
        shape alone.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or device.

    Source: arXiv 1606.08415, section 2.
    """
    _check("bias_gelu_backward", x, bias)
    check_tensor("bias_gelu_backward", "dy", dy, dtypes=(x.dtype,), shape=tuple(x.shape), device=x.device)
    return torch.ops.bgpt_fast.bias_gelu_backward(dy, x, bias)


def _check(op: str, x: Tensor, bias: Tensor) -> None:
    check_tensor(op, "x", x, dtypes=_DTYPES, shape=("N", "F"))
    allowed = (x.dtype, torch.float32) if x.dtype in _HALVES else (x.dtype,)
    check_tensor(op, "bias", bias, dtypes=allowed, shape=(x.shape[1],), device=x.device)


def _forward_reference(x: Tensor, bias: Tensor) -> Tensor:
    return bias_gelu_reference(x, bias).contiguous()


def _backward_reference(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    dx, dbias = bias_gelu_backward_reference(dy, x, bias)
    return dx.contiguous(), dbias


def _forward_cpu(x: Tensor, bias: Tensor) -> Tensor:
    y = torch.empty(x.shape, dtype=x.dtype)
    if x.dtype == torch.float32:
        x, bias = x.contiguous(), bias.contiguous()
        threads = torch.get_num_threads()
        _C.bias_gelu(x.data_ptr(), bias.data_ptr(), y.data_ptr(), *x.shape, threads, _BEST_ISA)
        return y
    if x.dtype == torch.float64:
        return torch.ops.aten.gelu_(torch.add(x, bias, out=y), approximate="tanh")
    bias = bias.float()
    for x_rows, y_rows in zip(x.split(_CPU_ROWS), y.split(_CPU_ROWS), strict=True):
        y_rows.copy_(torch.ops.aten.gelu_(x_rows.float() + bias, approximate="tanh"))
    return y


def _backward_cpu(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    if x.dtype == torch.float32:
        dy, x, bias = dy.contiguous(), x.contiguous(), bias.contiguous()
        dx, dbias = x.new_empty(x.shape), bias.new_empty(bias.shape)
        inputs, outputs = (dy.data_ptr(), x.data_ptr(), bias.data_ptr()), (dx.data_ptr(), dbias.data_ptr())
        _C.bias_gelu_backward(*inputs, *outputs, *x.shape, torch.get_num_threads(), _BEST_ISA)
        return dx, dbias
    if x.dtype == torch.float64:
        dx = torch.ops.aten.gelu_backward(dy, x + bias, approximate="tanh").contiguous()
        return dx, dx.sum(0)
    dx, wide_bias = torch.empty(x.shape, dtype=x.dtype), bias.float()
    parts = [wide_bias.new_zeros(len(bias))]
    for dy_rows, x_rows, dx_rows in zip(*(t.split(_CPU_ROWS) for t in (dy, x, dx)), strict=True):
        dz = torch.ops.aten.gelu_backward(dy_rows.float(), x_rows.float() + wide_bias, approximate="tanh")
        dx_rows.copy_(dz)
        parts.append(dz.sum(0))
    return dx, torch.stack(parts).sum(0).to(bias.dtype)


def _forward_cuda(x: Tensor, bias: Tensor) -> Tensor:
    if x.dtype == torch.float64:
        return _forward_reference(x, bias)
    from bgpt_fast.kernels.bias_gelu.triton_kernels import bias_gelu_forward

    return bias_gelu_forward(x, bias)


def _backward_cuda(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    if x.dtype == torch.float64:
        return _backward_reference(dy, x, bias)
    from bgpt_fast.kernels.bias_gelu.triton_kernels import bias_gelu_backward

    return bias_gelu_backward(dy, x, bias)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _backward(ctx, dy: Tensor):  # type: ignore[no-untyped-def]
    return torch.ops.bgpt_fast.bias_gelu_backward(dy, *ctx.saved_tensors)


_library.impl("bias_gelu", _forward_reference, "CompositeExplicitAutograd")
_library.impl("bias_gelu", _forward_cpu, "CPU")
_library.impl("bias_gelu", _forward_cuda, "CUDA")
_library.impl("bias_gelu_backward", _backward_reference, "CompositeExplicitAutograd")
_library.impl("bias_gelu_backward", _backward_cpu, "CPU")
_library.impl("bias_gelu_backward", _backward_cuda, "CUDA")
torch.library.register_fake("bgpt_fast::bias_gelu", lambda x, bias: x.new_empty(x.shape))
torch.library.register_fake(
    "bgpt_fast::bias_gelu_backward", lambda dy, x, bias: (x.new_empty(x.shape), bias.new_empty(bias.shape))
)
torch.library.register_autograd("bgpt_fast::bias_gelu", _backward, setup_context=_setup_context)
refuse_second_derivative("bgpt_fast::bias_gelu_backward")
