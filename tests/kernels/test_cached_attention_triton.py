"""cached_attention's Triton kernel against float64: in the interpreter, or on a GPU where there is one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from support.interpreter import DEVICE  # isort: skip  # before triton
from kernels.test_cached_attention import cache, sample

from bgpt_fast.kernels.cached_attention import triton_kernels
from bgpt_fast.kernels.cached_attention.reference import cached_attention_reference
from bgpt_fast.kernels.cached_attention.triton_kernels import cached_attention_forward, compile_cases

# (H, d, lengths): around a block of 32 positions, and channels that are no power of two.
SHAPES = [(1, 1, [1]), (2, 5, [3, 33]), (1, 16, [32, 1]), (1, 24, [65])]


def run(
    attend: object,
    sampled: tuple[Tensor, ...],
    shape: tuple[int, int, list[int]],
    dtype: torch.dtype,
    cache_dtype: torch.dtype | None = None,
) -> Tensor:
    H, d, lengths = shape
    qkv, slots, positions = (tensor.to(DEVICE) for tensor in sampled)
    keys, values = (tensor.to(DEVICE, cache_dtype or dtype) for tensor in cache(len(lengths), H, d, max(lengths) + 3))
    return attend(qkv.to(dtype), keys, values, slots, positions)  # type: ignore[operator]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values(shape: tuple[int, int, list[int]], cache_dtype: torch.dtype) -> None:
    """A bfloat16 cache rounds keys and values, so the exact result takes rounded ones too."""
    qkv, slots, positions = sample(*shape, seed=1, spread=3.0)
    rounded = qkv.view(len(qkv), 3, -1)
    rounded[:, 1:] = rounded[:, 1:].to(cache_dtype).float()
    sampled = (qkv, slots, positions)
    y = run(cached_attention_forward, sampled, shape, torch.float32, cache_dtype)
    plain, exact = (run(cached_attention_reference, sampled, shape, dtype) for dtype in (torch.float32, torch.float64))
    rounding = 4 * torch.finfo(torch.float32).eps * exact.abs().max()
    assert (y - exact).abs().max() <= 2 * (plain - exact).abs().max() + rounding
    wrong = y.clone()
    wrong[-1, -1] += 1e-3
    assert not (wrong - exact).abs().max() <= 2 * (plain - exact).abs().max() + rounding


def test_a_token_does_not_depend_on_the_others() -> None:
    shape = (1, 16, [40, 7])
    qkv, slots, positions = (tensor.to(DEVICE) for tensor in sample(*shape))
    keys, values = (tensor.to(DEVICE) for tensor in cache(2, 1, 16, 48))
    together = cached_attention_forward(qkv, keys, values, slots, positions)
    keys, values = (tensor.to(DEVICE) for tensor in cache(2, 1, 16, 48))
    parts = [
        cached_attention_forward(qkv[part], keys, values, slots[part], positions[part])
        for part in (slice(0, 39), slice(39, 40), slice(40, 47))
    ]
    torch.testing.assert_close(torch.cat(parts), together, rtol=0, atol=0)


def test_empty() -> None:
    keys, values = (tensor.to(DEVICE) for tensor in cache(1, 1, 4, 4))
    numbers = torch.empty(0, dtype=torch.int64, device=DEVICE)
    assert cached_attention_forward(torch.empty(0, 12, device=DEVICE), keys, values, numbers, numbers).shape == (0, 4)


def test_compile_cases_match_the_kernel() -> None:
    for case in compile_cases():
        assert case.kernel is triton_kernels._cached_attention_fwd_kernel
        assert set(case.types) | set(case.constexprs) == set(case.kernel.arg_names)
