"""cached_attention on a GPU: one program for each new token and head loops over its slot's earlier positions.

Not yet run on a GPU. Bound by memory: a token at position L reads 8 d L bytes a head in float32, 3.1 MB a layer at
L = 512 and D = 768, some 0.7 us of an H200's 4.3 TB/s; many tokens of one slot (a prefill) read them from L2. Online
softmax: the token itself first, from its own qkv, then blocks of BLOCK positions in ascending order, whatever else is
in the call: so a token's bits depend only on the positions that it attends to. Keys and values are written by the same
program where no slot has two tokens, else by a kernel before.

Shape letters: T new tokens, H heads, d channels a head, L positions a slot, B slots.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bgpt_fast.kernels.common.launch import CompileCase, next_power_of_2, on_device


@triton.jit
def _cached_attention_write_kernel(
    qkv, keys, values, slots, positions, L, H: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr
):
    t = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1)
    position = tl.load(positions + t)
    head = (tl.load(slots + t).to(tl.int64) * H + h) * D * L
    channel = tl.arange(0, BLOCK_D)
    in_head = channel < D
    k = tl.load(qkv + (t * 3 * H + H + h) * D + channel, mask=in_head)
    v = tl.load(qkv + (t * 3 * H + 2 * H + h) * D + channel, mask=in_head)
    tl.store(keys + head + channel.to(tl.int64) * L + position, k.to(keys.dtype.element_ty), mask=in_head)
    tl.store(values + head + position.to(tl.int64) * D + channel, v.to(values.dtype.element_ty), mask=in_head)


@triton.jit
def _cached_attention_fwd_kernel(
    qkv,
    keys,
    values,
    slots,
    positions,
    y,
    scale,
    L,
    H: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WRITE: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1)
    position = tl.load(positions + t)
    head = (tl.load(slots + t).to(tl.int64) * H + h) * D * L
    channel = tl.arange(0, BLOCK_D)
    in_head = channel < D
    q = tl.load(qkv + (t * 3 * H + h) * D + channel, mask=in_head, other=0.0).to(tl.float32)
    # The token's own key and value as the cache rounds them.
    own_k = tl.load(qkv + (t * 3 * H + H + h) * D + channel, mask=in_head, other=0.0).to(keys.dtype.element_ty)
    own_v = tl.load(qkv + (t * 3 * H + 2 * H + h) * D + channel, mask=in_head, other=0.0).to(values.dtype.element_ty)
    if WRITE:
        tl.store(keys + head + channel.to(tl.int64) * L + position, own_k, mask=in_head)
        tl.store(values + head + position.to(tl.int64) * D + channel, own_v, mask=in_head)
    maximum = tl.sum(q * own_k.to(tl.float32), 0) * scale
    total = 1.0
    sums = own_v.to(tl.float32)
    for start in range(0, position, BLOCK):
        j = start + tl.arange(0, BLOCK).to(tl.int64)
        valid = j < position
        # Keys [d, L], values [L, d]: both are read along their rows.
        k = tl.load(keys + head + channel[:, None] * L + j[None, :], mask=in_head[:, None] & valid[None, :], other=0.0)
        score = tl.where(valid, tl.sum(q[:, None] * k.to(tl.float32), 0) * scale, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(score, 0))
        weight = tl.exp(score - new_maximum)
        rescale = tl.exp(maximum - new_maximum)
        v = tl.load(
            values + head + j[:, None] * D + channel[None, :], mask=valid[:, None] & in_head[None, :], other=0.0
        )
        sums = sums * rescale + tl.sum(weight[:, None] * v.to(tl.float32), 0)
        total = total * rescale + tl.sum(weight, 0)
        maximum = new_maximum
    tl.store(y + (t * H + h) * D + channel, sums / total, mask=in_head)


_BLOCK = 32


def _warps(L: int) -> int:
    """One warp where all positions are one block, as the byte decoder's: then the number of programs is the limit."""
    return 1 if L <= _BLOCK else 4


def cached_attention_forward(
    qkv: Tensor, keys: Tensor, values: Tensor, slots: Tensor, positions: Tensor, distinct_slots: bool = False
) -> Tensor:
    """Writes the new tokens to the cache and attends: y [T, H·d] in qkv's dtype; arguments as the op's."""
    _, H, d, L = keys.shape
    qkv, slots, positions = qkv.contiguous(), slots.contiguous(), positions.contiguous()
    T = len(qkv)
    y = torch.empty(T, H * d, dtype=qkv.dtype, device=qkv.device)
    if T == 0:
        return y
    block_d = next_power_of_2(d)
    with on_device(qkv):
        if not distinct_slots:
            _cached_attention_write_kernel[(T, H)](
                qkv, keys, values, slots, positions, L, H=H, D=d, BLOCK_D=block_d, num_warps=1
            )
        _cached_attention_fwd_kernel[(T, H)](
            qkv,
            keys,
            values,
            slots,
            positions,
            y,
            d**-0.5,
            L,
            H=H,
            D=d,
            BLOCK=_BLOCK,
            BLOCK_D=block_d,
            WRITE=distinct_slots,
            num_warps=_warps(L),
        )
    return y


def compile_cases() -> list[CompileCase]:
    """The paper's heads and others, in the patch decoder's cache (two kernels) and the byte decoder's (one)."""
    cases = []
    for dtype in ("fp32", "bf16"):
        tensors = dict.fromkeys(("qkv", "keys", "values"), f"*{dtype}")
        types = {**tensors, "slots": "*i64", "positions": "*i64", "L": "i32"}
        for H, d in ((12, 64), (1, 64), (6, 32), (16, 16), (8, 128)):
            sizes = {"H": H, "D": d, "BLOCK_D": next_power_of_2(d)}
            kinds = (("patches", 512, False), ("bytes", 16, True))
            cases += [
                CompileCase(
                    name=f"cached_attention_fwd {dtype} {length} h{H} d{d}",
                    kernel=_cached_attention_fwd_kernel,
                    types={**types, "y": f"*{dtype}", "scale": "fp32"},
                    constexprs={**sizes, "BLOCK": _BLOCK, "WRITE": write},
                    options={"num_warps": _warps(L)},
                )
                for length, L, write in (kinds if H > 8 else kinds[:1])
            ]
        cases.append(
            CompileCase(
                name=f"cached_attention_write {dtype} h12 d64",
                kernel=_cached_attention_write_kernel,
                types=types,
                constexprs={"H": 12, "D": 64, "BLOCK_D": 64},
                options={"num_warps": 1},
            )
        )
    return cases
