"""patch_attention: values and gradients within each document, and what it refuses."""

from __future__ import annotations

import functools
import random
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from support.ops import DrawnTests, results
from torch import Tensor

from bgpt_fast.kernels.patch_attention import op
from bgpt_fast.kernels.patch_attention.op import patch_attention
from bgpt_fast.kernels.patch_attention.reference import patch_attention_reference

LENGTHS = {
    "one": [1],
    "equal and short": [7, 7, 7],
    "mixed and short": [2, 31, 3, 17, 16, 64, 1, 8],
    "equal and long": [70, 70],
    "mixed and long": [2, 31, 3, 17, 16, 257, 1, 20, 5],
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


@pytest.mark.parametrize("name", ["mixed and short", "mixed and long"])
def test_bf16_error_at_most_twice_the_plain_versions(name: str) -> None:
    q, k, v, cu_seqlens, longest = sample(LENGTHS[name], heads=2, width=16)
    half = [t.detach().bfloat16().requires_grad_() for t in (q, k, v)]
    exact = [t.detach().double().requires_grad_() for t in half]
    plain = [t.detach().requires_grad_() for t in half]
    dy = torch.randn(q.shape, generator=torch.Generator().manual_seed(2)).bfloat16()
    expected = patch_attention_reference(*exact, cu_seqlens)
    expected_all = [expected, *torch.autograd.grad(expected, exact, dy.double())]
    by_plain = patch_attention_reference(*plain, cu_seqlens)
    of_plain = [by_plain, *torch.autograd.grad(by_plain, plain, dy)]
    y = patch_attention(*half, cu_seqlens, longest)
    ours = [y, *torch.autograd.grad(y, half, dy)]
    for got, same, want in zip(ours, of_plain, expected_all, strict=True):
        assert got.dtype == torch.bfloat16
        assert (got - want).abs().max() <= 2 * (same - want).abs().max() + 2**-8


class TestShortDocumentsAttention(DrawnTests):
    NAME = "short_documents_attention"
    function = staticmethod(patch_attention)
    plain = staticmethod(lambda q, k, v, cu_seqlens, longest: patch_attention_reference(q, k, v, cu_seqlens))
    wrong_version = staticmethod(lambda q, k, v, *lengths: patch_attention(q, k, 1.001 * v, *lengths))

    def draw(self, stream: random.Random) -> list[Any]:
        # Up to 64 patches a document the op takes them, with more SDPA.
        lengths = [stream.choice([1, 2, 7, 8, 15, 16, 17, 63, 64]) for _ in range(stream.randint(1, 8))]
        *qkv, cu_seqlens, longest = sample(lengths, stream.randint(1, 4), stream.choice([1, 4, 8, 16, 17, 64]))
        dtype = stream.choice([torch.float32, torch.float32, torch.bfloat16])
        return [*(tensor.detach().to(dtype) for tensor in qkv), cu_seqlens, longest]

    def results(self, function: Callable[..., Any], arguments: Sequence[Any]) -> list[Tensor]:
        return results(function, arguments).all


class TestDocumentsAttention(TestShortDocumentsAttention):
    NAME = "documents_attention"

    def draw(self, stream: random.Random) -> list[Any]:
        lengths = [65, *(stream.choice([1, 2, 16, 65, 70, 130]) for _ in range(stream.randint(0, 5)))]
        *qkv, cu_seqlens, longest = sample(lengths, stream.randint(1, 3), stream.choice([1, 8, 17, 64]))
        dtype = stream.choice([torch.float32, torch.bfloat16])
        return [*(tensor.detach().to(dtype) for tensor in qkv), cu_seqlens, longest]


@pytest.mark.parametrize("name", ["short_documents_attention", "documents_attention"])
def test_registration(name: str) -> None:
    for lengths in ([1], [7, 7], [2, 31, 3, 64]):
        q, k, v, cu_seqlens, longest = sample(lengths)
        torch.library.opcheck(getattr(torch.ops.bgpt_fast, name).default, (q, k, v, cu_seqlens, longest))


def test_gradcheck_of_short_documents_in_float64_goes_through_sdpa() -> None:
    q, k, v, cu_seqlens, longest = sample([3, 5], heads=1, width=4)
    inputs = tuple(t.detach().double().requires_grad_() for t in (q, k, v))
    assert torch.autograd.gradcheck(lambda *t: patch_attention(*t, cu_seqlens, longest), inputs, fast_mode=True)


def test_extreme_scores_and_nan_as_in_plain_torch() -> None:
    q, k, v, cu_seqlens, longest = sample([5, 9])
    with torch.no_grad():
        q *= 1e4
        v[0] = torch.inf
        k[7] = torch.nan
    y = patch_attention(q, k, v, cu_seqlens, longest)
    torch.testing.assert_close(y, patch_attention_reference(q, k, v, cu_seqlens), rtol=1e-5, atol=1e-6, equal_nan=True)


def test_the_comparison_sees_one_key_too_many() -> None:
    """The negative control: attention that ignores the documents' borders is told apart."""
    q, k, v, cu_seqlens, longest = sample([4, 9])
    joined = patch_attention(q, k, v, torch.tensor([0, 13], dtype=torch.int32), 13)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(joined, patch_attention_reference(q, k, v, cu_seqlens), rtol=1e-5, atol=1e-6)
    assert longest == 9


def test_groups_are_planned_once_and_shared() -> None:
    q, k, v, cu_seqlens, longest = sample([2, 31, 3, 17, 16, 257, 1, 20, 5])
    q, k, v = (tensor.detach().double() for tensor in (q, k, v))
    groups = op.DocumentGroups(cu_seqlens, longest, host_offsets=cu_seqlens.clone())
    first = groups.of(len(q))
    assert groups.of(len(q)) is first
    attend = functools.partial(patch_attention, q, k, v, cu_seqlens, longest, dropout=0.3, groups=groups)
    rows = torch.cat([group.unpadded(group.rows) for group in first])
    assert torch.equal(rows.sort().values, torch.arange(len(q)))
    torch.manual_seed(0)
    dropped = attend()
    torch.manual_seed(0)
    assert torch.equal(dropped, patch_attention(q, k, v, cu_seqlens, longest, dropout=0.3))
    assert not torch.equal(dropped, patch_attention_reference(q, k, v, cu_seqlens))
    with pytest.raises(ValueError, match="cu_seqlens: expected to rise from 0 to 351"):
        op.DocumentGroups(cu_seqlens, longest).of(len(q) - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lengths_that_do_not_fit_are_named(dtype: torch.dtype) -> None:
    q = torch.zeros(10, 2, 8, dtype=dtype)
    for ends, longest in (([0, 3, 5], 5), ([0, 5, 3, 10], 10), ([0, 12], 12), ([], 3), ([0, 10], 7)):
        with pytest.raises(ValueError, match="cu_seqlens: expected to rise from 0 to 10"):
            patch_attention(q, q, q, torch.tensor(ends, dtype=torch.int32), longest)
    some = torch.tensor([0, 0, 4, 4, 10], dtype=torch.int32)
    assert patch_attention(q, q, q, some, 6).isfinite().all(), "documents of no patches are passed over"


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
        "expected to rise from 0 to 7": (q, k, v, cu_seqlens + 1),
        r"expected H and d of at least 1": (q[..., :0], k[..., :0], v[..., :0], cu_seqlens),
        "q: expected dtype float32": (q.long(), k.long(), v.long(), cu_seqlens),
        "in steps of at most max_seqlen 4": (q, k, v, torch.tensor([0, 1, 7], dtype=torch.int32)),
    }
    for message, arguments in bad.items():
        with pytest.raises((TypeError, ValueError), match=message):
            patch_attention(*arguments, longest)


def flash_like(gives_lse: bool) -> Callable[..., object]:
    """A stand-in for a package's function: same arguments, computed by SDPA."""

    def flash_attn_varlen_func(
        q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, deterministic
    ):  # type: ignore[no-untyped-def]
        assert causal
        assert deterministic
        assert cu_seqlens_q is cu_seqlens_k
        assert max_seqlen_q == max_seqlen_k == int(cu_seqlens_q.diff().max())
        y = patch_attention_reference(q, k, v, cu_seqlens_q)
        return (y, y[..., 0]) if gives_lse else y

    return flash_attn_varlen_func


@pytest.mark.parametrize(
    ("installed", "generation", "chosen"),
    [
        ({"flash_attn_interface", "flash_attn.cute", "flash_attn"}, 9, "flash_attn_interface"),
        ({"flash_attn_interface", "flash_attn.cute", "flash_attn"}, 10, "flash_attn.cute"),
        ({"flash_attn_interface", "flash_attn.cute", "flash_attn"}, 8, "flash_attn"),
        ({"flash_attn"}, 9, "flash_attn"),
        ({"flash_attn_interface"}, 12, None),
        (set(), 9, None),
    ],
)
def test_the_best_installed_flash_attention_is_taken(
    installed: set[str], generation: int, chosen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = {}
    for name in ("flash_attn_interface", "flash_attn.cute", "flash_attn"):
        modules[name] = types.SimpleNamespace(flash_attn_varlen_func=flash_like(gives_lse=name == "flash_attn.cute"))
        monkeypatch.setitem(sys.modules, name, modules[name] if name in installed else None)
    op._flash_package.cache_clear()
    try:
        package = op._flash_package(generation)
    finally:
        op._flash_package.cache_clear()
    assert package is (None if chosen is None else modules[chosen].flash_attn_varlen_func)


@pytest.mark.parametrize("gives_lse", [False, True])
def test_a_flash_attention_package_is_called_as_it_wants(gives_lse: bool) -> None:
    q, k, v, cu_seqlens, max_seqlen = sample([5, 1, 17], 2, 8)
    y = op._package_flash(flash_like(gives_lse), q, k, v, cu_seqlens, max_seqlen)
    torch.testing.assert_close(y, patch_attention(q, k, v, cu_seqlens, max_seqlen), rtol=1e-5, atol=1e-6)
