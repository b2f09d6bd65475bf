"""byte_embed's Triton kernels: values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from support.interpreter import DEVICE  # isort: skip  # before triton
from bgpt_fast.kernels.byte_embed.reference import byte_embed_backward_reference, byte_embed_reference
from bgpt_fast.kernels.byte_embed.triton_kernels import byte_embed_backward, byte_embed_forward, compile_cases

# Activations over tables, as dispatch meets them.
DTYPES = [
    (torch.float32, torch.float32),
    (torch.float16, torch.float16),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
]
SHAPES = [(0, 4, 8), (1, 1, 1), (3, 16, 40), (15, 3, 16), (17, 2, 257), (2, 17, 192)]


def sample(
    T: int, S: int, D: int, dtype: torch.dtype = torch.float32, table: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(T + S + D)
    patches = torch.randint(0, 257, (T, S), generator=generator).to(torch.int16)
    features, wte, wpe = (torch.randn(rows, D, generator=generator) for rows in (T, 257, S + 1))
    return features.to(dtype).to(DEVICE), patches.to(DEVICE), wte.to(table).to(DEVICE), wpe.to(table).to(DEVICE)


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_are_rounded_once(shape: tuple[int, int, int], dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    features, patches, wte, wpe = sample(*shape, *dtypes)
    x = byte_embed_forward(features, patches, wte, wpe)
    assert (x.shape, x.dtype) == (shape, dtypes[0])
    assert torch.equal(x, byte_embed_reference(features.float(), patches, wte.float(), wpe.float()).to(dtypes[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    _, patches, _, _ = sample(*shape)
    dx = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype).to(DEVICE)
    ours = byte_embed_backward(dx, patches, shape[1] + 1)
    same = byte_embed_backward_reference(dx, patches, shape[1] + 1)
    exact = byte_embed_backward_reference(dx.double(), patches, shape[1] + 1)
    assert torch.equal(ours[0], dx[:, 0])
    for got, plain, want in zip(ours, same, exact, strict=True):
        assert (got.shape, got.dtype) == (want.shape, plain.dtype)
        assert got.is_contiguous()
        assert got.isfinite().all()
        if got.numel():
            floor = torch.finfo(got.dtype).eps * want.abs().max()
            assert (got - want).abs().max() <= 2 * (plain - want).abs().max() + floor


def test_a_patch_does_not_depend_on_its_neighbours() -> None:
    features, patches, wte, wpe = sample(20, 5, 24)
    x = byte_embed_forward(features, patches, wte, wpe)
    assert torch.equal(x[7:9], byte_embed_forward(features[7:9], patches[7:9], wte, wpe))
    features[3, 5], features[4, 6], features[5] = torch.nan, -torch.inf, 1e4
    changed = byte_embed_forward(features, patches, wte, wpe)
    assert not torch.equal(changed[3, 0], x[3, 0])  # the negative control
    assert changed[3, 0, 5].isnan()
    assert changed[4, 0, 6] == -torch.inf
    assert torch.equal(changed[:, 1:], x[:, 1:])
    assert torch.equal(changed[[0, 1, 2, *range(6, 20)]], x[[0, 1, 2, *range(6, 20)]])


def test_bit_equal_over_runs() -> None:
    _, patches, _, _ = sample(30, 4, 16)
    dx = torch.randn(30, 4, 16, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    first = byte_embed_backward(dx, patches, 4)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(byte_embed_backward(dx, patches, 4), first, strict=True))


def test_tokens_out_of_range_add_nothing() -> None:
    features, patches, wte, wpe = sample(4, 3, 16)
    patches[0, 0], patches[1, 1], patches[2, 2] = -1, 257, 999
    x = byte_embed_forward(features, patches, wte, wpe)
    assert torch.equal(x[0, 1], wpe[1])
    assert torch.equal(x[1, 2], wpe[2])
    dwte = byte_embed_backward(torch.ones_like(x), patches, 4)[1]
    assert dwte.sum() == (4 * 2 - 2) * 16


def test_any_strides() -> None:
    features, patches, wte, wpe = sample(6, 4, 20)
    columns = [tensor.t().contiguous().t() for tensor in (features, patches, wte, wpe)]
    x = byte_embed_forward(features, patches, wte, wpe)
    assert torch.equal(byte_embed_forward(*columns), x)
    dx = torch.randn(20, 6, 4, generator=torch.Generator().manual_seed(1)).to(DEVICE).permute(1, 2, 0)
    ours, same = byte_embed_backward(dx, columns[1], 4), byte_embed_backward(dx.contiguous(), patches, 4)
    assert all(torch.equal(a, b) for a, b in zip(ours, same, strict=True))


def test_compile_cases_have_names_of_their_own() -> None:
    cases = compile_cases()
    assert len({case.name for case in cases}) == len(cases) > 20
