"""byte_attention's Triton kernels, forward and backward, and its forward with the projection. Not yet run on a GPU.

A tile is a few patches × a few heads, padded to powers of two of at least 16 bytes and 16 channels. Each (patch, head)
is one item of a batched `tl.dot`: a warp computes 16 × 16 scores with mma.m16n8k16. Compared with a 128-row tile and a
block-diagonal mask that is an eighth of the products and exponentials, and no product has rows of two patches, so a NaN
cannot reach another patch. Compiled for sm_90 at d = 64 in bf16: 56 registers for 64 rows on 4 warps, 88 with the
second path below; block-diagonal 76 for 64 rows, 210 for 128. Two items a warp take twice the registers and save
nothing. A tile has several narrow heads, because memory is read in pieces of 128 bytes.

Within a patch a later byte has weight 0, and 0 · NaN would still reach the earlier ones through the product. A tile
whose v is not finite takes a second path: those numbers count as 0, and NaN is added to the rows that attend to them
(where v is infinite too). The usual path costs one sum over v. In the backward a NaN stays in its patch.

The backward computes the weights again from qkv: a fifth of its products, instead of 2 · S numbers a row and head that
would be written and read. Both passes are memory-bound. Predicted on an H200 (4.3 TB/s) at S = 16, D = 768 in bf16:
forward 8 D bytes a row = 6.1 KB, 1.4 ns (its instructions need some two fifths of that time);
backward 14 D = 10.8 KB, 2.5 ns. 64 D FLOPs a row forward and 160 D backward, as padded: under 0.2 ns at 790 TFLOP/s.
Patches of more than 32 bytes are correct but not tuned: some tiles spill registers.

With the projection a program accumulates q, k and v of 128 rows × 64 channels (one head of 64, two of 32), rounds them
as a separate product would, and attends. Predicted: it is bound by L2, from which the programs of a row read 46 KB:
8.4 ns at 5.5 TB/s, where product (4.5 ns of FLOPs), 4.6 KB written and attention take some 7 ns. So it saves 9.2 KB of
memory traffic a row, but no time. Tiles of 256 rows × 1 head (32 KB a row, 5.9 ns) or
128 rows × 2 heads (37 KB, 6.7 ns) spill.

Shape letters: T patches, S bytes a patch, H heads, d channels a head, D = H · d.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bgpt_fast.kernels.common.launch import DTYPE_NAMES, TENSOR_CORES, CompileCase, cdiv, next_power_of_2, on_device


@triton.jit
def _dot(a, b):
    """Batched product; a batch of one becomes a plain product, which several warps can share."""
    if a.shape[0] == 1:
        product = tl.dot(tl.reshape(a, a.shape[1:]), tl.reshape(b, b.shape[1:]), input_precision="ieee")
        return tl.expand_dims(product, 0)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _places(
    tile,
    T,
    H,
    S: tl.constexpr,
    d: tl.constexpr,
    PATCHES: tl.constexpr,
    HEADS: tl.constexpr,
    S_PAD: tl.constexpr,
    D_PAD: tl.constexpr,
):
    """Row indices (of T · S), column indices (of H · d) and which of them exist, for items × bytes × channels."""
    item = tl.arange(0, PATCHES * HEADS)[:, None, None]
    byte = tl.arange(0, S_PAD)[None, :, None]
    channel = tl.arange(0, D_PAD)[None, None, :]
    groups = tl.cdiv(H, HEADS)
    patch = (tile // groups).to(tl.int64) * PATCHES + item // HEADS
    head = tile % groups * HEADS + item % HEADS
    real = (patch < T) & (head < H) & (byte < S) & (channel < d)
    return patch * S + byte, head * d + channel, real


@triton.jit
def _weights(q, k, d: tl.constexpr):
    """Softmax weights before the division by their sums, 0 for later bytes (padding counts as later), and the sums."""
    i = tl.arange(0, q.shape[1])[None, :, None]
    j = tl.arange(0, q.shape[1])[None, None, :]
    visible = j <= i
    # exp x = 2^(x log2 e)
    scores = _dot(q, tl.trans(k, 0, 2, 1)) * (1.4426950408889634 * d**-0.5)
    top = tl.max(tl.where(visible, scores, float("-inf")), 2)
    weights = tl.where(visible, tl.exp2(scores - top[:, :, None]), 0.0)
    return weights, tl.sum(weights, 2)


@triton.jit
def _attend(q, k, v, d: tl.constexpr):
    weights, total = _weights(q, k, d)
    weights = weights.to(v.dtype)
    poison = v.to(tl.float32) * 0.0  # NaN where v is not finite
    if tl.sum(tl.ravel(poison)) == 0.0:
        y = _dot(weights, v)
    else:
        y = _dot(weights, tl.where(poison == 0.0, v, 0.0)) + tl.cumsum(poison, 1)
    return y / total[:, :, None]


@triton.jit(do_not_specialize=["T", "H"])
def _byte_attention_fwd_kernel(
    qkv,
    y,
    T,
    H,
    S: tl.constexpr,
    d: tl.constexpr,
    PATCHES: tl.constexpr,
    HEADS: tl.constexpr,
    S_PAD: tl.constexpr,
    D_PAD: tl.constexpr,
):
    row, column, real = _places(tl.program_id(0), T, H, S, d, PATCHES, HEADS, S_PAD, D_PAD)
    at = row * (3 * H * d) + column
    q = tl.load(qkv + at, mask=real, other=0.0)
    k = tl.load(qkv + at + H * d, mask=real, other=0.0)
    v = tl.load(qkv + at + 2 * H * d, mask=real, other=0.0)
    tl.store(y + row * (H * d) + column, _attend(q, k, v, d).to(y.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["T", "H"])
def _byte_attention_bwd_kernel(
    dy,
    qkv,
    dqkv,
    T,
    H,
    S: tl.constexpr,
    d: tl.constexpr,
    PATCHES: tl.constexpr,
    HEADS: tl.constexpr,
    S_PAD: tl.constexpr,
    D_PAD: tl.constexpr,
):
    row, column, real = _places(tl.program_id(0), T, H, S, d, PATCHES, HEADS, S_PAD, D_PAD)
    at = row * (3 * H * d) + column
    q = tl.load(qkv + at, mask=real, other=0.0)
    k = tl.load(qkv + at + H * d, mask=real, other=0.0)
    v = tl.load(qkv + at + 2 * H * d, mask=real, other=0.0)
    g = tl.load(dy + row * (H * d) + column, mask=real, other=0.0)
    weights, total = _weights(q, k, d)
    weights = weights / total[:, :, None]
    dweights = _dot(g, tl.trans(v, 0, 2, 1))
    dv = _dot(tl.trans(weights.to(v.dtype), 0, 2, 1), g)
    tl.store(dqkv + at + 2 * H * d, dv.to(dqkv.dtype.element_ty), mask=real)
    mean = tl.sum(weights * dweights, 2)
    dscores = (weights * (dweights - mean[:, :, None]) * d**-0.5).to(v.dtype)
    dq = _dot(dscores, k)
    tl.store(dqkv + at, dq.to(dqkv.dtype.element_ty), mask=real)
    dk = _dot(tl.trans(dscores, 0, 2, 1), q)
    tl.store(dqkv + at + H * d, dk.to(dqkv.dtype.element_ty), mask=real)


@triton.jit
def _biased_items(
    product,
    bias,
    column,
    real,
    PATCHES: tl.constexpr,
    HEADS: tl.constexpr,
    S_PAD: tl.constexpr,
    D_PAD: tl.constexpr,
    dtype: tl.constexpr,
):
    """Rows × columns of a product, with its bias and rounded to x's dtype, as items × bytes × channels."""
    b = tl.load(bias + column, mask=real, other=0.0).to(dtype).to(tl.float32)
    rounded = tl.reshape((product + b).to(dtype), (PATCHES, S_PAD, HEADS, D_PAD))
    return tl.reshape(tl.permute(rounded, (0, 2, 1, 3)), (PATCHES * HEADS, S_PAD, D_PAD))


@triton.jit(do_not_specialize=["T", "H"])
def _byte_attention_projected_fwd_kernel(
    x,
    weight,
    bias,
    y,
    T,
    H,
    weight_stride,
    D: tl.constexpr,
    S: tl.constexpr,
    d: tl.constexpr,
    PATCHES: tl.constexpr,
    HEADS: tl.constexpr,
    S_PAD: tl.constexpr,
    D_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile = tl.program_id(0)
    groups = tl.cdiv(H, HEADS)
    place = tl.arange(0, PATCHES * S_PAD)[:, None]
    patch = (tile // groups).to(tl.int64) * PATCHES + place // S_PAD
    row = patch * S + place % S_PAD
    real_row = (patch < T) & (place % S_PAD < S)
    channel = tl.arange(0, HEADS * D_PAD)[None, :]
    head = tile % groups * HEADS
    if d == D_PAD:
        # In this form the compiler sees that columns are contiguous.
        column = head * d + channel
        real = column < H * d
    else:
        column = (head + channel // D_PAD) * d + channel % D_PAD
        real = (head + channel // D_PAD < H) & (channel % D_PAD < d)
    q = tl.zeros([PATCHES * S_PAD, HEADS * D_PAD], tl.float32)
    k = tl.zeros([PATCHES * S_PAD, HEADS * D_PAD], tl.float32)
    v = tl.zeros([PATCHES * S_PAD, HEADS * D_PAD], tl.float32)
    across = tl.arange(0, BLOCK)[None, :]
    down = tl.arange(0, BLOCK)[:, None]
    # Pointers that move on take fewer registers than offsets.
    x_at = x + row * D + across
    weight_at = weight + down.to(tl.int64) * weight_stride + column
    for start in range(0, D, BLOCK):
        if D % BLOCK == 0:
            x_real, weight_real = real_row, real
        else:
            x_real, weight_real = real_row & (start + across < D), real & (start + down < D)
        xs = tl.load(x_at, mask=x_real, other=0.0)
        q = tl.dot(xs, tl.load(weight_at, mask=weight_real, other=0.0), q, input_precision="ieee")
        k = tl.dot(xs, tl.load(weight_at + H * d, mask=weight_real, other=0.0), k, input_precision="ieee")
        v = tl.dot(xs, tl.load(weight_at + 2 * H * d, mask=weight_real, other=0.0), v, input_precision="ieee")
        x_at += BLOCK
        weight_at += weight_stride * BLOCK
    dtype: tl.constexpr = x.dtype.element_ty
    qs = _biased_items(q, bias, column, real, PATCHES, HEADS, S_PAD, D_PAD, dtype)
    ks = _biased_items(k, bias + H * d, column, real, PATCHES, HEADS, S_PAD, D_PAD, dtype)
    vs = _biased_items(v, bias + 2 * H * d, column, real, PATCHES, HEADS, S_PAD, D_PAD, dtype)
    y_row, y_column, y_real = _places(tile, T, H, S, d, PATCHES, HEADS, S_PAD, D_PAD)
    tl.store(y + y_row * (H * d) + y_column, _attend(qs, ks, vs, d).to(dtype), mask=y_real)


_BLOCK = 32  # channels of D that the projection multiplies at a time; 64 spill on sm_80


@dataclass(frozen=True)
class _Tile:
    patches: int
    heads: int
    s_pad: int
    d_pad: int
    warps: int

    def constexprs(self) -> dict[str, int]:
        return {"PATCHES": self.patches, "HEADS": self.heads, "S_PAD": self.s_pad, "D_PAD": self.d_pad}

    def programs(self, T: int, H: int) -> int:
        return cdiv(T, self.patches) * cdiv(H, self.heads)


def _padded(size: int) -> int:
    return max(16, next_power_of_2(size))


@functools.cache
def _tile(S: int, H: int, d: int, dtype: torch.dtype) -> _Tile:
    """An item or two a warp in half precision, half an item in float32, whose products run on the plain cores."""
    s_pad, d_pad = _padded(S), _padded(d)
    if dtype == torch.float32:
        items = max(1, 2048 // (s_pad * d_pad))
        warps = 4 if s_pad == 16 else 8 if s_pad == 32 or d_pad == 16 else 16
    elif s_pad == 16:
        items, warps = 4 if d_pad >= 64 else 8, 4
    elif s_pad == 32 and d_pad <= 64:
        items, warps = 2, 2
    else:
        items, warps = 1, 4 if s_pad == 32 else 8
    heads = max(1, min(64 // d_pad, items, next_power_of_2(H)))
    return _Tile(items // heads, heads, s_pad, d_pad, warps)


@functools.cache
def _projected_tile(S: int, H: int, d: int, dtype: torch.dtype) -> _Tile:
    """128 rows × 64 channels; in float32, whose products run on the plain cores, 64 × 64."""
    s_pad, d_pad = _padded(S), _padded(d)
    rows = 64 if dtype == torch.float32 else 128
    heads = min(64 // d_pad, next_power_of_2(H))
    return _Tile(rows // s_pad, heads, s_pad, d_pad, 8)


def _stages(dtype: torch.dtype) -> int:
    return 2 if dtype == torch.float32 else 4


def byte_attention_forward(qkv: Tensor) -> Tensor:
    """y [T, S, H, d] from qkv [T, S, 3, H, d]."""
    T, S, _, H, d = qkv.shape
    y = torch.empty(T, S, H, d, dtype=qkv.dtype, device=qkv.device)
    if y.numel() == 0:
        return y
    tile = _tile(S, H, d, qkv.dtype)
    with on_device(qkv):
        _byte_attention_fwd_kernel[(tile.programs(T, H),)](
            qkv.contiguous(), y, T, H, S=S, d=d, **tile.constexprs(), num_warps=tile.warps, num_stages=1
        )
    return y


def byte_attention_backward(dy: Tensor, qkv: Tensor) -> Tensor:
    """dqkv [T, S, 3, H, d] from dy [T, S, H, d] and qkv."""
    T, S, _, H, d = qkv.shape
    dqkv = torch.empty(T, S, 3, H, d, dtype=qkv.dtype, device=qkv.device)
    if dqkv.numel() == 0:
        return dqkv
    tile = _tile(S, H, d, qkv.dtype)
    with on_device(qkv):
        _byte_attention_bwd_kernel[(tile.programs(T, H),)](
            dy.contiguous(),
            qkv.contiguous(),
            dqkv,
            T,
            H,
            S=S,
            d=d,
            **tile.constexprs(),
            num_warps=tile.warps,
            num_stages=1,
        )
    return dqkv


def byte_attention_projected_forward(x: Tensor, weight: Tensor, bias: Tensor, heads: int) -> Tensor:
    """y [T, S, H, d] from x [T, S, D], weight [D, 3 D] of x's dtype and bias [3 D] of that or float32."""
    T, S, D = x.shape
    d = D // heads
    y = torch.empty(T, S, heads, d, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    tile = _projected_tile(S, heads, d, x.dtype)
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    with on_device(x):
        _byte_attention_projected_fwd_kernel[(tile.programs(T, heads),)](
            x.contiguous(),
            weight,
            bias.contiguous(),
            y,
            T,
            heads,
            weight.stride(0),
            D=D,
            S=S,
            d=d,
            **tile.constexprs(),
            BLOCK=_BLOCK,
            num_warps=tile.warps,
            num_stages=_stages(x.dtype),
        )
    return y


def compile_cases() -> list[CompileCase]:
    """Every compilation that the launchers can choose for patches of 16 bytes, and of 8 and 32 with heads of 64."""
    cases = []
    for dtype, name in DTYPE_NAMES.items():
        for S, d in ((16, 16), (16, 32), (16, 64), (8, 64), (32, 64)):
            cases += [_case(way, name, dtype, S, d) for way in ("fwd", "bwd")]
        for D in (128, 192, 768, 1024):
            for d in (16, 32, 64):
                cases += [_projected_case(name, dtype, D, d, bias) for bias in sorted({name, "fp32"})]
    return cases


def _expects(dtype: torch.dtype) -> tuple[str, ...]:
    return () if dtype == torch.float32 else (TENSOR_CORES,)


def _case(way: str, name: str, dtype: torch.dtype, S: int, d: int) -> CompileCase:
    tile = _tile(S, 8, d, dtype)  # 8 heads or more: what all widths have in common
    kernel: Any = _byte_attention_fwd_kernel if way == "fwd" else _byte_attention_bwd_kernel
    pointers = ("qkv", "y") if way == "fwd" else ("dy", "qkv", "dqkv")
    return CompileCase(
        f"byte_attention_{way} {name} s{S} d{d}",
        kernel,
        {**dict.fromkeys(pointers, f"*{name}"), "T": "i32", "H": "i32"},
        {"S": S, "d": d, **tile.constexprs()},
        {"num_warps": tile.warps, "num_stages": 1},
        frozenset({"T", "H"}),
        ("ld.global.v4", "st.global.v4", *_expects(dtype)),
    )


def _projected_case(name: str, dtype: torch.dtype, D: int, d: int, bias: str) -> CompileCase:
    tile = _projected_tile(16, D // d, d, dtype)
    types = dict.fromkeys(("x", "weight", "y"), f"*{name}") | {"bias": f"*{bias}"}
    return CompileCase(
        f"byte_attention_projected_fwd {name} bias {bias} D{D} d{d}",
        _byte_attention_projected_fwd_kernel,
        types | {"T": "i32", "H": "i32", "weight_stride": "i32"},
        {"D": D, "S": 16, "d": d, **tile.constexprs(), "BLOCK": _BLOCK},
        {"num_warps": tile.warps, "num_stages": _stages(dtype)},
        frozenset({"T", "H"}),
        ("cp.async|ld.global.v4", "st.global.v4", *_expects(dtype)),
    )
