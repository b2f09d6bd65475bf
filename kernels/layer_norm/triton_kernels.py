"""The Triton kernels of layer_norm and add_layer_norm, one pass in each direction. Not yet run on a GPU.

A program normalises complete rows of D columns, padded to BLOCK_D, a power of two. With a warp for each 256 columns and
16-byte loads a thread has the same columns of each of its rows, so sums over columns take few shuffles (and one
exchange between warps for several rows at once) and sums over rows take none at D ≥ 256. Forward: 32 elements a thread,
4 rows a program at 1,024 columns. Backward: 16 elements a thread (32 take 182 registers), 8 with dropout (16 take up to
128) and with the sum of dx (16 spill). A backward program loops over a range of rows with its partial dweight and dbias
in registers and writes them once, [programs, D] in float32; a second kernel adds them in a fixed order. The number of
programs depends on the shape alone.

Dropout takes the four 32-bit words of one call of Philox for four neighbouring columns, a quarter of `tl.rand`'s cost
(some 15 integer instructions an element, predicted to take less time than the memory traffic), and computes them again
in the backward: no mask is stored.

Predicted on an H200 (4.3 TB/s) at D = 768 with x in bf16: layer_norm 4 D bytes a row = 3.1 KB, 0.71 ns forward, 6 D =
4.6 KB, 1.1 ns backward; add_layer_norm over a bf16 residual 8 D = 6.1 KB, 1.4 ns each way, over a float32 residual
12 D = 9.2 KB, 2.1 ns forward, 16 D = 12.3 KB, 2.9 ns backward. Some 8 D FLOPs forward, 14 D backward, which take less.

Shape letters: N rows, D width.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from bgpt_fast.kernels.common.launch import WIDE_LOADS, CompileCase, cdiv, next_power_of_2, on_device, with_row_stride
from bgpt_fast.kernels.layer_norm.reference import dropout_scale, dropout_threshold


@triton.jit
def _dropout_factors(seed_low, seed_high, row, D: tl.constexpr, BLOCK_D: tl.constexpr, THRESHOLD, SCALE):
    """[rows, BLOCK_D] of 0 or SCALE: `reference.dropout_words` in registers."""
    ROWS: tl.constexpr = row.shape[0]
    seed = (seed_high.to(tl.uint32, bitcast=True).to(tl.uint64) << 32) | seed_low.to(tl.uint32, bitcast=True)
    column = tl.arange(0, BLOCK_D // 4).to(tl.uint32)[None, :]
    low, high = row.to(tl.uint32)[:, None], (row >> 32).to(tl.uint32)[:, None]
    w0, w1, w2, w3 = tl.philox(seed, column, column * 0, low, high)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3)).reshape(ROWS, BLOCK_D)
    return tl.where(words >= THRESHOLD, SCALE, 0.0)


@triton.jit(do_not_specialize=["rows", "seed_low", "seed_high"])
def _layer_norm_fwd_kernel(
    x,
    x_stride,
    residual,
    residual_stride,
    weight,
    bias,
    y,
    total,
    mean,
    rstd,
    rows,
    eps,
    seed_low,
    seed_high,
    D: tl.constexpr,
    ADD: tl.constexpr,
    THRESHOLD: tl.constexpr,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    inside = (row < rows)[:, None] & (d < D)[None, :]
    values = tl.load(x + row[:, None] * x_stride + d[None, :], mask=inside, other=0.0).to(tl.float32)
    if ADD:
        added = tl.load(residual + row[:, None] * residual_stride + d[None, :], mask=inside, other=0.0).to(tl.float32)
        if THRESHOLD > 0:
            values *= _dropout_factors(seed_low, seed_high, row, D, BLOCK_D, THRESHOLD, SCALE)
        # The norm is that of the total as it is stored, which is what the backward reads.
        rounded = (added + values).to(total.dtype.element_ty)
        tl.store(total + row[:, None] * D + d[None, :], rounded, mask=inside)
        values = rounded.to(tl.float32)
    means = tl.sum(values, 1) / D
    centred = tl.where(inside, values - means[:, None], 0.0)
    rstds = 1.0 / tl.sqrt_rn(tl.sum(centred * centred, 1) / D + eps)
    tl.store(mean + row, means, mask=row < rows)
    tl.store(rstd + row, rstds, mask=row < rows)
    w = tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    b = tl.load(bias + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    normal = centred * rstds[:, None]
    tl.store(y + row[:, None] * D + d[None, :], (normal * w + b).to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "rows_a_program", "seed_low", "seed_high"])
def _layer_norm_bwd_kernel(
    dy,
    dy_stride,
    dtotal,
    dtotal_stride,
    x,
    x_stride,
    weight,
    mean,
    rstd,
    dx,
    dresidual,
    dweight_parts,
    dbias_parts,
    dx_parts,
    rows,
    rows_a_program,
    seed_low,
    seed_high,
    D: tl.constexpr,
    HAS_DTOTAL: tl.constexpr,
    HAS_DRESIDUAL: tl.constexpr,
    SUMS: tl.constexpr,
    THRESHOLD: tl.constexpr,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    first = program * rows_a_program
    last = tl.minimum(first + rows_a_program, rows)
    d = tl.arange(0, BLOCK_D)
    w = tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    dweight = tl.zeros([BLOCK_D], tl.float32)
    dbias = tl.zeros([BLOCK_D], tl.float32)
    dx_sum = tl.zeros([BLOCK_D], tl.float32)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS).to(tl.int64)
        inside = (row < last)[:, None] & (d < D)[None, :]
        grad = tl.load(dy + row[:, None] * dy_stride + d[None, :], mask=inside, other=0.0).to(tl.float32)
        values = tl.load(x + row[:, None] * x_stride + d[None, :], mask=inside, other=0.0).to(tl.float32)
        means = tl.load(mean + row, mask=row < last, other=0.0)[:, None]
        rstds = tl.load(rstd + row, mask=row < last, other=0.0)[:, None]
        normal = tl.where(inside, (values - means) * rstds, 0.0)
        dweight += tl.sum(grad * normal, 0)
        dbias += tl.sum(grad, 0)
        scaled = grad * w
        along = tl.sum(scaled * normal, 1) / D
        level = tl.sum(scaled, 1) / D
        out = (scaled - level[:, None] - normal * along[:, None]) * rstds
        if HAS_DTOTAL:
            out += tl.load(dtotal + row[:, None] * dtotal_stride + d[None, :], mask=inside, other=0.0).to(tl.float32)
        if HAS_DRESIDUAL:
            there = dresidual + row[:, None] * D + d[None, :]
            tl.store(there, out.to(dresidual.dtype.element_ty), mask=inside)
            if THRESHOLD > 0:
                out *= _dropout_factors(seed_low, seed_high, row, D, BLOCK_D, THRESHOLD, SCALE)
        if SUMS:
            dx_sum += tl.sum(tl.where(inside, out, 0.0), 0)
        tl.store(dx + row[:, None] * D + d[None, :], out.to(dx.dtype.element_ty), mask=inside)
    tl.store(dweight_parts + program * D + d, dweight, mask=d < D)
    tl.store(dbias_parts + program * D + d, dbias, mask=d < D)
    if SUMS:
        tl.store(dx_parts + program * D + d, dx_sum, mask=d < D)


@triton.jit(do_not_specialize=["parts"])
def _layer_norm_bwd_sum_kernel(
    dweight_parts,
    dbias_parts,
    dx_parts,
    dweight,
    dbias,
    dx_sum,
    parts,
    D: tl.constexpr,
    SUMS: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    d = tl.program_id(0).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    weight_sum = tl.zeros([BLOCK_PARTS, BLOCK_D], tl.float32)
    bias_sum = tl.zeros([BLOCK_PARTS, BLOCK_D], tl.float32)
    column_sum = tl.zeros([BLOCK_PARTS, BLOCK_D], tl.float32)
    for start in range(0, parts, BLOCK_PARTS):
        part = (start + tl.arange(0, BLOCK_PARTS)).to(tl.int64)[:, None]
        inside = (part < parts) & (d < D)[None, :]
        weight_sum += tl.load(dweight_parts + part * D + d[None, :], mask=inside, other=0.0)
        bias_sum += tl.load(dbias_parts + part * D + d[None, :], mask=inside, other=0.0)
        if SUMS:
            column_sum += tl.load(dx_parts + part * D + d[None, :], mask=inside, other=0.0)
    tl.store(dweight + d, tl.sum(weight_sum, 0).to(dweight.dtype.element_ty), mask=d < D)
    tl.store(dbias + d, tl.sum(bias_sum, 0).to(dbias.dtype.element_ty), mask=d < D)
    if SUMS:
        tl.store(dx_sum + d, tl.sum(column_sum, 0).to(dx_sum.dtype.element_ty), mask=d < D)


@dataclass(frozen=True)
class _Tile:
    rows: int
    block_d: int
    warps: int


@functools.cache
def _tile(D: int, backward: bool = False, dropout: float = 0.0, sums: bool = False) -> _Tile:
    """Rows of D columns for a program: a warp for each 256 columns, so many rows that a thread has its elements."""
    elements_a_thread = 32 if not backward else 8 if dropout or sums else 16
    block_d = max(128, next_power_of_2(D))
    warps = min(max(1, block_d // 256), 16)
    return _Tile(max(1, warps * 32 * elements_a_thread // block_d), block_d, warps)


_REGISTERS = 96  # a thread, at most: without a bound the compiler spills a few to fit in one program more
_SUM_BLOCK = {"BLOCK_PARTS": 128, "BLOCK_D": 16}
_SUM_WARPS = 4


def _rows_a_program(N: int, tile: _Tile) -> int:
    """Rows of a backward program: 20 warps for each of an H100's 132 multiprocessors, whatever the device is."""
    programs = 132 * 20 // tile.warps
    return cdiv(cdiv(N, tile.rows), programs) * tile.rows


def _halves(seed: int) -> tuple[int, int]:
    """The low and high 32 bits of a seed, as signed numbers: of one type in the kernel whatever the seed."""
    low, high = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    return low - (low >> 31 << 32), high - (high >> 31 << 32)


def _constants(tile: _Tile, D: int, dropout: float) -> dict[str, float]:
    threshold, scale = dropout_threshold(dropout), dropout_scale(dropout)
    return {"D": D, "THRESHOLD": threshold, "SCALE": scale, "ROWS": tile.rows, "BLOCK_D": tile.block_d}


def _options(tile: _Tile) -> dict[str, int]:
    return {"num_warps": tile.warps, "maxnreg": _REGISTERS}


def layer_norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """y [N, D] in `dtype`, mean and rstd float32 [N]."""
    y, _, mean, rstd = _forward(x, None, weight, bias, eps, dtype, 0.0, 0)
    return y, mean, rstd


def add_layer_norm_forward(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, dropout: float, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y [N, D] in x's dtype, total [N, D] in residual's, mean and rstd float32 [N]."""
    return _forward(x, residual, weight, bias, eps, x.dtype, dropout, seed)


def _forward(x, residual, weight, bias, eps, dtype, dropout, seed):
    N, D = x.shape
    y = torch.empty(N, D, dtype=dtype, device=x.device)
    total = y if residual is None else torch.empty(N, D, dtype=residual.dtype, device=x.device)
    mean, rstd = (torch.empty(N, dtype=torch.float32, device=x.device) for _ in range(2))
    if N == 0:
        return y, total, mean, rstd
    tile = _tile(D)
    x, x_stride = with_row_stride(x)
    added, added_stride = (x, x_stride) if residual is None else with_row_stride(residual)
    with on_device(x):
        _layer_norm_fwd_kernel[(cdiv(N, tile.rows),)](
            x,
            x_stride,
            added,
            added_stride,
            weight.contiguous(),
            bias.contiguous(),
            y,
            total,
            mean,
            rstd,
            N,
            eps,
            *_halves(seed),
            ADD=residual is not None,
            **_constants(tile, D, dropout),
            **_options(tile),
        )
    return y, total, mean, rstd


def layer_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dx [N, D] in x's dtype, dweight and dbias [D] in weight's."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return dx, *_backward(dy, None, x, weight, mean, rstd, dx, None, 0.0, 0, None)


def add_layer_norm_backward(dy, dtotal, total, weight, mean, rstd, dtype, dropout, seed, sums):
    """dx [N, D] in `dtype`, dresidual [N, D] in total's, dweight and dbias [D], and dx's sum over rows in `dtype`.

    dx is [0, D] where it is dresidual; its sum is [D], without `sums` [0].
    """
    dresidual = torch.empty(total.shape, dtype=total.dtype, device=total.device)
    dx_sum = torch.empty(total.shape[1] if sums else 0, dtype=dtype, device=total.device)
    column_sum = dx_sum if sums else None
    if dropout == 0.0 and dtype == total.dtype:
        dx = dresidual.new_empty(0, total.shape[1])
        gradients = _backward(dy, dtotal, total, weight, mean, rstd, dresidual, None, 0.0, 0, column_sum)
    else:
        dx = torch.empty(total.shape, dtype=dtype, device=total.device)
        gradients = _backward(dy, dtotal, total, weight, mean, rstd, dx, dresidual, dropout, seed, column_sum)
    return dx, dresidual, *gradients, dx_sum


def _backward(dy, dtotal, x, weight, mean, rstd, dx, dresidual, dropout, seed, dx_sum):
    """Writes dx, and dresidual and dx's sum over rows where they are tensors; returns dweight and dbias."""
    N, D = x.shape
    dweight, dbias = (torch.empty(D, dtype=weight.dtype, device=x.device) for _ in range(2))
    column_sum = dbias if dx_sum is None else dx_sum
    if N == 0:
        column_sum.zero_()
        return dweight.zero_(), dbias.zero_()
    tile = _tile(D, True, dropout, dx_sum is not None)
    share = _rows_a_program(N, tile)
    programs = cdiv(N, share)
    parts = [torch.empty(programs, D, dtype=torch.float32, device=x.device) for _ in range(3)]
    dy, dy_stride = with_row_stride(dy)
    x, x_stride = with_row_stride(x)
    added, added_stride = (dy, dy_stride) if dtotal is None else with_row_stride(dtotal)
    with on_device(x):
        _layer_norm_bwd_kernel[(programs,)](
            dy,
            dy_stride,
            added,
            added_stride,
            x,
            x_stride,
            weight.contiguous(),
            mean,
            rstd,
            dx,
            dx if dresidual is None else dresidual,
            *parts,
            N,
            share,
            *_halves(seed),
            HAS_DTOTAL=dtotal is not None,
            HAS_DRESIDUAL=dresidual is not None,
            SUMS=dx_sum is not None,
            **_constants(tile, D, dropout),
            **_options(tile),
        )
        _layer_norm_bwd_sum_kernel[(cdiv(D, _SUM_BLOCK["BLOCK_D"]),)](
            *parts,
            dweight,
            dbias,
            column_sum,
            programs,
            D=D,
            SUMS=dx_sum is not None,
            **_SUM_BLOCK,
            num_warps=_SUM_WARPS,
        )
    return dweight, dbias


def compile_cases() -> list[CompileCase]:
    """Every compilation that the launchers can choose at D = 768; at other widths those of training and generation."""
    cases = []
    for x in ("bf16", "fp16", "fp32"):
        for D in (128, 192, 1024):
            cases += [_forward_case(D, x, "fp32", x, None, 0.0), _backward_case(D, x, x, "fp32", x, False, None, 0.0)]
            for dropout in (0.0, 0.1):
                cases.append(_forward_case(D, x, "fp32", x, x, dropout))
                cases += _backward_cases(D, x, x, "fp32", x, True, x if dropout else None, dropout)
        for weight in sorted({x, "fp32"}):
            for other in sorted({x, "fp32"}):
                cases.append(_forward_case(768, x, weight, other, None, 0.0))
                cases.append(_backward_case(768, other, x, weight, x, False, None, 0.0))
                for dropout in (0.0, 0.1):
                    cases.append(_forward_case(768, x, weight, x, other, dropout))
                    dresidual = other if dropout or other != x else None
                    for has_dtotal in (False, True):
                        cases += _backward_cases(768, x, other, weight, x, has_dtotal, dresidual, dropout)
        types = {"dweight_parts": "*fp32", "dbias_parts": "*fp32", "dx_parts": "*fp32", "parts": "i32"}
        types |= {"dweight": f"*{x}", "dbias": f"*{x}", "dx_sum": f"*{x}"}
        options, unaligned = {"num_warps": _SUM_WARPS}, frozenset({"parts"})
        for sums in (False, True):
            name = f"layer_norm_bwd_sum {x} d768" + (" sums" if sums else "")
            constants, checks = {"D": 768, "SUMS": sums, **_SUM_BLOCK}, (WIDE_LOADS,)
            cases.append(CompileCase(name, _layer_norm_bwd_sum_kernel, types, constants, options, unaligned, checks))
    return list({case.name: case for case in cases}.values())


def _forward_case(D: int, x: str, weight: str, y: str, residual: str | None, dropout: float) -> CompileCase:
    tile = _tile(D)
    types = {"x": f"*{x}", "x_stride": "i32", "residual": f"*{residual or x}", "residual_stride": "i32"}
    types |= {"weight": f"*{weight}", "bias": f"*{weight}", "y": f"*{y}", "total": f"*{residual or y}"}
    types |= {"mean": "*fp32", "rstd": "*fp32", "rows": "i32", "eps": "fp32", "seed_low": "i32", "seed_high": "i32"}
    constants = _constants(tile, D, dropout) | {"ADD": residual is not None}
    name = (
        f"layer_norm_fwd {x} weight {weight} y {y}" if residual is None else f"add_layer_norm_fwd {x} weight {weight}"
    )
    name += (f" residual {residual}" if residual else "") + (" dropout" if dropout else "") + f" d{D}"
    unaligned = frozenset({"rows", "seed_low", "seed_high"})
    return CompileCase(name, _layer_norm_fwd_kernel, types, constants, _options(tile), unaligned, (WIDE_LOADS,))


def _backward_cases(
    D: int, dy: str, x: str, weight: str, dx: str, has_dtotal: bool, dresidual: str | None, dropout: float
) -> list[CompileCase]:
    """Without dx's sum and, of a norm inside a layer, with it."""
    arguments = (D, dy, x, weight, dx, has_dtotal, dresidual, dropout)
    return [_backward_case(*arguments, sums=sums) for sums in (False, True) if has_dtotal or not sums]


def _backward_case(
    D: int,
    dy: str,
    x: str,
    weight: str,
    dx: str,
    has_dtotal: bool,
    dresidual: str | None,
    dropout: float,
    sums: bool = False,
) -> CompileCase:
    tile = _tile(D, True, dropout, sums)
    types = {"dy": f"*{dy}", "dy_stride": "i32", "dtotal": f"*{x if has_dtotal else dy}", "dtotal_stride": "i32"}
    types |= {"x": f"*{x}", "x_stride": "i32", "weight": f"*{weight}", "mean": "*fp32", "rstd": "*fp32"}
    types |= {"dx": f"*{dx}", "dresidual": f"*{dresidual or dx}"}
    types |= {"dweight_parts": "*fp32", "dbias_parts": "*fp32", "dx_parts": "*fp32"}
    types |= {"rows": "i32", "rows_a_program": "i32", "seed_low": "i32", "seed_high": "i32"}
    constants = _constants(tile, D, dropout)
    constants |= {"HAS_DTOTAL": has_dtotal, "HAS_DRESIDUAL": dresidual is not None, "SUMS": sums}
    name = f"layer_norm_bwd dy {dy} x {x} weight {weight} dx {dx}" + (" dtotal" if has_dtotal else "")
    name += (f" dresidual {dresidual}" if dresidual else "") + (" dropout" if dropout else "")
    name += (" sums" if sums else "") + f" d{D}"
    unaligned = frozenset({"rows", "rows_a_program", "seed_low", "seed_high"})
    return CompileCase(name, _layer_norm_bwd_kernel, types, constants, _options(tile), unaligned, (WIDE_LOADS,))
