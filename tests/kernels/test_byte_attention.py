"""byte_attention, alone and projected: values, gradients, registration, and what they refuse."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bgpt_fast.kernels.byte_attention.op import byte_attention, byte_attention_projected
from bgpt_fast.kernels.byte_attention.reference import byte_attention_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
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


def assert_error_at_most_twice_the_plain_versions(
    inputs: list[Tensor], ours: Callable[..., Tensor], plain: Callable[..., Tensor], terms: list[float] | None = None
) -> None:
    """Of the values and of each gradient, beside 4 ulps of the largest, or of the largest sum of its terms' sizes."""
    results = []
    for function, dtype in ((ours, None), (plain, None), (plain, torch.float64)):
        leaves = [t.detach().to(DEVICE, dtype or t.dtype).requires_grad_() for t in inputs]
        y = function(*leaves)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(inputs[0].dtype).to(y)
        results.append([y, *torch.autograd.grad(y, leaves, dy)])
    for i, (got, same, want) in enumerate(zip(*results, strict=True)):
        assert (got.shape, got.dtype) == (want.shape, same.dtype)
        assert got.isfinite().all()
        if got.numel():
            floor = 4 * torch.finfo(got.dtype).eps * (terms[i] if terms else want.detach().abs().max())
            assert (got - want).abs().max() <= 2 * (same - want).abs().max() + floor


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_at_most_twice_the_plain_versions(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    assert_error_at_most_twice_the_plain_versions([sample(shape, dtype)], byte_attention, byte_attention_reference)


def test_the_bound_catches_a_wrong_scale() -> None:
    with pytest.raises(AssertionError):
        assert_error_at_most_twice_the_plain_versions(
            [sample(SHAPES[0])], lambda qkv: byte_attention(qkv * 1.001), byte_attention_reference
        )


def drawn_shape(stream: random.Random) -> tuple[int, int, int, int]:
    S = stream.choice([1, 8, 15, 16, 17, stream.randrange(1, 65)])
    return (
        stream.choice([0, 1, 7, 9, 17]),
        S,
        stream.randrange(1, 6),
        stream.choice([1, 16, 17, stream.randrange(1, 70)]),
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_drawn_shapes(dtype: torch.dtype) -> None:
    stream = random.Random(str(dtype))
    for _ in range(200):
        shape = drawn_shape(stream)
        assert_error_at_most_twice_the_plain_versions([sample(shape, dtype)], byte_attention, byte_attention_reference)


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


def regimes(dtype: torch.dtype) -> dict[str, Tensor]:
    """Small samples of each layout."""
    return {
        "plain": sample((2, 3, 2, 4), dtype),
        "empty": sample((0, 4, 2, 3), dtype),
        "one of everything": sample((1, 1, 1, 1), dtype),
        "one patch": sample((1, 5, 2, 3), dtype),
        "one byte": sample((3, 1, 2, 3), dtype),
        "one head": sample((2, 4, 1, 5), dtype),
        "one channel": sample((2, 4, 3, 1), dtype),
        "more than 16 bytes": sample((1, 17, 1, 2), dtype),
        "patches and bytes transposed": sample((4, 2, 2, 3), dtype).detach().transpose(0, 1).requires_grad_(),
        "heads and channels transposed": sample((2, 3, 4, 2), dtype).detach().transpose(3, 4).requires_grad_(),
        "every second patch": sample((5, 3, 2, 3), dtype).detach()[::2].requires_grad_(),
        "later heads": sample((2, 3, 4, 3), dtype).detach()[:, :, :, 2:].requires_grad_(),
        "stride 0": sample((1, 3, 2, 3), dtype).detach().expand(3, -1, -1, -1, -1).requires_grad_(),
    }


REGIMES = list(regimes(torch.float64))


@pytest.mark.parametrize("name", REGIMES)
def test_gradcheck(name: str) -> None:
    qkv = regimes(torch.float64)[name]
    torch.testing.assert_close(byte_attention(qkv), byte_attention_reference(qkv))
    if name == "stride 0":  # gradcheck writes into its inputs: what lies on itself is made inside
        assert torch.autograd.gradcheck(
            lambda one: byte_attention(one.expand(3, -1, -1, -1, -1)),
            (qkv[:1].detach().requires_grad_(),),
            fast_mode=True,
        )
    else:
        assert torch.autograd.gradcheck(byte_attention, (qkv,), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", REGIMES)
def test_registration(name: str, dtype: torch.dtype) -> None:
    torch.library.opcheck(torch.ops.bgpt_fast.byte_attention.default, (regimes(dtype)[name].to(DEVICE),))


def test_bit_equal_over_100_runs() -> None:
    qkv = sample((33, 16, 2, 16), torch.bfloat16).detach().to(DEVICE).requires_grad_()
    y = byte_attention(qkv)
    (dqkv,) = torch.autograd.grad(y.float().square().sum(), qkv)
    for _ in range(100):
        again = byte_attention(qkv)
        assert torch.equal(again, y)
        assert torch.equal(torch.autograd.grad(again.float().square().sum(), qkv)[0], dqkv)


def test_a_second_derivative_is_refused() -> None:
    qkv = sample((2, 3, 2, 4))
    (dqkv,) = torch.autograd.grad(byte_attention(qkv).square().sum(), qkv, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated"):
        dqkv.sum().backward()


def test_wrong_arguments_are_named() -> None:
    qkv = sample((2, 4, 2, 8)).detach()
    bad = {
        "expected a torch.Tensor, got NoneType": None,
        "expected dtype float32 or bfloat16 or float16 or float64, got int64": qkv.long(),
        r"expected shape \[T, S, 3, H, d\], got \[2, 4, 3, 2\]": qkv[..., 0],
        r"got \[2, 4, 2, 2, 8\]": qkv[:, :, :2],
        "expected S, H, d of at least 1": qkv[..., :0],
        r"expected shape \[T, S, 3, H, d\], got \[1, 2, 4, 3, 2, 8\]": qkv[None],
        "expected dtype .*, got complex64": qkv.to(torch.complex64),
    }
    for message, argument in bad.items():
        with pytest.raises((TypeError, ValueError), match=message):
            byte_attention(argument)
    assert byte_attention(qkv).isfinite().all()


# Of the projected op.
PROJECTED = [(0, 16, 2, 8), (1, 1, 1, 1), (9, 16, 2, 64), (5, 8, 3, 32), (3, 17, 2, 5), (2, 65, 1, 8)]


def projected_sample(shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, weight, bias."""
    T, S, H, d = shape
    generator = torch.Generator().manual_seed(sum(shape))
    x, weight, bias = (torch.randn(s, generator=generator) for s in ((T, S, H * d), (H * d, 3 * H * d), (3 * H * d,)))
    return [t.to(dtype).to(DEVICE) for t in (x, weight / math.sqrt(H * d), bias)]


def composed(x: Tensor, weight: Tensor, bias: Tensor, heads: int) -> Tensor:
    return byte_attention_reference(F.linear(x, weight.t(), bias).unflatten(2, (3, heads, x.shape[2] // heads)))


def gradient_terms(x: Tensor, weight: Tensor, bias: Tensor, heads: int) -> list[float]:
    """The largest result, and for the gradients of x, weight and bias the largest sum of their terms' sizes."""
    if x.numel() == 0:
        return [0.0] * 4
    x, weight, bias = x.double(), weight.double(), bias.double()
    qkv = F.linear(x, weight.t(), bias).unflatten(2, (3, heads, x.shape[2] // heads))
    y = byte_attention_reference(qkv)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y).abs()
    # The backward with no minus in it: where a patch's v are alike, its dscores cancel.
    S = x.shape[1]
    q, k, v = qkv.unbind(2)
    scores = torch.einsum("tihd,tjhd->thij", q, k) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(torch.ones(S, S, dtype=torch.bool, device=x.device).triu(1), -torch.inf).softmax(-1)
    dweights = torch.einsum("tihd,tjhd->thij", dy, v.abs())
    dscores = weights * (dweights + (weights * dweights).sum(-1, keepdim=True)) / math.sqrt(q.shape[-1])
    dq = torch.einsum("thij,tjhd->tihd", dscores, k.abs())
    dk = torch.einsum("thij,tihd->tjhd", dscores, q.abs())
    dv = torch.einsum("thij,tihd->tjhd", weights, dy)
    rows = torch.stack([dq, dk, dv], dim=2).flatten(2).flatten(0, 1)
    sums = (y.abs(), rows @ weight.abs().t(), x.abs().flatten(0, 1).t() @ rows, rows.sum(0))
    return [float(t.max()) for t in sums]


def check_projected(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    """Without gradients, where it is an op of its own, and with them."""
    inputs, H = projected_sample(shape, dtype), shape[2]
    ours, same, want = (
        f(*t, H)
        for f, t in ((byte_attention_projected, inputs), (composed, inputs), (composed, [t.double() for t in inputs]))
    )
    assert (ours.shape, ours.dtype) == (shape, dtype)
    assert ours.is_contiguous()
    if ours.numel():
        floor = 4 * torch.finfo(dtype).eps * want.abs().max()
        assert (ours - want).abs().max() <= 2 * (same - want).abs().max() + floor
    assert_error_at_most_twice_the_plain_versions(
        inputs, lambda *t: byte_attention_projected(*t, H), lambda *t: composed(*t, H), gradient_terms(*inputs, H)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", PROJECTED, ids=str)
def test_projected_values_and_gradients(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    check_projected(shape, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_projected_drawn_shapes(dtype: torch.dtype) -> None:
    stream = random.Random(str(dtype))
    for _ in range(200):
        check_projected(drawn_shape(stream), dtype)


def test_the_projected_bound_catches_a_wrong_gradient() -> None:
    inputs = projected_sample((9, 16, 2, 64))

    def wrong(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return byte_attention_projected(x + 0.001 * (x - x.detach()), weight, bias, 2)

    with pytest.raises(AssertionError):
        assert_error_at_most_twice_the_plain_versions(
            inputs, wrong, lambda *t: composed(*t, 2), gradient_terms(*inputs, 2)
        )


def test_projected_gives_the_gradients_that_are_asked_for() -> None:
    inputs = projected_sample((3, 4, 2, 8))
    y = byte_attention_projected(*inputs, 2)
    for one in range(3):
        leaves = [t.clone().requires_grad_(i == one) for i, t in enumerate(inputs)]
        torch.testing.assert_close(byte_attention_projected(*leaves, 2), y)
        (got,) = torch.autograd.grad(byte_attention_projected(*leaves, 2).square().sum(), leaves[one])
        (want,) = torch.autograd.grad(composed(*leaves, 2).square().sum(), leaves[one])
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            assert not byte_attention_projected(*leaves, 2).requires_grad
    with pytest.raises(RuntimeError, match="has no gradient"):
        torch.ops.bgpt_fast.byte_attention_projected(*leaves, 2).sum().backward()


def test_projected_takes_a_float32_bias() -> None:
    x, weight, bias = projected_sample((3, 4, 2, 8), torch.bfloat16)
    wide = bias.float()
    assert torch.equal(byte_attention_projected(x, weight, wide, 2), byte_attention_projected(x, weight, bias, 2))
    wide.requires_grad_()
    (dbias,) = torch.autograd.grad(byte_attention_projected(x, weight, wide, 2).sum(), wide)
    assert dbias.dtype == torch.float32


def projected_regimes(dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor, Tensor, int]]:
    plain, wide = projected_sample((4, 3, 2, 3), dtype), projected_sample((4, 3, 4, 3), dtype)
    x, weight, bias = plain
    samples = {
        "plain": plain,
        "empty": projected_sample((0, 4, 2, 3), dtype),
        "one of everything": projected_sample((1, 1, 2, 1), dtype),
        "one patch": projected_sample((1, 5, 2, 3), dtype),
        "one byte": projected_sample((3, 1, 2, 3), dtype),
        "one channel": projected_sample((2, 4, 2, 1), dtype),
        "more than 16 bytes": projected_sample((1, 17, 2, 2), dtype),
        "x transposed": [x.transpose(0, 1), weight, bias],
        "x sliced": [wide[0][::2, :, ::2], weight, bias],
        "x of stride 0": [x[:1].expand(3, -1, -1), weight, bias],
        "weight transposed": [x, weight.t().contiguous().t(), bias],
        "weight sliced": [x, wide[1][::2, : 3 * 6], bias],
        "bias of stride 0": [x, weight, bias[:1].expand(18)],
    }
    return {name: (*tensors, 2) for name, tensors in samples.items()}


@pytest.mark.parametrize("name", list(projected_regimes(torch.float64)))
def test_projected_registration_and_gradcheck(name: str) -> None:
    for dtype in (torch.float32, torch.float64):
        arguments = projected_regimes(dtype)[name]
        torch.testing.assert_close(byte_attention_projected(*arguments), composed(*arguments))
        torch.library.opcheck(torch.ops.bgpt_fast.byte_attention_projected.default, arguments)
    # gradcheck writes into its inputs: what lies on itself is made inside.
    shapes = [t.shape for t in arguments[:3]]
    leaves = [(t[:1] if t.stride(0) == 0 else t).detach().requires_grad_() for t in arguments[:3]]
    assert torch.autograd.gradcheck(
        lambda *t: byte_attention_projected(*(one.expand(shape) for one, shape in zip(t, shapes, strict=True)), 2),
        leaves,
        fast_mode=True,
    )


def test_projected_is_bit_equal_over_100_runs() -> None:
    inputs = projected_sample((9, 16, 2, 16), torch.bfloat16)
    y = byte_attention_projected(*inputs, 2)
    assert all(torch.equal(byte_attention_projected(*inputs, 2), y) for _ in range(100))


def test_projected_wrong_arguments_are_named() -> None:
    x, weight, bias = projected_sample((2, 4, 2, 8))
    bad = {
        "x: expected a torch.Tensor, got NoneType": (None, weight, bias, 2),
        "x: expected dtype .* got int64": (x.long(), weight, bias, 2),
        r"x: expected shape \[T, S, D\], got \[2, 4\]": (x[..., 0], weight, bias, 2),
        "x: expected S and D of at least 1": (x[:, :0], weight, bias, 2),
        "weight: expected dtype float32, got float64": (x, weight.double(), bias, 2),
        r"weight: expected shape \[16, 48\], got \[48, 16\]": (x, weight.t(), bias, 2),
        "weight: expected device": (x, weight.to("meta"), bias, 2),
        "bias: expected dtype float32, got bfloat16": (x, weight, bias.bfloat16(), 2),
        r"bias: expected shape \[48\], got \[47\]": (x, weight, bias[1:], 2),
        "bias: expected device": (x, weight, bias.to("meta"), 2),
        "heads: expected an int, got float": (x, weight, bias, 2.0),
        "heads: expected an int, got bool": (x, weight, bias, True),
        "heads: expected a divisor of D = 16, got 3": (x, weight, bias, 3),
        "heads: expected a divisor of D = 16, got 0": (x, weight, bias, 0),
        "heads: expected a divisor of D = 16, got -2": (x, weight, bias, -2),
    }
    for message, arguments in bad.items():
        with pytest.raises((TypeError, ValueError), match=message):
            byte_attention_projected(*arguments)
    assert byte_attention_projected(x, weight, bias, 2).isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_cuda_kernels_of_their_own(dtype: torch.dtype) -> None:
    for op in ("byte_attention", "byte_attention_backward", "byte_attention_projected"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"bgpt_fast::{op}", "CUDA")
    for shape in ((9, 16, 12, 64), (9, 16, 4, 32), (9, 16, 3, 16), (3, 70, 2, 8), (3, 16, 1, 200)):
        assert_error_at_most_twice_the_plain_versions([sample(shape, dtype)], byte_attention, byte_attention_reference)
        check_projected(shape, dtype)


def test_the_cuda_kernels_are_registered_without_a_gpu() -> None:
    for op in ("byte_attention", "byte_attention_backward", "byte_attention_projected"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"bgpt_fast::{op}", "CUDA")
    assert not torch._C._dispatch_has_kernel_for_dispatch_key("bgpt_fast::byte_attention", "XPU")
