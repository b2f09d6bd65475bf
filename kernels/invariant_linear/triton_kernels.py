"""invariant_linear on a GPU: the same tiles for every number of rows. Not yet run on a GPU.

A program computes BLOCK_M rows and BLOCK_N columns of y over all of K, in steps of BLOCK_K in ascending order: no split
of K, no autotuning. Tiles depend on the dtype and on N, which belong to the layer; neither M nor its divisors reach the
compiler, and x is always aligned to 16 bytes, so a layer has one compilation, in which a row's products and sums are
the same at every index. Weights are [K, N] or its transpose; each is a compilation of its own.

64 rows are what `wgmma` takes. Tiles have few columns, because where rows are few, too, nothing else fills the
multiprocessors: 32 columns give 24 programs at N = 768, 64 give 36 and 48 at N = 2,304 and 3,072. Where rows are many
this costs speed: 64 × 32 and 64 × 64 tiles have 21 and 32 FLOPs a byte from L2, of which an H200 (5.5 TB/s) should make
117 and 176 TFLOP/s in bf16, and 32 × 32 tiles in float32 some 20 of FMAs. docs/kernels.md predicts what that costs
generation.

Shape letters: M rows, K inputs, N outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from bgpt_fast.kernels.common.launch import CompileCase, cdiv, on_device


@triton.jit(do_not_specialize=["rows"])
def _invariant_linear_fwd_kernel(
    x,
    weight,
    stride_k,
    stride_n,
    bias,
    y,
    rows,
    N: tl.constexpr,
    K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    COLUMNS: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0)
    m = (program // COLUMNS).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (program % COLUMNS).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        is_valid = (m < rows)[:, None] & (k < K)[None, :]
        inputs = tl.load(x + m[:, None] * K + k[None, :], mask=is_valid, other=0.0)
        is_valid = (k < K)[:, None] & (n < N)[None, :]
        weights = tl.load(weight + k[:, None] * stride_k + n[None, :] * stride_n, mask=is_valid, other=0.0)
        sums = tl.dot(inputs, weights, sums, input_precision="ieee")
    if HAS_BIAS:
        sums += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if GELU:
        # The tanh GELU is z · σ(2√(2/π)(z + 0.044715 z³)).
        sums = sums / (1.0 + tl.exp(sums * (-1.5957691216057308 - 0.07135481627260025 * sums * sums)))
    is_valid = (m < rows)[:, None] & (n < N)[None, :]
    tl.store(y + m[:, None] * N + n[None, :], sums.to(y.dtype.element_ty), mask=is_valid)


@dataclass(frozen=True)
class _Tile:
    m: int
    n: int
    k: int
    warps: int
    stages: int

    def constexprs(self) -> dict[str, int]:
        return {"BLOCK_M": self.m, "BLOCK_N": self.n, "BLOCK_K": self.k}

    def options(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": self.stages}


def _tile(dtype: torch.dtype, N: int) -> _Tile:
    """The tile for a layer; it must not depend on the number of rows."""
    if dtype == torch.float32:
        return _Tile(32, 32, 32, 4, 3)
    return _Tile(64, 64 if N > 1024 else 32, 64, 4, 4)


def invariant_linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    """y [M, N] in x's dtype, float32 or bfloat16; arguments as the op's."""
    M, K = x.shape
    N = weight.shape[1]
    y = torch.empty(M, N, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    x = x.contiguous()
    if x.data_ptr() % 16:
        x = x.clone()  # Triton compiles another kernel for another alignment
    tile = _tile(x.dtype, N)
    with on_device(x):
        _invariant_linear_fwd_kernel[(cdiv(M, tile.m) * cdiv(N, tile.n),)](
            x,
            weight,
            weight.stride(0),
            weight.stride(1),
            weight if bias is None else bias.contiguous(),
            y,
            M,
            N=N,
            K=K,
            HAS_BIAS=bias is not None,
            GELU=gelu,
            **tile.constexprs(),
            **tile.options(),
        )
    return y


def compile_cases() -> list[CompileCase]:
    """Layers of the paper's size and others, with weights [N, K] as the CUDA decoder stores them, and with Conv1D's
    [K, N]."""
    cases = []
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
        for D in (128, 192, 768, 1024):
            for what, N, K, bias, gelu in (
                ("qkv", 3 * D, D, "fp32", False),
                ("projection", D, D, "fp32", False),
                ("fc", 4 * D, D, "fp32", True),
                ("fc out", D, 4 * D, "fp32", False),
                ("head", 257, D, None, False),
            ):
                cases.append(_case(dtype, name, f"{what} d{D}", N, K, bias, gelu))
        cases.append(_case(dtype, name, "fc Conv1D d768", 3072, 768, name, True, transposed=False))
    return cases


def _case(
    dtype: torch.dtype, name: str, what: str, N: int, K: int, bias: str | None, gelu: bool, transposed: bool = True
) -> CompileCase:
    tile = _tile(dtype, N)
    unit, other = ("stride_k", "stride_n") if transposed else ("stride_n", "stride_k")
    return CompileCase(
        name=f"invariant_linear_fwd {name} {what}",
        kernel=_invariant_linear_fwd_kernel,
        types={
            "x": f"*{name}",
            "weight": f"*{name}",
            other: "i32",
            "bias": f"*{bias or name}",
            "y": f"*{name}",
            "rows": "i32",
        },
        constexprs={
            unit: 1,
            "N": N,
            "K": K,
            "HAS_BIAS": bias is not None,
            "GELU": gelu,
            **tile.constexprs(),
        },
        options=tile.options(),
        unaligned=frozenset({"rows"} if transposed or N % 16 == 0 else {"rows", other}),
        expects=("mma.sync|wgmma|tcgen05.mma",) if name == "bf16" else (),
    )
