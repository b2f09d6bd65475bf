"""byte_attention: values, gradients, registration, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bgpt_fast.kernels.byte_attention.op import byte_attention
from bgpt_fast.kernels.byte_attention.reference import byte_attention_reference

# The widths with loops of their own, odd ones, one of everything, none, and patches beyond the kernel's longest.
SHAPES = [
    (5, 16, 3, 64),
    (9, 16, 4, 16),
    (7, 8, 2, 16),
    (300, 8, 4, 8),
    (3, 17, 2, 5),
    (1, 1, 1, 1),
    (0, 16, 2, 8),
    (2, 64, 1, 33),
    (2, 65, 1, 8),
]


def sample(shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    T, S, H, d = shape
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(T, S, 3, H, d, generator=generator).to(dtype).requires_grad_()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape: tuple[int, int, int, int]) -> None:
    qkv = sample(shape)
    exact = qkv.detach().double().requires_grad_()
    y, expected = byte_attention(qkv), byte_attention_reference(exact)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-6)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    (got,), (want,) = torch.autograd.grad(y, qkv, dy), torch.autograd.grad(expected, exact, dy.double())
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES[:5], ids=str)
def test_bf16_error_at_most_twice_the_plain_versions(shape: tuple[int, int, int, int]) -> None:
    qkv = sample(shape, torch.bfloat16)
    exact, plain = qkv.detach().double().requires_grad_(), qkv.detach().requires_grad_()
    dy = torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    ours, same, want = byte_attention(qkv), byte_attention_reference(plain), byte_attention_reference(exact)
    assert (ours - want).abs().max() <= 2 * (same - want).abs().max() + 2**-8
    (ours,), (same,) = torch.autograd.grad(ours, qkv, dy), torch.autograd.grad(same, plain, dy)
    (want,) = torch.autograd.grad(want, exact, dy.double())
    assert (ours - want).abs().max() <= 2 * (same - want).abs().max() + 2**-8


def test_a_patch_does_not_depend_on_its_neighbours_or_on_threads() -> None:
    qkv = sample((800, 16, 4, 16)).detach()
    together = byte_attention(qkv)
    assert torch.equal(together[::99], byte_attention(qkv[::99]))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(byte_attention(qkv), together)
    finally:
        torch.set_num_threads(threads)
    qkv[0, 0] += 1e-3  # the negative control: the first byte's change reaches its own patch, and no other
    changed = byte_attention(qkv)
    assert not torch.equal(changed[0], together[0])
    assert torch.equal(changed[1:], together[1:])


def test_later_bytes_are_never_seen() -> None:
    qkv = sample((4, 16, 2, 8)).detach()
    before = byte_attention(qkv)
    qkv[:, 9:] = torch.nan
    assert torch.equal(byte_attention(qkv)[:, :9], before[:, :9])
    assert byte_attention(qkv)[:, 9:].isnan().all()


def test_extreme_scores_as_in_plain_torch() -> None:
    qkv = sample((3, 16, 2, 8)).detach()
    qkv[:, :, 0] *= 1e4
    qkv[1, 0, 2] = torch.inf
    torch.testing.assert_close(byte_attention(qkv), byte_attention_reference(qkv), rtol=1e-5, atol=1e-6, equal_nan=True)


def test_strided_input() -> None:
    wide = sample((5, 8, 6, 8)).detach()
    torch.testing.assert_close(byte_attention(wide[:, :, :, ::2]), byte_attention_reference(wide[:, :, :, ::2]))
    transposed = sample((8, 5, 6, 8)).detach().transpose(0, 1)
    torch.testing.assert_close(byte_attention(transposed), byte_attention_reference(transposed))


def test_gradcheck() -> None:
    qkv = sample((2, 3, 2, 4), torch.float64)
    assert torch.autograd.gradcheck(byte_attention, (qkv,), fast_mode=True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_registration(shape: tuple[int, int, int, int]) -> None:
    torch.library.opcheck(torch.ops.bgpt_fast.byte_attention.default, (sample(shape),))


def test_wrong_arguments_are_named() -> None:
    qkv = sample((2, 4, 2, 8)).detach()
    bad = {
        "expected a torch.Tensor, got NoneType": None,
        "expected dtype float32 or bfloat16 or float16 or float64, got int64": qkv.long(),
        r"expected shape \[T, S, 3, H, d\], got \[2, 4, 3, 2\]": qkv[..., 0],
        r"got \[2, 4, 2, 2, 8\]": qkv[:, :, :2],
        "expected S, H, d of at least 1": qkv[..., :0],
    }
    for message, argument in bad.items():
        with pytest.raises((TypeError, ValueError), match=message):
            byte_attention(argument)
    assert byte_attention(qkv).isfinite().all()
