"""linear_cross_entropy: values, gradients, registration, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import bgpt_fast.kernels.linear_cross_entropy.op as room
from bgpt_fast.kernels.linear_cross_entropy.op import linear_cross_entropy
from bgpt_fast.kernels.linear_cross_entropy.reference import linear_cross_entropy_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# (N, D, V): bGPT's V, the V around powers of two, the smallest and largest, one of everything, and no rows.
SHAPES = [
    (33, 48, 257),
    (16, 64, 256),
    (17, 33, 258),
    (15, 7, 17),
    (5, 3, 16),
    (9, 5, 2),
    (4, 20, 512),
    (300, 16, 33),
    (1, 1, 1),
    (1, 130, 257),
    (0, 8, 257),
    (64, 1, 9),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def sample(
    N: int, D: int, V: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight (which ask for gradients), targets and dnats; the logits have a standard deviation of 2."""
    stream = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(N, D, generator=stream), torch.randn(V, D, generator=stream) * 2 / D**0.5
    targets, dnats = torch.randint(V, (N,), generator=stream), torch.randn(N, generator=stream)
    x, weight = (t.to(DEVICE, dtype).requires_grad_() for t in (x, weight))
    return x, weight, targets.to(DEVICE), dnats.to(DEVICE)


def plain(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """As one writes it in torch; above float32 only where the inputs are."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.cross_entropy(F.linear(x, weight).to(wide), targets.long(), reduction="none")


def all_of(function, x: Tensor, weight: Tensor, targets: Tensor, dnats: Tensor) -> list[Tensor]:  # type: ignore[no-untyped-def]
    """nats, dx, dweight in float64."""
    nats = function(x, weight, targets)
    return [t.detach().double() for t in (nats, *torch.autograd.grad(nats, (x, weight), dnats.to(nats.dtype)))]


def assert_accurate(x: Tensor, weight: Tensor, targets: Tensor, dnats: Tensor) -> None:
    """Errors to float64 of at most twice those of plain torch and a floor.

    The floor is 4 ulp of the largest value, in float32 of the logits for nats. For gradients it grows by a float32 ulp
    of the largest logit, times the largest gradient: the exponent's, in exp(logit − lse).
    """
    exact = [t.detach().double().requires_grad_() for t in (x, weight)]
    wants = all_of(plain, *exact, targets, dnats)
    ours, peers = all_of(linear_cross_entropy, x, weight, targets, dnats), all_of(plain, x, weight, targets, dnats)
    logits = (exact[0] @ exact[1].t()).detach()
    for name, got, peer, want in zip(("nats", "dx", "dweight"), ours, peers, wants, strict=True):
        assert got.shape == want.shape
        if not want.numel():
            continue
        exponent = torch.finfo(torch.float32).eps * (logits.abs().max() if len(x) else 0)
        floor = 4 * exponent if name == "nats" else (4 * torch.finfo(x.dtype).eps + exponent) * want.abs().max()
        error, allowed = (got - want).abs().max(), 2 * (peer - want).abs().max() + floor
        assert error <= allowed, f"{name} of {list(x.shape)}, V = {len(weight)}: {error} > {allowed}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    assert_accurate(*sample(*shape, dtype))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_drawn_shapes(dtype: torch.dtype) -> None:
    stream = torch.Generator().manual_seed(0)
    edges = [1, 2, 15, 16, 17, 31, 33, 127, 129, 255, 256, 257, 258, 511, 512]
    for seed in range(200):
        N, D = (int(torch.randint(low, 90, (), generator=stream)) for low in (0, 1))
        V = edges[seed % len(edges)] if seed % 2 else int(torch.randint(1, 513, (), generator=stream))
        assert_accurate(*sample(N, D, V, dtype, seed))


def test_a_missing_token_is_noticed() -> None:
    """The negative control: the cross-entropy of the first 256 tokens alone does not pass for that of 257."""
    x, weight, targets, _ = sample(33, 48, 257)
    targets.clamp_(max=255)
    right = plain(x.double(), weight.double(), targets)
    torch.testing.assert_close(linear_cross_entropy(x, weight, targets).double(), right, rtol=1e-5, atol=1e-5)
    short = linear_cross_entropy(x, weight[:256], targets)
    assert (short - right).abs().max() > 1e-3


def test_the_reference_is_plain_torch() -> None:
    x, weight, targets, dnats = (t.double() if t.is_floating_point() else t for t in sample(33, 48, 257))
    nats, lse = linear_cross_entropy_reference(x, weight, targets)
    torch.testing.assert_close(nats, plain(x, weight, targets))
    torch.testing.assert_close(lse, (x @ weight.t()).logsumexp(1))
    wants = torch.autograd.grad(plain(x, weight, targets), (x, weight), dnats)
    ours = torch.autograd.grad(linear_cross_entropy(x, weight, targets), (x, weight), dnats)
    again = room.linear_cross_entropy_backward_reference(dnats, x, weight, targets, lse)
    torch.testing.assert_close(ours, wants)
    torch.testing.assert_close(again, wants)


@pytest.mark.skipif(DEVICE == "cuda", reason="of the CPU's chunks of rows")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_chunks_of_rows(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = sample(70, 24, 257, dtype)
    whole = all_of(linear_cross_entropy, *arguments)
    monkeypatch.setattr(room, "_CPU_ROWS", 16)
    assert_accurate(*arguments)
    chunked = all_of(linear_cross_entropy, *arguments)
    eps = torch.finfo(dtype).eps
    for ours, want in zip(chunked, whole, strict=True):
        torch.testing.assert_close(ours, want, rtol=4 * eps, atol=8 * eps)


def test_int16_targets() -> None:
    x, weight, targets, dnats = sample(33, 16, 257)
    long, short = (all_of(linear_cross_entropy, x, weight, t, dnats) for t in (targets, targets.short()))
    assert all(torch.equal(a, b) for a, b in zip(long, short, strict=True))


def test_any_strides() -> None:
    x, weight, targets, dnats = sample(18, 20, 257)
    want = all_of(linear_cross_entropy, x, weight, targets, dnats)
    wide = torch.cat([x, x], 1).detach()[:, :20].requires_grad_()
    apart = torch.stack([targets, targets], 1)[:, 0]
    column = torch.stack([dnats, dnats], 1)[:, 0]
    others = [
        all_of(linear_cross_entropy, x.detach().t().contiguous().t().requires_grad_(), weight, targets, dnats),
        all_of(linear_cross_entropy, x, weight.detach().t().contiguous().t().requires_grad_(), targets, dnats),
        all_of(linear_cross_entropy, wide, weight, apart, column),
    ]
    for other in others:
        for ours, expected in zip(other, want, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    row = x.detach()[:1].expand(18, 20).requires_grad_()
    same = linear_cross_entropy(row, weight, targets[:1].expand(18))
    torch.testing.assert_close(same, want[0][:1].float().expand(18))
    (dx,) = torch.autograd.grad(same.sum(), row)  # a gradient of stride 0
    torch.testing.assert_close(dx, dx[:1].expand(18, 20), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_logits(dtype: torch.dtype) -> None:
    x, weight, targets, dnats = sample(33, 8, 257, dtype)
    x, weight = ((t.detach() * 70).requires_grad_() for t in (x, weight))  # logits of about 1e4
    assert_accurate(x, weight, targets, dnats)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_in_its_row(value: float) -> None:
    x, weight, targets, dnats = sample(20, 8, 257)
    clean = all_of(linear_cross_entropy, x, weight, targets, dnats)
    with torch.no_grad():
        x[3, 5] = value
    nats, dx, _ = all_of(linear_cross_entropy, x, weight, targets, dnats)
    others = torch.arange(20) != 3
    assert not nats[3].isfinite()
    assert dx[3].isnan().all()
    assert torch.equal(nats[others], clean[0][others])
    assert torch.equal(dx[others], clean[1][others])


def test_infinite_logits_as_logsumexp() -> None:
    """Tokens of −inf count nothing, a token of +inf takes all, and a target of −inf costs +inf."""
    x, weight, targets, _ = sample(4, 1, 257)
    with torch.no_grad():
        x.fill_(1)
        weight[5], targets[0], targets[1:] = -torch.inf, 5, 256
    nats = linear_cross_entropy(x, weight, targets)
    assert nats[0] == torch.inf
    kept = torch.cat([weight[:5], weight[6:]])
    torch.testing.assert_close(nats[1:], linear_cross_entropy(x, kept, targets.clamp(max=255))[1:])
    with torch.no_grad():
        weight[256] = torch.inf
    nats = linear_cross_entropy(x, weight, targets)
    assert nats[0] == torch.inf
    assert nats[1:].isnan().all()


def test_bit_equal_100_times() -> None:
    arguments = sample(300, 64, 257, torch.bfloat16)
    first = all_of(linear_cross_entropy, *arguments)
    for _ in range(100):
        assert all(torch.equal(a, b) for a, b in zip(all_of(linear_cross_entropy, *arguments), first, strict=True))


@pytest.mark.parametrize("shape", [(5, 3, 4), (2, 2, 17), (1, 1, 1), (3, 4, 257), (0, 2, 3)], ids=str)
def test_gradcheck(shape: tuple[int, int, int]) -> None:
    x, weight, targets, _ = sample(*shape, torch.float64)
    fast = shape[2] == 257
    assert torch.autograd.gradcheck(
        lambda x, weight: linear_cross_entropy(x, weight, targets), (x, weight), fast_mode=fast
    )
    if shape[0] > 1:
        x, weight = (t.detach().t().contiguous().t().requires_grad_() for t in (x, weight))
        assert torch.autograd.gradcheck(
            lambda x, weight: linear_cross_entropy(x, weight, targets), (x, weight), fast_mode=fast
        )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_registration(shape: tuple[int, int, int]) -> None:
    x, weight, targets, dnats = sample(*shape)
    torch.library.opcheck(torch.ops.bgpt_fast.linear_cross_entropy.default, (x, weight, targets))
    lse = linear_cross_entropy_reference(x, weight, targets)[1]
    arguments = tuple(t.detach() for t in (dnats, x, weight, targets, lse))
    torch.library.opcheck(torch.ops.bgpt_fast.linear_cross_entropy_backward.default, arguments)


def test_only_nats_have_a_gradient() -> None:
    x, weight, targets, _ = sample(5, 3, 4)
    nats, lse = torch.ops.bgpt_fast.linear_cross_entropy(x, weight, targets)
    assert nats.requires_grad
    assert not lse.requires_grad
    (dx,) = torch.autograd.grad(nats.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="linear_cross_entropy_backward cannot be differentiated"):
        torch.autograd.grad(dx.sum(), x)


def test_one_gradient_alone() -> None:
    x, weight, targets, dnats = sample(5, 3, 4)
    both = torch.autograd.grad(linear_cross_entropy(x, weight, targets), (x, weight), dnats)
    (dx,) = torch.autograd.grad(linear_cross_entropy(x, weight.detach(), targets), x, dnats)
    (dweight,) = torch.autograd.grad(linear_cross_entropy(x.detach(), weight, targets), weight, dnats)
    torch.testing.assert_close((dx, dweight), both, rtol=0, atol=0)


def test_wrong_arguments_are_named() -> None:
    x, weight, targets, _ = (t.detach() for t in sample(6, 8, 257))
    bad = [
        ("x: expected a torch.Tensor, got NoneType", (None, weight, targets)),
        ("x: expected dtype float32 or bfloat16 or float16 or float64, got int64", (x.long(), weight, targets)),
        (r"x: expected shape \[N, D\], got \[6\]", (x[:, 0], weight, targets)),
        ("x: expected D of at least 1", (x[:, :0], weight[:, :0], targets)),
        ("weight: expected dtype float32, got bfloat16", (x, weight.bfloat16(), targets)),
        (r"weight: expected shape \[V, 8\], got \[8, 257\]", (x, weight.t(), targets)),
        (r"weight: expected V from 1 to 512, got \[0, 8\]", (x, weight[:0], targets)),
        (r"weight: expected V from 1 to 512, got \[514, 8\]", (x, torch.cat([weight, weight]), targets)),
        ("weight: expected device", (x, weight.to("meta"), targets)),
        ("targets: expected dtype int64 or int16, got int32", (x, weight, targets.int())),
        (r"targets: expected shape \[6\], got \[5\]", (x, weight, targets[:5])),
        ("targets: expected device", (x, weight, targets.to("meta"))),
    ]
    for message, arguments in bad:
        with pytest.raises((TypeError, ValueError), match=f"linear_cross_entropy: {message}"):
            linear_cross_entropy(*arguments)
    assert linear_cross_entropy(x, weight, targets).isfinite().all()


@pytest.mark.parametrize("token", [-1, 257, 2**14, 2**33])
def test_targets_that_are_no_tokens(token: int) -> None:
    x, weight, targets, _ = sample(6, 8, 257)
    targets[2] = token
    if DEVICE == "cuda":
        nats = linear_cross_entropy(x, weight, targets)
        assert nats.isnan().tolist() == [False, False, True, False, False, False]
        return
    with pytest.raises(ValueError, match=r"targets: expected tokens 0…256, got"):
        linear_cross_entropy(x, weight, targets)
    nats, _ = linear_cross_entropy_reference(x, weight, targets)
    assert nats.isnan().tolist() == [False, False, True, False, False, False]


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_on_a_gpu_by_its_own_kernels(dtype: torch.dtype) -> None:
    for op in ("linear_cross_entropy", "linear_cross_entropy_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"bgpt_fast::{op}", "CUDA")
    arguments = sample(1000, 768, 257, dtype)
    assert_accurate(*arguments)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        all_of(linear_cross_entropy, *arguments)
    names = {event.key for event in profile.key_averages()}
    for kernel in ("fwd", "bwd", "bwd_dweight"):
        assert f"_linear_cross_entropy_{kernel}_kernel" in names
