"""cached_attention: causal attention of new tokens over a cache of keys and values, the same bits in any company.

Shape letters: T new tokens, H heads, d channels a head, D = H·d, L positions a slot, B slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bgpt_fast import _C
from bgpt_fast.kernels.cached_attention.reference import cached_attention_reference
from bgpt_fast.kernels.common.checks import check_tensor

_library = torch.library.Library("bgpt_fast", "FRAGMENT")
_library.define(
    "cached_attention(Tensor qkv, Tensor(a!) keys, Tensor(b!) values, Tensor slots, Tensor positions, int isa)"
    " -> Tensor"
)


def cached_attention(
    qkv: Tensor, keys: Tensor, values: Tensor, slots: Tensor, positions: Tensor, *, isa: int = 2
) -> Tensor:
    """Puts the new tokens' keys and values into the cache, then attends from each to its slot's positions 0 … its own.

    Many tokens of a slot at once (prefill) and one at a time (decoding) give the same bits on the CPU: for each token
    and head the scores, the softmax (largest score subtracted) and the sum over values run in one fixed order over what
    that token sees, whatever else is in the call, on any number of threads and any instruction set. So they do on an
    NVIDIA GPU, by a Triton kernel (not yet run on a GPU), with bits of its own. On other devices plain torch serves,
    which promises none of that.

    Args:
        qkv: float32 [T, 3·D], queries, keys and values of the new tokens as GPT-2's `c_attn` returns them.
        keys: float32 or bfloat16 [B, H, d, L], contiguous; written at the new positions. bfloat16 is for GPUs: on the
            CPU plain torch serves it.
        values: of keys' dtype [B, H, L, d], contiguous; written at the new positions.
        slots: int64 [T], each token's slot, 0 … B-1.
        positions: int64 [T], each token's position, 0 … L-1; what it sees before its own must be in the cache, or
            come in the same call. A (slot, position) may appear once in a call.
        isa: the widest instruction set to use, 0 portable, 1 AVX2, 2 AVX-512; the processor's own if that is less.

    Returns:
        float32 [T, D].

    Raises:
        TypeError, ValueError: a wrong dtype, shape, layout or device, or an argument that asks for a gradient.
        IndexError: a slot or position outside the cache.
    """
    check_tensor("cached_attention", "keys", keys, dtypes=(torch.float32, torch.bfloat16), shape=("B", "H", "d", "L"))
    B, H, d, L = keys.shape
    device = keys.device
    check_tensor("cached_attention", "values", values, dtypes=(keys.dtype,), shape=(B, H, L, d), device=device)
    check_tensor("cached_attention", "qkv", qkv, dtypes=(torch.float32,), shape=("T", 3 * H * d), device=device)
    for name, value in (("slots", slots), ("positions", positions)):
        check_tensor("cached_attention", name, value, dtypes=(torch.int64,), shape=(qkv.shape[0],), device=device)
    for name, value in (("keys", keys), ("values", values)):
        if not value.is_contiguous():
            raise ValueError(
                f"cached_attention: {name}: expected a contiguous cache, which is written in place, got strides "
                f"{list(value.stride())}"
            )
    if isa not in (0, 1, 2):
        raise ValueError(f"cached_attention: isa: expected 0 (portable), 1 (AVX2) or 2 (AVX-512), got {isa!r}")
    if torch.is_grad_enabled() and any(t.requires_grad for t in (qkv, keys, values)):
        raise ValueError(
            "cached_attention: expected arguments without gradient, got requires_grad=True; it is for inference: "
            "call it under torch.no_grad()"
        )
    return torch.ops.bgpt_fast.cached_attention(qkv, keys, values, slots, positions, isa)


def _default(qkv: Tensor, keys: Tensor, values: Tensor, slots: Tensor, positions: Tensor, isa: int) -> Tensor:
    return cached_attention_reference(qkv, keys, values, slots, positions)


def _cpu(qkv: Tensor, keys: Tensor, values: Tensor, slots: Tensor, positions: Tensor, isa: int) -> Tensor:
    if keys.dtype != torch.float32:
        return cached_attention_reference(qkv, keys, values, slots, positions)
    qkv, slots, positions = qkv.contiguous(), slots.contiguous(), positions.contiguous()
    B, H, d, L = keys.shape
    y = qkv.new_empty(qkv.shape[0], H * d)
    _C.cached_attention(
        qkv.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        slots.data_ptr(),
        positions.data_ptr(),
        y.data_ptr(),
        qkv.shape[0],
        H,
        d,
        L,
        B,
        torch.get_num_threads(),
        isa,
    )
    return y


def _cuda(qkv: Tensor, keys: Tensor, values: Tensor, slots: Tensor, positions: Tensor, isa: int) -> Tensor:
    from bgpt_fast.kernels.cached_attention.triton_kernels import cached_attention_forward

    return cached_attention_forward(qkv, keys, values, slots, positions)


_library.impl("cached_attention", _default, "CompositeExplicitAutograd")
_library.impl("cached_attention", _cpu, "CPU")
_library.impl("cached_attention", _cuda, "CUDA")
torch.library.register_fake(
    "bgpt_fast::cached_attention",
    lambda qkv, keys, values, slots, positions, isa: qkv.new_empty(qkv.shape[0], qkv.shape[1] // 3),
)
