# mypy: allow-untyped-defs
"""linear_cross_entropy's Triton kernels. Not yet run on a GPU.

V = 257 tokens are a tile of MAIN = 256 columns on tensor cores and one separate column, a vector product with the rows
of x that are in shared memory already. (A second `tl.dot` of 16 columns made Triton give every warp all 256 columns on
sm_80, and every tiling spilled.) Any other V is one tile, padded to a power of two.

Forward: a program has the [64, 257] logits of 64 rows in registers and loads x and the weight 64 channels at a time.
Backward, first kernel: it computes the same logits again, turns them into dlogits in registers, writes those once in
the dtype of x (528 bytes a row) and multiplies them with the weight for dx. Second kernel: dweight = dlogitsᵀ x by
tiles of [257, 64 channels], with the rows split among as many programs as fill a large GPU; each split writes a float32
partial sum, and these are added in order. (dweight in the first kernel would need 257·D float32 sums a program, 0.8 MB
at D = 768. The library's product may round the partial sums of its splits to bfloat16, by torch's defaults.)

Why 64 rows: with 128 rows, 8 warps need 250–255 registers; 64 rows compile without spills on sm_80, sm_90 and sm_100,
and in the forward pass two programs fit on an SM of sm_90, so that one computes its softmax during the other's
products. A row of 768 channels, forward: 0.40 MFLOP,
1.5 KB of x, 6.2 KB of weight from L2 (395 KB, read by each program). Backward: 1.19 MFLOP, 5.7 KB of x, dx and dlogits
from and to memory, 24 KB with L2. Predicted on an H200 (790 TFLOP/s, 4.3 TB/s, L2 taken as 5.5 TB/s): forward 1.4 ns a
row, backward 4.3 ns, both bound by L2; 0.09 and 0.28 ms for 4,096 patches of 16.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bgpt_fast.kernels.common.launch import DTYPE_NAMES, TENSOR_CORES, CompileCase, cdiv, next_power_of_2, on_device


@triton.jit
def _logits_tile(x, weight, rows, N, D, V: tl.constexpr, BM: tl.constexpr, MAIN: tl.constexpr, BD: tl.constexpr):
    """A tile of rows' logits in float32: of tokens 0…MAIN − 1, and of token MAIN apart where V is MAIN + 1."""
    main = tl.zeros([BM, MAIN], tl.float32)
    last = tl.zeros([BM], tl.float32)
    token, d = tl.arange(0, MAIN), tl.arange(0, BD)
    x_rows = x + rows[:, None] * D + d[None, :]
    weight_rows = weight + token[None, :] * D + d[:, None]
    for start in range(0, D, BD):
        inside = d < D - start
        x_tile = tl.load(x_rows + start, mask=(rows < N)[:, None] & inside[None, :], other=0.0)
        weight_tile = tl.load(weight_rows + start, mask=(token < V)[None, :] & inside[:, None], other=0.0)
        main = tl.dot(x_tile, weight_tile, main, input_precision="ieee")
        if V > MAIN:
            weight_last = tl.load(weight + MAIN * D + start + d, mask=inside, other=0.0)
            last += tl.sum(x_tile.to(tl.float32) * weight_last.to(tl.float32)[None, :], 1)
    return main, last


@triton.jit
def _linear_cross_entropy_fwd_kernel(
    x, weight, targets, nats, lse, N, D, V: tl.constexpr, BM: tl.constexpr, MAIN: tl.constexpr, BD: tl.constexpr
):
    rows = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    main, last = _logits_tile(x, weight, rows, N, D, V, BM, MAIN, BD)
    token = tl.arange(0, MAIN)[None, :]
    main = tl.where(token < V, main, -float("inf"))
    top = tl.max(main, 1)
    if V > MAIN:
        top = tl.maximum(top, last)
    # As torch.logsumexp: an infinite maximum is not subtracted, so that lse is that infinity and not NaN.
    top = tl.where(tl.abs(top) == float("inf"), 0.0, top)
    total = tl.sum(tl.exp(main - top[:, None]), 1)
    target = tl.load(targets + rows, mask=rows < N, other=0)
    is_token = (target >= 0) & (target < V)
    # Compared in 32 bits, once the range is known: columns of int64 would cost registers.
    target = tl.where(is_token, target, 0).to(tl.int32)
    own = tl.sum(tl.where(token == target[:, None], main, 0.0), 1)
    if V > MAIN:
        total += tl.exp(last - top)
        own = tl.where(target == MAIN, last, own)
    total = tl.where(is_token, tl.log(total), float("nan"))
    # Not (top + total) − own: the large parts cancel first.
    tl.store(nats + rows, (top - own) + total, mask=rows < N)
    tl.store(lse + rows, top + total, mask=rows < N)


@triton.jit
def _linear_cross_entropy_bwd_kernel(
    dnats, x, weight, targets, lse, dx, dlogits, N, D,
    V: tl.constexpr, BM: tl.constexpr, MAIN: tl.constexpr, BD: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """dx of a tile of rows, and its dlogits [N, COLUMNS] for `_linear_cross_entropy_bwd_dweight_kernel`."""
    rows = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    main, last = _logits_tile(x, weight, rows, N, D, V, BM, MAIN, BD)
    token, d = tl.arange(0, MAIN), tl.arange(0, BD)
    # Not exp(main − lse): where all logits are large, the sum of their exponentials is small beside its rounding.
    main = tl.where((token < V)[None, :], main, -float("inf"))
    top = tl.max(main, 1)
    if V > MAIN:
        top = tl.maximum(top, last)
    top = tl.where(tl.abs(top) == float("inf"), 0.0, top)
    main = tl.exp(main - top[:, None])
    total = tl.sum(main, 1)
    if V > MAIN:
        last = tl.exp(last - top)
        total += last
    # A target that is no token has left lse = NaN, so nothing is lost in 32 bits.
    row_lse = tl.load(lse + rows, mask=rows < N, other=0.0)
    share = 1.0 / tl.where(row_lse == row_lse, total, row_lse)
    scale = tl.load(dnats + rows, mask=rows < N, other=0.0)
    target = tl.load(targets + rows, mask=rows < N, other=0).to(tl.int32)
    main = main * share[:, None] - tl.where(token[None, :] == target[:, None], 1.0, 0.0)
    # Columns that are no tokens are zero, whatever the row.
    main = tl.where((token < V)[None, :], main * scale[:, None], 0.0).to(x.dtype.element_ty)
    at = dlogits + rows * COLUMNS
    tl.store(at[:, None] + token[None, :], main, mask=(rows < N)[:, None])
    if V > MAIN:
        last = (last * share - tl.where(target == MAIN, 1.0, 0.0)) * scale
        last = last.to(x.dtype.element_ty)
        tl.store(at + MAIN, last, mask=rows < N)

    weight_rows = weight + token[:, None] * D + d[None, :]
    dx_rows = dx + rows[:, None] * D + d[None, :]
    for start in range(0, D, BD):
        inside = d < D - start
        weight_tile = tl.load(weight_rows + start, mask=(token < V)[:, None] & inside[None, :], other=0.0)
        tile = tl.dot(main, weight_tile, input_precision="ieee")
        if V > MAIN:
            weight_last = tl.load(weight + MAIN * D + start + d, mask=inside, other=0.0)
            tile += last.to(tl.float32)[:, None] * weight_last.to(tl.float32)[None, :]
        tl.store(dx_rows + start, tile.to(x.dtype.element_ty), mask=(rows < N)[:, None] & inside[None, :])


@triton.jit
def _linear_cross_entropy_bwd_dweight_kernel(
    x, dlogits, partials, N, D, rows_per_split,
    V: tl.constexpr, MAIN: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """partials[split] [V, D] = dlogitsᵀ x over one split of the rows, for a tile of BD columns."""
    tiles = tl.cdiv(D, BD)
    split = (tl.program_id(0) // tiles).to(tl.int64)
    d = tl.program_id(0) % tiles * BD + tl.arange(0, BD)
    token, n = tl.arange(0, MAIN), tl.arange(0, BN)
    first = split * rows_per_split
    count = tl.minimum(rows_per_split, N - first).to(tl.int32)
    main = tl.zeros([MAIN, BD], tl.float32)
    last = tl.zeros([BD], tl.float32)
    for start in range(0, count, BN):
        rows, inside = first + start + n, start + n < count
        x_tile = tl.load(x + rows[:, None] * D + d[None, :], mask=inside[:, None] & (d < D)[None, :], other=0.0)
        at = dlogits + rows * COLUMNS
        main_tile = tl.load(at[None, :] + token[:, None], mask=inside[None, :], other=0.0)
        main = tl.dot(main_tile, x_tile, main, input_precision="ieee")
        if V > MAIN:
            last_tile = tl.load(at + MAIN, mask=inside, other=0.0)
            last += tl.sum(x_tile.to(tl.float32) * last_tile.to(tl.float32)[:, None], 0)
    partials += split * V * D
    inside = d < D
    tl.store(partials + token[:, None] * D + d[None, :], main, mask=(token < V)[:, None] & inside[None, :])
    if V > MAIN:
        tl.store(partials + MAIN * D + d, last, mask=inside)


def linear_cross_entropy_forward(
    x: Tensor, weight: Tensor, targets: Tensor, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """nats and lse, both float32 [N], of x [N, D], weight [V, D] of its dtype and targets [N].

    The third result, the logits that a CPU saves, has no values: the backward kernels compute them again.
    """
    x, weight, targets = x.contiguous(), weight.contiguous(), targets.contiguous()
    (N, D), V = x.shape, len(weight)
    nats, lse = (torch.empty(N, dtype=torch.float32, device=x.device) for _ in range(2))
    tile = _row_tile(V, x.dtype)
    if N:
        with on_device(x):
            _linear_cross_entropy_fwd_kernel[(cdiv(N, tile["BM"]),)](x, weight, targets, nats, lse, N, D, **tile)
    return nats, lse, x.new_empty(N if save else 0, V)


def linear_cross_entropy_backward(
    dnats: Tensor, x: Tensor, weight: Tensor, targets: Tensor, lse: Tensor, _logits: Tensor
) -> tuple[Tensor, Tensor]:
    """dx [N, D] and dweight [V, D] in the dtype of x and weight, of dnats and lse float32 [N]."""
    dnats, x, weight, targets, lse = (t.contiguous() for t in (dnats, x, weight, targets, lse))
    (N, D), V = x.shape, len(weight)
    if not N:
        return torch.empty_like(x), torch.zeros_like(weight)
    rows, channels = _row_tile(V, x.dtype), _dweight_tile(V, x.dtype)
    columns, tiles = _columns(V), cdiv(D, channels["BD"])
    splits, rows_per_split = _splits(N, tiles)
    dx, dlogits = torch.empty_like(x), x.new_empty(N, columns)
    partials = torch.empty(splits, V, D, dtype=torch.float32, device=x.device)
    with on_device(x):
        _linear_cross_entropy_bwd_kernel[(cdiv(N, rows["BM"]),)](
            dnats, x, weight, targets, lse, dx, dlogits, N, D, COLUMNS=columns, **rows
        )
        _linear_cross_entropy_bwd_dweight_kernel[(splits * tiles,)](
            x, dlogits, partials, N, D, rows_per_split, COLUMNS=columns, **channels
        )
    return dx, partials.sum(0).to(weight.dtype)


def _main(V: int) -> int:
    """The columns of the one tile: V without its last token where that leaves a power of two, else padded to one."""
    padded = max(16, next_power_of_2(V))
    return padded // 2 if V > 16 and padded // 2 + 1 == V else padded


def _columns(V: int) -> int:
    """The stride of a row of dlogits: 16-byte aligned in every dtype."""
    return _main(V) + (8 if _main(V) < V else 0)


def _row_tile(V: int, dtype: torch.dtype) -> dict[str, Any]:
    wide = _main(V) > 256
    if dtype == torch.float32:
        tile = {"BM": 16 if wide else 32, "BD": 16, "num_stages": 2, "num_warps": 16}
    else:
        tile = {"BM": 32 if wide else 64, "BD": 32 if wide else 64, "num_stages": 3, "num_warps": 8}
    return {"V": V, "MAIN": _main(V), **tile}


def _dweight_tile(V: int, dtype: torch.dtype) -> dict[str, Any]:
    wide = _main(V) > 256
    if dtype == torch.float32:
        tile = {"BN": 16, "BD": 32, "num_stages": 2}
    else:
        tile = {"BN": 32, "BD": 32 if wide else 64, "num_stages": 4}
    return {"V": V, "MAIN": _main(V), "num_warps": 8, **tile}


def _splits(N: int, tiles: int) -> tuple[int, int]:
    """How many splits and of how many rows: 264 programs fill 132 SMs twice; no split of fewer than 256 rows pays."""
    splits = max(1, min(264 // tiles, cdiv(N, 256)))
    rows = cdiv(cdiv(N, splits), 32) * 32
    return cdiv(N, rows), rows


def compile_cases() -> list[CompileCase]:
    """Every compilation at V = 257; D is no constant, and all of bGPT's are multiples of 16."""
    cases = []

    def add(name: str, kernel: Any, types: dict[str, str], tile: dict[str, Any], expects: tuple[str, ...]) -> None:
        constexprs = {key: value for key, value in tile.items() if not key.startswith("num_")}
        options = {key: value for key, value in tile.items() if key.startswith("num_")}
        types = {**types, "N": "i32", "D": "i32"}
        cases.append(CompileCase(name, kernel, types, constexprs, options, frozenset({"N"}), expects))

    for dtype, short in DTYPE_NAMES.items():
        value, dot = f"*{short}", "fma.rn.f32" if short == "fp32" else TENSOR_CORES
        loads, stores = "cp.async.cg.shared.global", "st.global.v4"
        rows, columns = _row_tile(257, dtype), {"COLUMNS": _columns(257)}
        for token in ("i16", "i64"):
            name = f"{short} {token} targets"
            types = {"x": value, "weight": value, "targets": f"*{token}", "lse": "*fp32"}
            kernel = _linear_cross_entropy_fwd_kernel
            add(f"linear_cross_entropy_fwd {name}", kernel, {**types, "nats": "*fp32"}, rows, (dot, loads))
            types = {**types, "dnats": "*fp32", "dx": value, "dlogits": value}
            kernel, tile = _linear_cross_entropy_bwd_kernel, {**rows, **columns}
            add(f"linear_cross_entropy_bwd {name}", kernel, types, tile, (dot, loads, stores))
        types = {"x": value, "dlogits": value, "partials": "*fp32", "rows_per_split": "i32"}
        kernel, tile = _linear_cross_entropy_bwd_dweight_kernel, {**_dweight_tile(257, dtype), **columns}
        add(f"linear_cross_entropy_bwd_dweight {short}", kernel, types, tile, (dot, loads, stores))
    return cases
