"""Kernels on which test_static_check.py tries the static check: one that passes, and one for each refusal."""

from __future__ import annotations

import triton
import triton.language as tl

from bgpt_fast.kernels.common.launch import CompileCase


@triton.jit
def _product_kernel(x, y, M: tl.constexpr, K: tl.constexpr):
    rows, columns = tl.arange(0, M), tl.arange(0, K)
    a = tl.load(x + rows[:, None] * K + columns[None, :])
    b = tl.load(x + M * K + columns[:, None] * M + rows[None, :])
    tl.store(y + rows[:, None] * M + rows[None, :], tl.dot(a, b).to(tl.bfloat16))


@triton.jit
def _copy_kernel(x, y, N: tl.constexpr):
    tl.store(y + tl.arange(0, N), tl.load(x + tl.arange(0, N)))


def compile_cases() -> list[CompileCase]:
    product, copy = {"x": "*bf16", "y": "*bf16"}, {"x": "*fp32", "y": "*fp32"}
    mma = ("mma.sync|wgmma|tcgen05.mma",)
    return [
        CompileCase("fits bf16", _product_kernel, product, {"M": 64, "K": 64}, {"num_warps": 4}, expects=mma),
        CompileCase("spills bf16", _product_kernel, product, {"M": 128, "K": 16}, {"num_warps": 1}),
        CompileCase("shared bf16", _product_kernel, product, {"M": 64, "K": 1024}, {"num_warps": 8}),
        CompileCase("no product fp32", _copy_kernel, copy, {"N": 128}, {"num_warps": 1}, expects=mma),
        CompileCase("no vector fp32", _copy_kernel, copy, {"N": 128}, unaligned=frozenset("xy"), expects=(".v4",)),
        CompileCase("argument forgotten", _copy_kernel, {"x": "*fp32"}, {"N": 128}),
    ]
