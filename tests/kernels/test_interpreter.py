"""The canary of Triton's interpreter: every bfloat16 result of the other tests rests on it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from support.interpreter import DEVICE  # isort: skip  # before triton
import triton
import triton.language as tl


@triton.jit
def _sum_and_dot_kernel(x, y, sums, dots, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    a, b = tl.load(x + at), tl.load(y + at)
    tl.store(sums + at, a + b)
    tl.store(dots + at, tl.dot(a, b).to(tl.bfloat16))


def sums_and_dots(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    sums, dots = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    _sum_and_dot_kernel[(1,)](x, y, sums, dots, N=16)
    return sums, dots


def test_bf16_counts() -> None:
    x, y = (torch.full((16, 16), value, dtype=torch.bfloat16, device=DEVICE) for value in (2.5, 2.0))
    sums, dots = sums_and_dots(x, y)
    assert (sums == 4.5).all()
    assert (dots == 80).all()


def test_bf16_rounds_to_nearest_even() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(16, 16, generator=generator).bfloat16().to(DEVICE) for _ in range(2))
    sums, dots = sums_and_dots(x, y)
    assert torch.equal(sums, x + y)
    torch.testing.assert_close(dots, (x.float() @ y.float()).bfloat16(), rtol=2**-8, atol=2**-10)


@triton.jit
def _dot_kernel(x, y, dots, M: tl.constexpr, N: tl.constexpr):
    row, column = tl.arange(0, M)[:, None], tl.arange(0, N)
    a = tl.load(x + row * N + column[None, :])
    tl.store(dots + row * N + column[None, :], tl.dot(a, tl.load(y + column[:, None] * N + column[None, :])))


def test_a_row_of_a_product_has_the_same_bits_at_any_place() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(rows, 64, generator=generator).to(DEVICE) for rows in (128, 64))
    together, parts = torch.empty_like(x), torch.empty_like(x)
    _dot_kernel[(1,)](x, y, together, M=128, N=64)
    for rows in range(0, 128, 16):
        _dot_kernel[(1,)](x[rows:], y, parts[rows:], M=16, N=64)
    assert torch.equal(together, parts)


@pytest.mark.skipif(DEVICE == "cuda", reason="of the interpreter")
def test_the_interpreter_runs() -> None:
    assert triton.knobs.runtime.interpret
