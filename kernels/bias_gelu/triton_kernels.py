"""bias_gelu's Triton kernels, one pass in each direction. Not yet run on a GPU.

The tanh GELU is z · σ(2u), u = √(2/π) (z + 0.044715 z³): one exp2 and one division an element, with full relative
accuracy where 1 + tanh u would cancel. A program has BLOCK_F columns, a power of two that divides F where possible
(1,024 of 3,072), so no lane idles; one warp for each 256 columns, 16 elements a thread in 16-byte loads. All rows of a
thread have the same columns, so the bias is loaded once and sums over rows need no exchange between threads. Backward:
y is computed again and written beside dx, for the weight's gradient of the product that follows. A program loops over a
range of rows with its partial dbias in registers and writes it once, [ranges, F] in float32; a second kernel adds the
partial sums in a fixed order. The number of ranges depends on the shape alone.

Predicted on an H200 (4.3 TB/s) at F = 3072 in bf16: forward 4 F bytes a row = 12.3 KB, 2.9 ns; backward 8 F = 24.6 KB,
5.7 ns. The arithmetic, some 20 F FLOPs forward and 32 F backward and 2 F special functions (1.7 ns), takes less.

Shape letters: N rows, F features.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from bgpt_fast.kernels.common.launch import WIDE_LOADS, CompileCase, cdiv, next_power_of_2, on_device, with_row_stride


@triton.jit
def _sigmoid_2u(z):
    """σ(2√(2/π)(z + 0.044715 z³)): the factor of z in the tanh GELU."""
    return 1.0 / (1.0 + tl.exp(z * (-1.5957691216057308 - 0.07135481627260025 * z * z)))


@triton.jit(do_not_specialize=["rows"])
def _bias_gelu_fwd_kernel(
    x,
    x_stride,
    bias,
    y,
    rows,
    F: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    COLUMNS: tl.constexpr = (F + BLOCK_F - 1) // BLOCK_F
    program = tl.program_id(0)
    row = (program // COLUMNS).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    f = program % COLUMNS * BLOCK_F + tl.arange(0, BLOCK_F)
    inside = (row < rows)[:, None] & (f < F)[None, :]
    b = tl.load(bias + f, mask=f < F, other=0.0).to(tl.float32)[None, :]
    z = tl.load(x + row[:, None] * x_stride + f[None, :], mask=inside, other=0.0).to(tl.float32) + b
    tl.store(y + row[:, None] * F + f[None, :], (z * _sigmoid_2u(z)).to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "rows_a_program"])
def _bias_gelu_bwd_kernel(
    dy,
    dy_stride,
    x,
    x_stride,
    bias,
    dx,
    y,
    dbias_parts,
    rows,
    rows_a_program,
    F: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    COLUMNS: tl.constexpr = (F + BLOCK_F - 1) // BLOCK_F
    program = tl.program_id(0)
    run = (program // COLUMNS).to(tl.int64)
    first = run * rows_a_program
    last = tl.minimum(first + rows_a_program, rows)
    f = program % COLUMNS * BLOCK_F + tl.arange(0, BLOCK_F)
    b = tl.load(bias + f, mask=f < F, other=0.0).to(tl.float32)[None, :]
    dbias = tl.zeros([BLOCK_F], tl.float32)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS).to(tl.int64)
        inside = (row < last)[:, None] & (f < F)[None, :]
        z = tl.load(x + row[:, None] * x_stride + f[None, :], mask=inside, other=0.0).to(tl.float32) + b
        grad = tl.load(dy + row[:, None] * dy_stride + f[None, :], mask=inside, other=0.0).to(tl.float32)
        s = _sigmoid_2u(z)
        dz = grad * (s + z * s * (1.0 - s) * (1.5957691216057308 + 0.21406444881780076 * z * z))
        tl.store(dx + row[:, None] * F + f[None, :], dz.to(dx.dtype.element_ty), mask=inside)
        tl.store(y + row[:, None] * F + f[None, :], (z * s).to(y.dtype.element_ty), mask=inside)
        # A masked row's gradient is zero, but its z may be infinite where bias is.
        dbias += tl.sum(tl.where(inside, dz, 0.0), 0)
    tl.store(dbias_parts + run * F + f, dbias, mask=f < F)


@triton.jit(do_not_specialize=["parts"])
def _bias_gelu_bwd_sum_kernel(
    dbias_parts,
    dbias,
    parts,
    F: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    f = tl.program_id(0).to(tl.int64) * BLOCK_F + tl.arange(0, BLOCK_F)
    sums = tl.zeros([BLOCK_PARTS, BLOCK_F], tl.float32)
    for start in range(0, parts, BLOCK_PARTS):
        part = (start + tl.arange(0, BLOCK_PARTS)).to(tl.int64)[:, None]
        inside = (part < parts) & (f < F)[None, :]
        sums += tl.load(dbias_parts + part * F + f[None, :], mask=inside, other=0.0)
    tl.store(dbias + f, tl.sum(sums, 0).to(dbias.dtype.element_ty), mask=f < F)


@dataclass(frozen=True)
class _Tile:
    rows: int
    block_f: int
    warps: int


@functools.cache
def _tile(F: int) -> _Tile:
    """The widest power of two up to 1,024 columns that divides F; where that is narrow, a masked end."""
    even = min(1024, F & -F)
    block_f = even if even >= 128 else min(1024, max(128, next_power_of_2(F)))
    warps = max(1, block_f // 256)
    return _Tile(warps * 32 * _ELEMENTS // block_f, block_f, warps)


_ELEMENTS = 16  # of a thread
_SUM_BLOCK = {"BLOCK_PARTS": 128, "BLOCK_F": 16}
_SUM_WARPS = 4


def _rows_a_program(N: int, F: int, tile: _Tile) -> int:
    """Rows of a backward program: some 24 warps for each of an H100's 132 multiprocessors, whatever the device is."""
    runs = max(1, 132 * 24 // (tile.warps * cdiv(F, tile.block_f)))
    return cdiv(cdiv(N, tile.rows), runs) * tile.rows


def bias_gelu_forward(x: Tensor, bias: Tensor) -> Tensor:
    """y [N, F] in x's dtype."""
    N, F = x.shape
    y = torch.empty(N, F, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    tile = _tile(F)
    x, x_stride = with_row_stride(x)
    with on_device(x):
        _bias_gelu_fwd_kernel[(cdiv(N, tile.rows) * cdiv(F, tile.block_f),)](
            x, x_stride, bias.contiguous(), y, N, F=F, ROWS=tile.rows, BLOCK_F=tile.block_f, num_warps=tile.warps
        )
    return y


def bias_gelu_backward(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dx [N, F] in x's dtype, dbias [F] in bias's, y [N, F] in x's."""
    N, F = x.shape
    dx, y = (torch.empty(N, F, dtype=x.dtype, device=x.device) for _ in range(2))
    if dx.numel() == 0:
        return dx, torch.zeros(F, dtype=bias.dtype, device=x.device), y
    dbias = torch.empty(F, dtype=bias.dtype, device=x.device)
    tile = _tile(F)
    share = _rows_a_program(N, F, tile)
    runs = cdiv(N, share)
    parts = torch.empty(runs, F, dtype=torch.float32, device=x.device)
    dy, dy_stride = with_row_stride(dy)
    x, x_stride = with_row_stride(x)
    with on_device(x):
        _bias_gelu_bwd_kernel[(runs * cdiv(F, tile.block_f),)](
            dy,
            dy_stride,
            x,
            x_stride,
            bias.contiguous(),
            dx,
            y,
            parts,
            N,
            share,
            F=F,
            ROWS=tile.rows,
            BLOCK_F=tile.block_f,
            num_warps=tile.warps,
        )
        _bias_gelu_bwd_sum_kernel[(cdiv(F, _SUM_BLOCK["BLOCK_F"]),)](
            parts, dbias, runs, F=F, **_SUM_BLOCK, num_warps=_SUM_WARPS
        )
    return dx, dbias, y


def compile_cases() -> list[CompileCase]:
    """Every compilation that the launchers can choose for MLPs of D = 128, 192, 768 and 1,024 (F = 4 D)."""
    cases = []
    for x in ("bf16", "fp16", "fp32"):
        for bias in sorted({x, "fp32"}):
            for F in (512, 768, 3072, 4096):
                tile = _tile(F)
                forward = {"x": f"*{x}", "x_stride": "i32", "bias": f"*{bias}", "y": f"*{x}", "rows": "i32"}
                backward = {"dy": f"*{x}", "dy_stride": "i32", "x": f"*{x}", "x_stride": "i32", "bias": f"*{bias}"}
                backward |= {"dx": f"*{x}", "y": f"*{x}", "dbias_parts": "*fp32"}
                backward |= {"rows": "i32", "rows_a_program": "i32"}
                for name, kernel, types in (
                    ("fwd", _bias_gelu_fwd_kernel, forward),
                    ("bwd", _bias_gelu_bwd_kernel, backward),
                ):
                    cases.append(
                        CompileCase(
                            f"bias_gelu_{name} {x} bias {bias} f{F}",
                            kernel,
                            types,
                            {"F": F, "ROWS": tile.rows, "BLOCK_F": tile.block_f},
                            {"num_warps": tile.warps},
                            frozenset({"rows", "rows_a_program"} & types.keys()),
                            (WIDE_LOADS,),
                        )
                    )
        cases.append(
            CompileCase(
                f"bias_gelu_bwd_sum {x} f3072",
                _bias_gelu_bwd_sum_kernel,
                {"dbias_parts": "*fp32", "dbias": f"*{x}", "parts": "i32"},
                {"F": 3072, **_SUM_BLOCK},
                {"num_warps": _SUM_WARPS},
                frozenset({"parts"}),
                (WIDE_LOADS,),
            )
        )
    return cases
