"""cached_attention on a GPU: one program for each new token and head loops over its slot's positions.

Not yet run on a GPU. Bound by memory: a token at position L reads 8 d L bytes a head in float32, 3.1 MB a layer at
L = 512 and D = 768, some 0.7 us of an H200's 4.3 TB/s; many tokens of one slot (a prefill) read them from L2. Online
softmax over blocks of BLOCK positions in ascending order, whatever else is in the call: so a token's bits depend only
on the positions that it attends to.

Shape letters: T new tokens, H heads, d channels a head, L positions a slot, B slots.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bgpt_fast.kernels.common.launch import CompileCase, on_device


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
):
    t = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1)
    position = tl.load(positions + t)
    head = (tl.load(slots + t).to(tl.int64) * H + h) * D * L
    channel = tl.arange(0, BLOCK_D)
    in_head = channel < D
    q = tl.load(qkv + (t * 3 * H + h) * D + channel, mask=in_head, other=0.0)
    maximum = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    sums = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, position + 1, BLOCK):
        j = start + tl.arange(0, BLOCK).to(tl.int64)
        valid = j <= position
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


_BLOCK, _WARPS = 32, 4


def cached_attention_forward(qkv: Tensor, keys: Tensor, values: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
    """Writes the new tokens to the cache, then attends: y float32 [T, H·d]; arguments as the op's."""
    _, H, d, L = keys.shape
    qkv, slots, positions = qkv.contiguous(), slots.contiguous(), positions.contiguous()
    T = len(qkv)
    y = torch.empty(T, H * d, dtype=qkv.dtype, device=qkv.device)
    if T == 0:
        return y
    _, k, v = qkv.view(T, 3, H, d).unbind(1)
    keys[slots, :, :, positions] = k.to(keys.dtype)
    values[slots, :, positions] = v.to(values.dtype)
    with on_device(qkv):
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
            BLOCK_D=triton.next_power_of_2(d),
            num_warps=_WARPS,
        )
    return y


def compile_cases() -> list[CompileCase]:
    """The paper's heads and others."""
    return [
        CompileCase(
            name=f"cached_attention_fwd {dtype} cache h{H} d{d}",
            kernel=_cached_attention_fwd_kernel,
            types={
                "qkv": "*fp32",
                "keys": f"*{dtype}",
                "values": f"*{dtype}",
                "y": "*fp32",
                "slots": "*i64",
                "positions": "*i64",
                "scale": "fp32",
                "L": "i32",
            },
            constexprs={"H": H, "D": d, "BLOCK": _BLOCK, "BLOCK_D": triton.next_power_of_2(d)},
            options={"num_warps": _WARPS},
        )
        for dtype in ("fp32", "bf16")
        for H, d in ((12, 64), (1, 64), (6, 32), (16, 16), (8, 128))
    ]
