"""byte_attention: causal attention within each patch, sequences of S ≈ 16 for which no library has tiles.

Shape letters: T patches, S bytes a patch, H heads, d channels a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

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


def byte_attention(qkv: Tensor) -> Tensor:
    """Causal multi-head attention within each patch, softmax(q kᵀ / √d) v.

    On the CPU in float32 and bfloat16 it is one pass in C++ (bfloat16 is computed in float32 and rounded once), where a
    patch's result does not depend on the other patches or on the number of threads. Elsewhere it is plain torch: there
    is no GPU kernel yet.

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


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(inputs[0])


def _backward(ctx, dy: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    return torch.ops.bgpt_fast.byte_attention_backward(dy, ctx.saved_tensors[0])


_library.impl("byte_attention", _forward_reference, "CompositeExplicitAutograd")
_library.impl("byte_attention", _forward_cpu, "CPU")
_library.impl("byte_attention_backward", _backward_reference, "CompositeExplicitAutograd")
_library.impl("byte_attention_backward", _backward_cpu, "CPU")
torch.library.register_fake(
    "bgpt_fast::byte_attention", lambda qkv: qkv.new_empty(qkv.shape[0], qkv.shape[1], qkv.shape[3], qkv.shape[4])
)
torch.library.register_fake("bgpt_fast::byte_attention_backward", lambda dy, qkv: qkv.new_empty(qkv.shape))
torch.library.register_autograd("bgpt_fast::byte_attention", _backward, setup_context=_setup_context)
refuse_second_derivative("bgpt_fast::byte_attention_backward")
