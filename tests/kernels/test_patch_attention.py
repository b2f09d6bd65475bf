"""patch_attention: values and gradients within each document, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bgpt_fast.kernels.patch_attention.op import patch_attention
from bgpt_fast.kernels.patch_attention.reference import patch_attention_reference

LENGTHS = {
    "one": [1],
    "equal": [7, 7, 7],
    "mixed": [2, 31, 3, 17, 16, 257, 1, 20, 5],
    "long after short": [1, 300],
}


def sample(lengths: list[int], heads: int = 3, width: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    generator = torch.Generator().manual_seed(sum(lengths))
    q, k, v = (torch.randn(sum(lengths), heads, width, generator=generator, requires_grad=True) for _ in range(3))
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    return q, k, v, cu_seqlens, max(lengths)


@pytest.mark.parametrize("name", LENGTHS)
def test_values_and_gradients(name: str) -> None:
    q, k, v, cu_seqlens, longest = sample(LENGTHS[name])
    y = patch_attention(q, k, v, cu_seqlens, longest)
    exact = [t.detach().double().requires_grad_() for t in (q, k, v)]
    expected = patch_attention_reference(*exact, cu_seqlens)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-6)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    for got, want in zip(
        torch.autograd.grad(y, (q, k, v), dy), torch.autograd.grad(expected, exact, dy.double()), strict=True
    ):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def test_views_of_one_projection() -> None:
    _, _, _, cu_seqlens, longest = sample([4, 9, 2])
    qkv = torch.randn(15, 3, 2, 8, generator=torch.Generator().manual_seed(0))
    q, k, v = qkv.unbind(1)
    y = patch_attention(q, k, v, cu_seqlens, longest)
    torch.testing.assert_close(y, patch_attention_reference(q, k, v, cu_seqlens), rtol=1e-5, atol=1e-6)


def test_the_comparison_sees_one_key_too_many() -> None:
    """The negative control: attention that ignores the documents' borders is told apart."""
    q, k, v, cu_seqlens, longest = sample([4, 9])
    joined = patch_attention(q, k, v, torch.tensor([0, 13], dtype=torch.int32), 13)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(joined, patch_attention_reference(q, k, v, cu_seqlens), rtol=1e-5, atol=1e-6)
    assert longest == 9


def test_no_documents() -> None:
    empty = torch.empty(0, 2, 8)
    assert patch_attention(empty, empty, empty, torch.zeros(1, dtype=torch.int32), 0).shape == (0, 2, 8)


def test_wrong_arguments_are_named() -> None:
    q, k, v, cu_seqlens, longest = sample([3, 4])
    bad = {
        r"q: expected shape \[P, H, d\]": (q[0], k, v, cu_seqlens),
        "k: expected dtype float32, got float64": (q, k.double(), v, cu_seqlens),
        r"v: expected shape \[7, 3, 8\]": (q, k, v[:5], cu_seqlens),
        "cu_seqlens: expected dtype int32, got int64": (q, k, v, cu_seqlens.long()),
        "expected device cpu": (q, k.to("meta"), v, cu_seqlens),
    }
    for message, arguments in bad.items():
        with pytest.raises((TypeError, ValueError), match=message):
            patch_attention(*arguments, longest)
