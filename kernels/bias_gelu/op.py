"""bias_gelu: the bias of a linear layer and the tanh GELU that follows it, in one pass.

The backward pass needs only x and bias. On a CPU both passes are C++ for float32 and bfloat16 (csrc/bias_gelu);
on an NVIDIA GPU they are Triton kernels.

Shape letters: N rows, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bgpt_fast import _C
from bgpt_fast.kernels.bias_gelu.reference import bias_gelu_backward_reference, bias_gelu_reference
from bgpt_fast.kernels.common.checks import FLOATS, check_tensor, or_float32
from bgpt_fast.kernels.common.register import Op, Triton, register

_BEST_ISA = 2  # the widest instruction set to use, where the processor has it


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """GELU(x + bias) by its tanh formula, computed in float32 and rounded once.

    Args:
        x: float [N, F], any strides.
        bias: [F], of x's dtype or float32.

    Returns:
        [N, F] in x's dtype, contiguous; each element depends only on its own x and bias.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or device.

    Source: arXiv 1606.08415, section 2.
    """
    _check("bias_gelu", x, bias)
    return torch.ops.bgpt_fast.bias_gelu(x, bias)


def bias_gelu_backward(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of `bias_gelu` and its result again, for callers that write their own backward.

    A linear layer that follows needs the result for its weight's gradient: on a GPU it comes with the same pass.

    Args:
        dy: [N, F] in x's dtype, any strides: the gradient of the result.
        x, bias: the arguments of `bias_gelu`.

    Returns:
        dx [N, F] in x's dtype, contiguous; dbias [F] in bias's dtype, summed in float32 in an order that depends only
        on the shape; and bias_gelu(x, bias), bit-equal on a CPU.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or device.

    Source: arXiv 1606.08415, section 2.
    """
    _check("bias_gelu_backward", x, bias)
    check_tensor("bias_gelu_backward", "dy", dy, dtypes=(x.dtype,), shape=tuple(x.shape), device=x.device)
    return torch.ops.bgpt_fast.bias_gelu_backward(dy, x, bias)


def _check(op: str, x: Tensor, bias: Tensor) -> None:
    check_tensor(op, "x", x, dtypes=FLOATS, shape=("N", "F"))
    check_tensor(op, "bias", bias, dtypes=or_float32(x.dtype), shape=(x.shape[1],), device=x.device)


def _forward_cpu(x: Tensor, bias: Tensor) -> Tensor:
    if x.dtype == torch.float64:
        return torch.ops.aten.gelu_(x + bias, approximate="tanh").contiguous()
    if x.dtype == torch.float16:
        return _forward_cpu(x.float(), bias).to(x.dtype)
    x, bias = x.contiguous(), bias.float().contiguous()
    y = x.new_empty(x.shape)
    (N, F), is_bf16, threads = x.shape, x.dtype == torch.bfloat16, torch.get_num_threads()
    _C.bias_gelu(x.data_ptr(), bias.data_ptr(), y.data_ptr(), N, F, is_bf16, threads, _BEST_ISA)
    return y


def _backward_cpu(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if x.dtype == torch.float64:
        dx = torch.ops.aten.gelu_backward(dy, x + bias, approximate="tanh").contiguous()
        return dx, dx.sum(0), _forward_cpu(x, bias)
    if x.dtype == torch.float16:
        dx, dbias, y = _backward_cpu(dy.float(), x.float(), bias.float())
        return dx.to(x.dtype), dbias.to(bias.dtype), y.to(x.dtype)
    dy, x, wide_bias = dy.contiguous(), x.contiguous(), bias.float().contiguous()
    dx, y, dbias = x.new_empty(x.shape), x.new_empty(x.shape), wide_bias.new_empty(bias.shape)
    inputs = dy.data_ptr(), x.data_ptr(), wide_bias.data_ptr()
    outputs = dx.data_ptr(), y.data_ptr(), dbias.data_ptr()
    (N, F), is_bf16, threads = x.shape, x.dtype == torch.bfloat16, torch.get_num_threads()
    _C.bias_gelu_backward(*inputs, *outputs, N, F, is_bf16, threads, _BEST_ISA)
    return dx, dbias.to(bias.dtype), y


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _backward(ctx, dy: Tensor):  # type: ignore[no-untyped-def]
    return torch.ops.bgpt_fast.bias_gelu_backward(dy, *ctx.saved_tensors)[:2]


OPS = (
    Op(
        "bias_gelu(Tensor x, Tensor bias) -> Tensor",
        reference=bias_gelu_reference,
        cpu=_forward_cpu,
        cuda=Triton("bias_gelu", "bias_gelu_forward", bias_gelu_reference),
        fake=lambda x, bias: x.new_empty(x.shape),
        setup_context=_setup_context,
        backward=_backward,
    ),
    Op(
        "bias_gelu_backward(Tensor dy, Tensor x, Tensor bias) -> (Tensor, Tensor, Tensor)",
        reference=bias_gelu_backward_reference,
        cpu=_backward_cpu,
        cuda=Triton("bias_gelu", "bias_gelu_backward", bias_gelu_backward_reference),
        fake=lambda dy, x, bias: (x.new_empty(x.shape), bias.new_empty(bias.shape), x.new_empty(x.shape)),
    ),
)
_library = register(*OPS)
