"""byte_attention: causal attention within each patch: sequences of S ≈ 16, too short for any library's tiles.

byte_attention_projected computes qkv as well, for inference.

Shape letters: T patches, S bytes a patch, H heads, d channels a head, D = H · d.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bgpt_fast import _C
from bgpt_fast.kernels.byte_attention.reference import byte_attention_backward_reference, byte_attention_reference
from bgpt_fast.kernels.common.checks import FLOATS, check_tensor
from bgpt_fast.kernels.common.register import Op, Triton, has_no_float64, register

_MAX_GPU_LENGTH, _MAX_GPU_CHANNELS = 64, 128
_MAX_GPU_PROJECTED_LENGTH, _MAX_GPU_PROJECTED_CHANNELS = 16, 64


def byte_attention(qkv: Tensor) -> Tensor:
    """Causal multi-head attention within each patch, softmax(q kᵀ / √d) v.

    On the CPU in float32 and bfloat16 it is one pass in C++ (bfloat16 is computed in float32 and rounded once), where a
    patch's result does not depend on the other patches or on the number of threads. On an NVIDIA GPU it is one Triton
    kernel for each pass, for patches of up to 64 bytes and heads of up to 128 channels, in float32, bfloat16 and
    float16. Otherwise it is plain torch. NaN and infinity affect no other patch and, in these kernels, no earlier byte.

    Args:
        qkv: float [T, S, 3, H, d], as the fused projection writes it; any strides.

    Returns:
        float [T, S, H, d], contiguous.

    Raises:
        TypeError, ValueError: a wrong dtype or shape.

    Source: arXiv 2402.19155, section 3 (the byte-level decoder's attention).
    """
    check_tensor("byte_attention", "qkv", qkv, dtypes=FLOATS, shape=("T", "S", 3, "H", "d"), nonempty="S, H, d")
    return torch.ops.bgpt_fast.byte_attention(qkv)


def byte_attention_projected(x: Tensor, weight: Tensor, bias: Tensor, heads: int) -> Tensor:
    """`byte_attention` of qkv = x weight + bias, which on a GPU is not written to memory unless a gradient is needed.

    On an NVIDIA GPU without gradients it is one Triton kernel, for patches of up to 16 bytes and heads of up to 64
    channels. Otherwise it is a matrix product and `byte_attention`. Either way qkv is rounded to x's dtype.

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
    check_tensor(op, "x", x, dtypes=FLOATS, shape=("T", "S", "D"), nonempty="S and D")
    D = x.shape[2]
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


def _cpu_takes(qkv: Tensor) -> bool:
    return qkv.shape[1] <= _C.short_attention_max_length and qkv.dtype in (torch.float32, torch.bfloat16)


def _forward_cpu(qkv: Tensor) -> Tensor:
    if not _cpu_takes(qkv):
        return byte_attention_reference(qkv)
    qkv = qkv.contiguous()
    T, S, _, H, d = qkv.shape
    y = qkv.new_empty(T, S, H, d)
    q, k, v = (part.data_ptr() for part in qkv.unbind(2))
    is_bf16, threads = qkv.dtype == torch.bfloat16, torch.get_num_threads()
    _C.short_attention(q, k, v, 3 * H * d, y.data_ptr(), T, S, 0, H, d, is_bf16, threads)
    return y


def _backward_cpu(dy: Tensor, qkv: Tensor) -> Tensor:
    if not _cpu_takes(qkv):
        return byte_attention_backward_reference(dy, qkv)
    dy, qkv = dy.contiguous(), qkv.contiguous()
    T, S, _, H, d = qkv.shape
    dqkv = torch.empty_like(qkv)
    q, k, v = (part.data_ptr() for part in qkv.unbind(2))
    dq, dk, dv = (part.data_ptr() for part in dqkv.unbind(2))
    stride, is_bf16, threads = 3 * H * d, qkv.dtype == torch.bfloat16, torch.get_num_threads()
    _C.short_attention_backward(dy.data_ptr(), q, k, v, stride, dq, dk, dv, stride, T, S, 0, H, d, is_bf16, threads)
    return dqkv


def _gpu_takes(*tensors: Tensor) -> bool:
    _, S, _, _, d = tensors[-1].shape
    return has_no_float64(*tensors) and S <= _MAX_GPU_LENGTH and d <= _MAX_GPU_CHANNELS


def _projected_composed(x: Tensor, weight: Tensor, bias: Tensor, heads: int) -> Tensor:
    return torch.ops.bgpt_fast.byte_attention(_project(x, weight, bias, heads))


def _gpu_takes_projected(x: Tensor, weight: Tensor, bias: Tensor, heads: int) -> bool:
    _, S, D = x.shape
    return has_no_float64(x) and S <= _MAX_GPU_PROJECTED_LENGTH and D // heads <= _MAX_GPU_PROJECTED_CHANNELS


def _refuse_gradient(ctx, dy: Tensor) -> None:  # type: ignore[no-untyped-def]
    raise RuntimeError("bgpt_fast::byte_attention_projected has no gradient: call the function of this name instead")


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(inputs[0])


def _backward(ctx, dy: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    return torch.ops.bgpt_fast.byte_attention_backward(dy, ctx.saved_tensors[0])


OPS = (
    Op(
        "byte_attention(Tensor qkv) -> Tensor",
        reference=byte_attention_reference,
        cpu=_forward_cpu,
        cuda=Triton("byte_attention", "byte_attention_forward", byte_attention_reference, _gpu_takes),
        fake=lambda qkv: qkv.new_empty(qkv.shape[0], qkv.shape[1], qkv.shape[3], qkv.shape[4]),
        setup_context=_setup_context,
        backward=_backward,
    ),
    Op(
        "byte_attention_backward(Tensor dy, Tensor qkv) -> Tensor",
        reference=byte_attention_backward_reference,
        cpu=_backward_cpu,
        cuda=Triton("byte_attention", "byte_attention_backward", byte_attention_backward_reference, _gpu_takes),
        fake=lambda dy, qkv: qkv.new_empty(qkv.shape),
    ),
    Op(
        "byte_attention_projected(Tensor x, Tensor weight, Tensor bias, int heads) -> Tensor",
        reference=_projected_composed,
        cuda=Triton("byte_attention", "byte_attention_projected_forward", _projected_composed, _gpu_takes_projected),
        fake=lambda x, weight, bias, heads: x.new_empty(x.shape[0], x.shape[1], heads, x.shape[2] // heads),
        backward=_refuse_gradient,
    ),
)
_library = register(*OPS)
