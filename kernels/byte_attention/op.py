"""byte_attention: causal attention within each patch, sequences of S ≈ 16 for which no library has tiles.

byte_attention_projected has the projection to qkv in front of it, for where no gradient is wanted.

Shape letters: T patches, S bytes a patch, H heads, d channels a head, D = H · d.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bgpt_fast import _C
from bgpt_fast.kernels.byte_attention.reference import (
    byte_attention_backward_reference,
    byte_attention_reference,
)
from bgpt_fast.kernels.common.autograd import refuse_second_derivative
from bgpt_fast.kernels.common.checks import check_tensor

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_library = torch.library.Library("bgpt_fast", "FRAGMENT")
_library.define("byte_attention(Tensor qkv) -> Tensor")
_library.define("byte_attention_backward(Tensor dy, Tensor qkv) -> Tensor")
_library.define("byte_attention_projected(Tensor x, Tensor weight, Tensor bias, int heads) -> Tensor")


def byte_attention(qkv: Tensor) -> Tensor:
    """Causal multi-head attention within each patch, softmax(q kᵀ / √d) v.

    On the CPU in float32 and bfloat16 it is one pass in C++ (bfloat16 is computed in float32 and rounded once), where a
    patch's result does not depend on the other patches or on the number of threads. On an NVIDIA GPU it is one Triton
    kernel each way (not yet run on a GPU) for patches of up to 64 bytes and heads of up to 128 channels, in float32,
    bfloat16 and float16. Elsewhere it is plain torch. What is not finite reaches no other patch, and in these kernels
    no earlier byte.

    Args:
        qkv: float [T, S, 3, H, d], as the fused projection writes it; any strides.

    Returns:
        float [T, S, H, d], contiguous.

    Raises:
        TypeError, ValueError: a wrong dtype or shape.

    Source: arXiv 2402.19155, section 3 (the byte-level decoder's attention).
    """
    check_tensor("byte_attention", "qkv", qkv, dtypes=_DTYPES, shape=("T", "S", 3, "H", "d"))
    if 0 in qkv.shape[1:]:
        raise ValueError(f"byte_attention: qkv: expected S, H, d of at least 1, got {list(qkv.shape)}")
    return torch.ops.bgpt_fast.byte_attention(qkv)


def byte_attention_projected(x: Tensor, weight: Tensor, bias: Tensor, heads: int) -> Tensor:
    """byte_attention of (x weight + bias) as qkv, which on a GPU never is in memory unless a gradient is wanted.

    On an NVIDIA GPU without gradients it is one Triton kernel (not yet run on a GPU) for patches of up to 16 bytes and
    heads of up to 64 channels. Elsewhere, and where a gradient is wanted, it is a product and `byte_attention`. Either
    way qkv is rounded to x's dtype.

    Args:
        x: float [T, S, D]; any strides.
        weight: [D, 3 D] of x's dtype, as GPT-2's Conv1D stores it; any strides, on a GPU fastest with rows contiguous.
        bias: [3 D], of x's dtype or float32 (rounded to x's dtype).
        heads: H, a divisor of D.

    Returns:
        float [T, S, H, d], contiguous.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or number of heads.

    Source: arXiv 2402.19155, section 3 (the byte-level decoder's attention).
    """
    op = "byte_attention_projected"
    check_tensor(op, "x", x, dtypes=_DTYPES, shape=("T", "S", "D"))
    D = x.shape[2]
    if 0 in x.shape[1:]:
        raise ValueError(f"{op}: x: expected S and D of at least 1, got {list(x.shape)}")
    check_tensor(op, "weight", weight, dtypes=(x.dtype,), shape=(D, 3 * D), device=x.device)
    check_tensor(op, "bias", bias, dtypes=tuple({x.dtype: 0, torch.float32: 0}), shape=(3 * D,), device=x.device)
    if isinstance(heads, bool) or not isinstance(heads, int):
        raise TypeError(f"{op}: heads: expected an int, got {type(heads).__name__}")
    if heads < 1 or D % heads != 0:
        raise ValueError(f"{op}: heads: expected a divisor of D = {D}, got {heads}")
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or bias.requires_grad):
        return torch.ops.bgpt_fast.byte_attention(_project(x, weight, bias, heads))
    return torch.ops.bgpt_fast.byte_attention_projected(x, weight, bias, heads)


def _project(x: Tensor, weight: Tensor, bias: Tensor, heads: int) -> Tensor:
    """qkv [T, S, 3, H, d]."""
    return F.linear(x, weight.t(), bias.to(x.dtype)).unflatten(2, (3, heads, x.shape[2] // heads))


def _forward_reference(qkv: Tensor) -> Tensor:
    return byte_attention_reference(qkv).contiguous()


def _backward_reference(dy: Tensor, qkv: Tensor) -> Tensor:
    return byte_attention_backward_reference(dy, qkv)


def _has_kernel(qkv: Tensor) -> bool:
    return qkv.shape[1] <= _C.short_attention_max_length and qkv.dtype in (torch.float32, torch.bfloat16)


def _forward_cpu(qkv: Tensor) -> Tensor:
    if not _has_kernel(qkv):
        return _forward_reference(qkv)
    qkv = qkv.contiguous()
    T, S, _, H, d = qkv.shape
    y = qkv.new_empty(T, S, H, d)
    q, k, v = (part.data_ptr() for part in qkv.unbind(2))
    is_bf16, threads = qkv.dtype == torch.bfloat16, torch.get_num_threads()
    _C.short_attention(q, k, v, 3 * H * d, y.data_ptr(), T, S, 0, H, d, is_bf16, threads)
    return y


def _backward_cpu(dy: Tensor, qkv: Tensor) -> Tensor:
    if not _has_kernel(qkv):
        return _backward_reference(dy, qkv)
    dy, qkv = dy.contiguous(), qkv.contiguous()
    T, S, _, H, d = qkv.shape
    dqkv = torch.empty_like(qkv)
    q, k, v = (part.data_ptr() for part in qkv.unbind(2))
    dq, dk, dv = (part.data_ptr() for part in dqkv.unbind(2))
    stride, is_bf16, threads = 3 * H * d, qkv.dtype == torch.bfloat16, torch.get_num_threads()
    _C.short_attention_backward(dy.data_ptr(), q, k, v, stride, dq, dk, dv, stride, T, S, 0, H, d, is_bf16, threads)
    return dqkv


def _forward_cuda(qkv: Tensor) -> Tensor:
    from bgpt_fast.kernels.byte_attention.triton_kernels import byte_attention_forward, takes

    if qkv.dtype == torch.float64 or not takes(qkv.shape[1], qkv.shape[4]):
        return _forward_reference(qkv)
    return byte_attention_forward(qkv)


def _backward_cuda(dy: Tensor, qkv: Tensor) -> Tensor:
    from bgpt_fast.kernels.byte_attention.triton_kernels import byte_attention_backward, takes

    if qkv.dtype == torch.float64 or not takes(qkv.shape[1], qkv.shape[4]):
        return _backward_reference(dy, qkv)
    return byte_attention_backward(dy, qkv)


def _projected_composed(x: Tensor, weight: Tensor, bias: Tensor, heads: int) -> Tensor:
    return torch.ops.bgpt_fast.byte_attention(_project(x, weight, bias, heads))


def _projected_cuda(x: Tensor, weight: Tensor, bias: Tensor, heads: int) -> Tensor:
    from bgpt_fast.kernels.byte_attention.triton_kernels import byte_attention_projected_forward, takes_projected

    if x.dtype == torch.float64 or not takes_projected(x.shape[1], x.shape[2] // heads):
        return _projected_composed(x, weight, bias, heads)
    return byte_attention_projected_forward(x, weight, bias, heads)


def _refuse_gradient(ctx, dy: Tensor) -> None:  # type: ignore[no-untyped-def]
    raise RuntimeError("bgpt_fast::byte_attention_projected has no gradient: call the function of its name, which has")


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(inputs[0])


def _backward(ctx, dy: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    return torch.ops.bgpt_fast.byte_attention_backward(dy, ctx.saved_tensors[0])


_library.impl("byte_attention", _forward_reference, "CompositeExplicitAutograd")
_library.impl("byte_attention", _forward_cpu, "CPU")
_library.impl("byte_attention", _forward_cuda, "CUDA")
_library.impl("byte_attention_backward", _backward_reference, "CompositeExplicitAutograd")
_library.impl("byte_attention_backward", _backward_cpu, "CPU")
_library.impl("byte_attention_backward", _backward_cuda, "CUDA")
_library.impl("byte_attention_projected", _projected_composed, "CompositeExplicitAutograd")
_library.impl("byte_attention_projected", _projected_cuda, "CUDA")
torch.library.register_fake(
    "bgpt_fast::byte_attention", lambda qkv: qkv.new_empty(qkv.shape[0], qkv.shape[1], qkv.shape[3], qkv.shape[4])
)
torch.library.register_fake("bgpt_fast::byte_attention_backward", lambda dy, qkv: qkv.new_empty(qkv.shape))
torch.library.register_autograd("bgpt_fast::byte_attention", _backward, setup_context=_setup_context)
torch.library.register_fake(
    "bgpt_fast::byte_attention_projected",
    lambda x, weight, bias, heads: x.new_empty(x.shape[0], x.shape[1], heads, x.shape[2] // heads),
)
refuse_second_derivative("bgpt_fast::byte_attention_backward")
torch.library.register_autograd("bgpt_fast::byte_attention_projected", _refuse_gradient)
