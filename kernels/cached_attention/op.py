"""cached_attention: causal attention of new tokens over a key-value cache, bit-identical in every batch.

Shape letters: T new tokens, H heads, d channels a head, D = H·d, L positions a slot, B slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bgpt_fast import _C
from bgpt_fast.kernels.cached_attention.reference import cached_attention_reference
from bgpt_fast.kernels.common.checks import check_inference, check_tensor
from bgpt_fast.kernels.common.register import Op, Triton, register


def cached_attention(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    positions: Tensor,
    *,
    isa: int = 2,
    distinct_slots: bool = False,
) -> Tensor:
    """Writes the new tokens' keys and values to the cache; each token attends to its slot's positions up to its own.

    On the CPU a token's bits do not depend on the other tokens in the call: for each token and head the scores, the
    softmax (largest score subtracted) and the sum over values run in one fixed order, on any number of threads and any
    instruction set. So a prefill of many tokens and decoding one by one give the same bits. The same holds on an NVIDIA
    GPU, where a Triton kernel is used, whose bits differ from the CPU's. Other devices use the reference, which gives
    no such guarantee.

    Args:
        qkv: float32 or bfloat16 [T, 3·D], queries, keys and values of the new tokens as GPT-2's `c_attn` returns them.
        keys: float32 or bfloat16 [B, H, d, L], contiguous; written at the new positions. bfloat16, here and in qkv, is
            for GPUs: the CPU uses the reference for it.
        values: dtype of keys [B, H, L, d], contiguous; written at the new positions.
        slots: int64 [T], each token's slot, 0 … B-1.
        positions: int64 [T], each token's position, 0 … L-1. The positions before it must be in the cache or in
            the same call. A (slot, position) may appear once in a call.
        isa: the widest instruction set to use, 0 portable, 1 AVX2, 2 AVX-512; the processor's own if that is less.
        distinct_slots: no slot appears twice: a GPU then writes and attends in one kernel instead of two. The bits are
            the same. With a slot that does, the result is undefined.

    Returns:
        qkv's dtype [T, D].

    Raises:
        TypeError, ValueError: a wrong dtype, shape, layout or device, or an argument that asks for a gradient.
        IndexError: a slot or position outside the cache.
    """
    check_tensor("cached_attention", "keys", keys, dtypes=(torch.float32, torch.bfloat16), shape=("B", "H", "d", "L"))
    B, H, d, L = keys.shape
    device = keys.device
    check_tensor("cached_attention", "values", values, dtypes=(keys.dtype,), shape=(B, H, L, d), device=device)
    check_tensor(
        "cached_attention", "qkv", qkv, dtypes=(torch.float32, torch.bfloat16), shape=("T", 3 * H * d), device=device
    )
    for name, value in (("slots", slots), ("positions", positions)):
        check_tensor("cached_attention", name, value, dtypes=(torch.int64,), shape=(qkv.shape[0],), device=device)
    for name, value in (("keys", keys), ("values", values)):
        if not value.is_contiguous():
            raise ValueError(
                f"cached_attention: {name}: expected a contiguous cache, which is written in place, got strides "
                f"{list(value.stride())}"
            )
    check_inference("cached_attention", isa, qkv, keys, values)
    return torch.ops.bgpt_fast.cached_attention(qkv, keys, values, slots, positions, isa, distinct_slots)


def _cpu(
    qkv: Tensor, keys: Tensor, values: Tensor, slots: Tensor, positions: Tensor, isa: int, distinct_slots: bool
) -> Tensor:
    if keys.dtype != torch.float32 or qkv.dtype != torch.float32:
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


_triton = Triton(
    "cached_attention",
    "cached_attention_forward",
    lambda *arguments: cached_attention_reference(*arguments[:5]),
)
OPS = (
    Op(
        "cached_attention(Tensor qkv, Tensor(a!) keys, Tensor(b!) values, Tensor slots, Tensor positions, int isa,"
        " bool distinct_slots) -> Tensor",
        reference=lambda *arguments: cached_attention_reference(*arguments[:5]),
        cpu=_cpu,
        cuda=lambda *arguments: _triton(*arguments[:5], arguments[6]),
        fake=lambda qkv, *_: qkv.new_empty(qkv.shape[0], qkv.shape[1] // 3),
    ),
)
_library = register(*OPS)
