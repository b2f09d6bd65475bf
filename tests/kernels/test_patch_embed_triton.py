"""patch_embed's Triton kernels: the gradients of the weight and of the position table."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from support.interpreter import DEVICE  # isort: skip  # before triton
from bgpt_fast.kernels.patch_embed.reference import (
    patch_embed_backward_reference,
    patch_embed_position_backward_reference,
)
from bgpt_fast.kernels.patch_embed.triton_kernels import (
    compile_cases,
    patch_embed_backward,
    patch_embed_position_backward,
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(0, 4, 8), (1, 1, 1), (15, 2, 40), (17, 3, 16), (33, 1, 257)]
LENGTH = 150


def sample(P: int, S: int, D: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(P + S + D)
    patches = torch.randint(0, 257, (P, S), generator=generator).to(torch.int16)
    positions = torch.randint(0, LENGTH, (P,), generator=generator)
    dy = torch.randn(P, D, generator=generator).to(dtype)
    return dy.to(DEVICE), patches.to(DEVICE), positions.to(DEVICE)


def assert_close_as_plain(ours: Tensor, same: Tensor, exact: Tensor) -> None:
    """At most twice the error of the plain version in the same dtype, and one ulp of the largest value."""
    assert ours.isfinite().all()
    if exact.numel():
        error, floor = (same - exact).abs().max(), torch.finfo(ours.dtype).eps * exact.abs().max()
        assert (ours - exact).abs().max() <= 2 * error + floor


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    dy, patches, positions = sample(*shape, dtype)
    ours, same = patch_embed_backward(dy, patches), patch_embed_backward_reference(dy, patches)
    assert (ours.dtype, ours.shape, ours.stride()) == (dtype, same.shape, same.stride())
    assert_close_as_plain(ours, same, patch_embed_backward_reference(dy.double(), patches))
    ours = patch_embed_position_backward(dy, positions, LENGTH)
    assert (ours.dtype, ours.shape) == (dtype, (LENGTH, shape[2]))
    assert ours.is_contiguous()
    same = patch_embed_position_backward_reference(dy, positions, LENGTH)
    assert_close_as_plain(ours, same, patch_embed_position_backward_reference(dy.double(), positions, LENGTH))


def test_the_last_token_of_a_slot_and_the_first_of_the_next() -> None:
    patches = torch.tensor([[256, 0, 256], [0, 256, 0]], dtype=torch.int16, device=DEVICE)
    dy = torch.tensor([[1.0], [2.0]], device=DEVICE)
    dweight = patch_embed_backward(dy, patches).view(3, 257)
    assert dweight[:, [0, 256]].tolist() == [[2, 1], [1, 2], [2, 1]]
    assert not dweight[:, 1:256].any()


def test_any_strides() -> None:
    dy, patches, positions = sample(12, 3, 10)
    strided = torch.zeros(12, 6, dtype=torch.int16, device=DEVICE)
    strided[:, ::2] = patches
    columns = dy.t().contiguous().t()
    assert torch.equal(patch_embed_backward(columns, strided[:, ::2]), patch_embed_backward(dy, patches))
    expanded, backwards = dy[:1].expand(12, 10), positions.repeat_interleave(2)[::2]
    assert torch.equal(
        patch_embed_position_backward(expanded, backwards, LENGTH),
        patch_embed_position_backward(expanded.contiguous(), positions, LENGTH),
    )


def test_compile_cases_have_names_of_their_own() -> None:
    cases = compile_cases()
    assert len({case.name for case in cases}) == len(cases) > 20
