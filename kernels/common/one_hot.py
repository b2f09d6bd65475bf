"""Sums of rows by label, Σ_r [label(r) = l] · dy[r], as products with one-hot tiles on tensor cores: the gradient of an
embedding table, with no one-hot in memory, no sort and no atomics. Not yet run on a GPU.

Layout: M is the labels, K the rows of dy, N its columns. A program computes BLOCK_V labels × BLOCK_D columns over a
part of the rows; it compares the rows' labels with its own in registers, so only dy and the tokens are read. The tables
of all slots are one axis of S·V labels, which is cut into blocks across the slots' borders: at V = 257 that pads 2.7 %
(4,224 for 4,112) where blocks of one slot would pad 49 %. A block includes at most two slots, so a row has at most two
labels in it. `byte_embed` uses the second label for dwpe at no cost: S more labels in the padding of the 257.

Why 128 × 256: dy is read from L2 once for each block of labels, at BLOCK_V FLOP a byte (128 → 6.2 TB/s at 790 TFLOP/s;
64 would need twice the bandwidth of L2), and a one-hot element costs about 1/32 cycle of an SM's integer lanes, beside
BLOCK_D/2048 of its tensor cores. The labels of the next step are read before this step's product, because cp.async
cannot pipeline two-byte loads. float32 products run on the ordinary cores (`input_precision="ieee"`); a one-hot factor
is 0 or 1, so each product is exact in every dtype, and the only error is that of the fp32 sum.

Per row of dy: 2 · 4,224 · D FLOP and 2 · D · 33 bytes from L2 for `patch_embed`; 2 · 384 · D and 2 · D · 3 for
`byte_embed`. Predicted on an H200 at D = 768 in bf16: 16,384 patches 135 µs + 24 µs for the partial sums; the byte
decoder's 262,144 rows 200–220 µs + 15 µs.

NaN and infinity: 0 · NaN is NaN, so a NaN or an infinity in column d of one row of dy makes column d of every label
NaN, as in the product with a one-hot matrix. It is never lost and reaches no other column.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bgpt_fast.kernels.common.launch import DTYPE_NAMES, TENSOR_CORES, CompileCase, cdiv, next_power_of_2, on_device

_SUM_BLOCK = 1024


@triton.jit
def _labels(  # type: ignore[no-untyped-def]
    tokens, row, valid, first_label, S: tl.constexpr, V: tl.constexpr, BYTES: tl.constexpr
):
    """A row's two labels within a block that starts at `first_label`; −1 is none."""
    if BYTES:
        s = (row % S).to(tl.int32)
        token = tl.load(tokens + row - 1, mask=valid & (s > 0), other=-1)
        second = V + s
        slot = 0
    else:
        slot = first_label // V
        token = tl.load(tokens + row * S + slot, mask=valid, other=-1)
        if S > 1:
            other = tl.load(tokens + row * S + slot + 1, mask=valid & (slot + 1 < S), other=-1)
            second = tl.where((other >= 0) & (other < V), other.to(tl.int32) + (slot + 1) * V, -1)
        else:
            second = tl.full(row.shape, -1, tl.int32)
    return tl.where((token >= 0) & (token < V), token.to(tl.int32) + slot * V, -1), second


# Unspecialised: a number of rows never compiles anything anew, so what was proved ahead of time is what runs.
@triton.jit(do_not_specialize=["rows", "rows_a_split"])
def _one_hot_sums_kernel(  # type: ignore[no-untyped-def]
    tokens,
    dy,
    sums,
    rows,
    rows_a_split,
    D: tl.constexpr,
    S: tl.constexpr,
    V: tl.constexpr,
    LABELS: tl.constexpr,
    BYTES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # Blocks of labels first: programs that run at the same time read the same rows of dy, which then come from L2.
    V_BLOCKS: tl.constexpr = (LABELS + BLOCK_V - 1) // BLOCK_V
    D_BLOCKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    program = tl.program_id(0)
    first_label = program % V_BLOCKS * BLOCK_V
    label = first_label + tl.arange(0, BLOCK_V)
    d = program // V_BLOCKS % D_BLOCKS * BLOCK_D + tl.arange(0, BLOCK_D)
    split = (program // (V_BLOCKS * D_BLOCKS)).to(tl.int64)
    begin = split * rows_a_split
    end = tl.minimum(begin + rows_a_split, rows)
    steps = tl.cdiv(end - begin, BLOCK_ROWS).to(tl.int32)

    acc = tl.zeros((BLOCK_V, BLOCK_D), tl.float32)
    row = begin + tl.arange(0, BLOCK_ROWS)
    first, second = _labels(tokens, row, row < end, first_label, S, V, BYTES)
    for _ in range(steps):
        tile = tl.load(dy + row[:, None] * D + d[None, :], mask=(row < end)[:, None] & (d < D)[None, :], other=0.0)
        hit = label[:, None] == first[None, :]
        if BYTES or S > 1:
            hit |= label[:, None] == second[None, :]
        row += BLOCK_ROWS
        first, second = _labels(tokens, row, row < end, first_label, S, V, BYTES)
        acc = tl.dot(tl.where(hit, 1.0, 0.0).to(tile.dtype), tile, acc, input_precision="ieee")
    # One 64-bit origin, and small offsets from it: an address of its own for each row spills on sm_100.
    origin = sums + (split * LABELS + first_label) * D
    at = tl.arange(0, BLOCK_V).to(tl.int64)[:, None] * D + d[None, :]
    tl.store(origin + at, acc.to(sums.dtype.element_ty), mask=(label < LABELS)[:, None] & (d < D)[None, :])


@triton.jit(do_not_specialize=["splits"])
def _sum_splits_kernel(partials, sums, splits, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        acc += tl.load(partials + tl.cast(split, tl.int64) * count + at, mask=at < count, other=0.0)
    tl.store(sums + at, acc.to(sums.dtype.element_ty), mask=at < count)


def one_hot_sums(tokens: Tensor, dy: Tensor, V: int, dtype: torch.dtype) -> Tensor:
    """Sums the rows of `dy` by their tokens; every column of `tokens` is a slot with its own table.

    Bit-equal for equal arguments: the order of the sums depends on the shape alone. Accumulated in fp32, rounded once
    to `dtype`.

    Args:
        tokens: integers [P, S]; the row of one outside 0…V−1 is not added.
        dy: float32, bfloat16 or float16 [P, D].
        V: tokens a slot.
        dtype: of the result, float32 or `dy`'s.

    Returns:
        [S, V, D], contiguous: sums[s, v] = Σ_p [tokens[p, s] = v] · dy[p].
    """
    S = tokens.shape[1]
    return _sums(tokens, dy, S, V, S * V, False, dtype).view(S, V, dy.shape[1])


def byte_row_sums(patches: Tensor, dx: Tensor, V: int) -> tuple[Tensor, Tensor]:
    """Sums the byte decoder's rows by the byte embedded in each, and by its position, in one pass.

    Args:
        patches: integers [T, S]; byte s − 1 is embedded in row s, and row 0 holds no byte.
        dx: float32, bfloat16 or float16 [T, S, D].
        V: tokens.

    Returns:
        float32 [V, D] by token, and float32 [S, D] by position.
    """
    T, S, D = dx.shape
    sums = _sums(patches, dx.reshape(T * S, D), S, V, V + S, True, torch.float32)
    return sums[:V], sums[V:]


def _sums(tokens: Tensor, dy: Tensor, S: int, V: int, labels: int, is_bytes: bool, dtype: torch.dtype) -> Tensor:
    rows, D = dy.shape
    if rows == 0 or D == 0 or labels == 0:
        return dy.new_zeros(labels, D, dtype=dtype)
    constants, options = _tiling(dy.dtype, D, S, V, labels, is_bytes)
    block_v = constants["BLOCK_V"]
    if not is_bytes and S > 1 and block_v > V:
        raise ValueError(f"one_hot_sums: expected at least {block_v} tokens a slot, got {V}")
    tokens, dy = tokens.contiguous(), dy.contiguous()
    blocks = cdiv(labels, block_v) * cdiv(D, constants["BLOCK_D"])
    steps = cdiv(rows, constants["BLOCK_ROWS"])
    rows_a_split = _steps_a_split(steps, blocks, labels * D) * constants["BLOCK_ROWS"]
    splits = cdiv(rows, rows_a_split)
    sums = dy.new_empty(labels, D, dtype=dtype)
    partials = sums if splits == 1 else dy.new_empty(splits, labels, D, dtype=torch.float32)
    with on_device(dy):
        _one_hot_sums_kernel[(splits * blocks,)](tokens, dy, partials, rows, rows_a_split, **constants, **options)
        if splits > 1:
            grid = (cdiv(sums.numel(), _SUM_BLOCK),)
            _sum_splits_kernel[grid](partials, sums, splits, sums.numel(), BLOCK=_SUM_BLOCK, num_warps=4)
    return sums


@functools.lru_cache(maxsize=4096)
def _steps_a_split(steps: int, blocks: int, size: int) -> int:
    # The least time predicted for the GPU of reference, whatever GPU runs, so that sums depend on the shape alone:
    # 350 ns a step on each of 132 SMs, 1 ns for 4,300 bytes of partial sums, and 4,000 ns to launch their addition.
    def nanoseconds(splits: int) -> float:
        partials = 4000 + splits * size * 8 / 4300 if splits > 1 else 0
        return cdiv(blocks * splits, 132) * cdiv(steps, splits) * 350 + partials

    return cdiv(steps, min(range(1, min(steps, 64) + 1), key=nanoseconds))


def _tiling(
    dtype: torch.dtype, D: int, S: int, V: int, labels: int, is_bytes: bool
) -> tuple[dict[str, Any], dict[str, int]]:
    # 128 × 256 with 64 rows a step spills on sm_80; with 32 rows it takes at most 240 registers there, 201 on sm_90.
    block_rows, block_v, widest, warps, stages = (32, 64, 64, 4, 3) if dtype == torch.float32 else (32, 128, 256, 8, 4)
    block_d = min(widest, max(16, next_power_of_2(D)))
    constants = {"D": D, "S": S, "V": V, "LABELS": labels, "BYTES": is_bytes}
    constants |= {"BLOCK_ROWS": block_rows, "BLOCK_V": block_v, "BLOCK_D": block_d}
    return constants, {"num_warps": warps, "num_stages": stages}


def one_hot_compile_cases(
    op: str, dtype: torch.dtype, widths: Sequence[int], *, tokens: str, S: int, V: int, is_bytes: bool = False
) -> list[CompileCase]:
    """What `one_hot_sums` (or `byte_row_sums`) can compile for a dtype of `dy`, directly and in splits.

    Args:
        op: the first word of the cases' names.
        dtype: of `dy`.
        widths: D of each case.
        tokens: Triton's type of the tokens, such as "*i16".
        S, V: as the two functions have them.
        is_bytes: `byte_row_sums`.
    """
    short = DTYPE_NAMES[dtype]
    result = "fp32" if is_bytes else short
    matrix = "fma.rn" if short == "fp32" else TENSOR_CORES
    cases = []
    for out in sorted({"fp32", result}):
        for D in widths:
            constants, options = _tiling(dtype, D, S, V, V + S if is_bytes else S * V, is_bytes)
            types = {"tokens": tokens, "dy": f"*{short}", "sums": f"*{out}", "rows": "i32", "rows_a_split": "i32"}
            cases.append(
                CompileCase(
                    f"{op} {short} to {out} d{D}",
                    _one_hot_sums_kernel,
                    types,
                    constants,
                    options,
                    frozenset({"rows", "rows_a_split"}),
                    (matrix, "cp.async"),
                )
            )
    cases.append(
        CompileCase(
            f"{op} {short} splits to {result}",
            _sum_splits_kernel,
            {"partials": "*fp32", "sums": f"*{result}", "splits": "i32", "count": "i32"},
            {"BLOCK": _SUM_BLOCK},
            {"num_warps": 4},
            frozenset({"splits"}),
            ("ld.global.v4|ld.global.v2.b64",),
        )
    )
    return cases
