"""bias_gelu: values, gradients, registration, and what it refuses."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bgpt_fast import _C
from bgpt_fast.kernels.bias_gelu.op import bias_gelu, bias_gelu_backward

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALVES = (torch.bfloat16, torch.float16)
DTYPES = [(dtype, dtype) for dtype in (torch.float32, *HALVES)] + [(half, torch.float32) for half in HALVES]
# None, one of everything, around 16, more rows than a piece of the CPU's, widths that are no power of two.
SHAPES = [(0, 16), (16, 0), (1, 1), (1, 3072), (15, 33), (17, 257), (33, 192), (200, 24)]


def sample(N: int, F_: int, dtypes=(torch.float64,) * 2, seed: int = 0) -> list[Tensor]:  # type: ignore[no-untyped-def]
    """x over the whole bend of GELU, and bias."""
    generator = torch.Generator().manual_seed(N * 10_000 + F_ + seed)
    tensors = [3 * torch.randn(N, F_, generator=generator), torch.randn(F_, generator=generator)]
    return [t.to(DEVICE, kind).requires_grad_() for t, kind in zip(tensors, dtypes, strict=True)]


def plain(x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias.to(x.dtype), approximate="tanh")


def assert_as_exact(ours: list[Tensor], same: list[Tensor], exact: list[Tensor]) -> None:
    """Error at most twice that of the plain version, and 4 ulps of the largest value."""
    for got, plain_one, want in zip(ours, same, exact, strict=True):
        assert got.shape == want.shape
        if got.numel():
            floor = 4 * torch.finfo(got.dtype).eps * max(1.0, float(want.detach().abs().max()))
            assert (got - want).abs().max() <= 2 * (plain_one - want).abs().max() + floor


def check(N: int, F_: int, dtypes: tuple[torch.dtype, ...], seed: int = 0) -> None:
    x, bias = sample(N, F_, dtypes, seed)
    dy = torch.randn(N, F_, generator=torch.Generator().manual_seed(1)).to(DEVICE, x.dtype)
    results = []
    for op, wide in ((bias_gelu, False), (plain, False), (plain, True)):
        inputs = [t.detach().to(torch.float64 if wide else t.dtype).requires_grad_() for t in (x, bias)]
        y = op(*inputs)
        results.append([y, *torch.autograd.grad(y, inputs, dy.to(y.dtype))])
    assert [t.dtype for t in results[0]] == [x.dtype, x.dtype, bias.dtype]
    assert_as_exact(*results)
    door = bias_gelu_backward(dy, x.detach(), bias.detach())
    assert all(torch.equal(a, b) for a, b in zip(door, results[0][1:], strict=True))


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_values_and_gradients(dtypes: tuple[torch.dtype, ...]) -> None:
    for shape in SHAPES:
        check(*shape, dtypes)


@pytest.mark.slow
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_drawn_shapes(dtypes: tuple[torch.dtype, ...]) -> None:
    stream = random.Random(str(dtypes))
    for seed in range(200):
        check(stream.choice([1, 15, 16, 17, 257, stream.randrange(300)]), stream.randrange(1, 300), dtypes, seed)


def test_the_bound_catches_the_other_gelu() -> None:
    x, bias = sample(16, 24, DTYPES[0])
    with pytest.raises(AssertionError):
        assert_as_exact([F.gelu(x + bias)], [plain(x, bias)], [plain(x.double(), bias.double())])


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_the_last_rows_count_in_the_bias_gradient(half: torch.dtype) -> None:
    x, bias = torch.full((5000, 3), 20.0, device=DEVICE).to(half), torch.zeros(3, device=DEVICE).to(half)
    dbias = bias_gelu_backward(torch.ones_like(x), x, bias)[1]
    torch.testing.assert_close(dbias, torch.full_like(dbias, 5000), rtol=torch.finfo(half).eps, atol=0.0)


def layouts() -> list[list[Tensor]]:
    """x and bias in float64: empty, one of each, transposed, sliced, stride 0, and plain."""
    wide = sample(12, 10)[0].detach()
    views = [wide.t(), wide[::3, 2:9], wide[:, ::2], wide[:1].expand(6, 10), wide[:, :1].expand(12, 4)]
    return [
        *(sample(N, F_) for N, F_ in ((0, 4), (4, 0), (1, 1), (1, 5), (5, 1), (3, 4), (70, 2))),
        *([view.requires_grad_(), sample(1, view.shape[1])[1]] for view in views),
        [sample(6, 10)[0], torch.ones(1, dtype=torch.float64, device=DEVICE).expand(10).requires_grad_()],
    ]


@pytest.mark.parametrize("tensors", layouts(), ids=lambda t: str([tuple(t[0].shape), t[0].stride()]))
def test_gradcheck(tensors: list[Tensor]) -> None:
    # gradcheck wants leaves without overlap.
    leaves = tuple((t.detach().clone() if 0 in t.stride() else t.detach()).requires_grad_() for t in tensors)
    assert torch.autograd.gradcheck(bias_gelu, leaves, fast_mode=True)


@pytest.mark.parametrize("tensors", layouts(), ids=lambda t: str([tuple(t[0].shape), t[0].stride()]))
def test_registration(tensors: list[Tensor]) -> None:
    torch.library.opcheck(torch.ops.bgpt_fast.bias_gelu.default, tuple(tensors))


def test_no_second_derivative() -> None:
    x, bias = sample(3, 4)
    (dx,) = torch.autograd.grad(bias_gelu(x, bias).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="bias_gelu_backward cannot be differentiated"):
        dx.sum().backward()


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_strides_are_followed(dtypes: tuple[torch.dtype, ...]) -> None:
    wide, bias = (t.detach() for t in sample(70, 48, dtypes))
    for x in (wide[:, ::2], wide[::3, 5:29], wide.t()[:24].t(), wide[:1, :24].expand(70, 24)):
        dy = torch.ones(1, 1, dtype=x.dtype, device=DEVICE).expand(x.shape)
        assert torch.equal(bias_gelu(x, bias[::2]), bias_gelu(x.contiguous(), bias[::2].contiguous()))
        strided, dense = (
            bias_gelu_backward(dy, x, bias[:24]),
            bias_gelu_backward(dy.contiguous(), x.contiguous(), bias[:24]),
        )
        assert all(torch.equal(a, b) for a, b in zip(strided, dense, strict=True))


def test_repeated_runs_are_bit_equal() -> None:
    x, bias = (t.detach() for t in sample(200, 24, (torch.bfloat16, torch.float32)))
    dy = torch.ones_like(x)
    first = [bias_gelu(x, bias), *bias_gelu_backward(dy, x, bias)]
    for _ in range(100):
        again = [bias_gelu(x, bias), *bias_gelu_backward(dy, x, bias)]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], bias_gelu(x + 1, bias))


def test_a_row_knows_no_other() -> None:
    for dtypes in DTYPES:
        x, bias = (t.detach() for t in sample(70, 24, dtypes))
        y, dx = bias_gelu(x, bias), bias_gelu_backward(torch.ones_like(x), x, bias)[0]
        assert torch.equal(bias_gelu(x[3:4], bias), y[3:4])
        x[3] = torch.nan
        x[5] = torch.inf
        others = [row for row in range(70) if row not in (3, 5)]
        assert torch.equal(bias_gelu(x, bias)[others], y[others])
        assert torch.equal(bias_gelu_backward(torch.ones_like(x), x, bias)[0][others], dx[others])
        assert bias_gelu(x, bias)[3].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_extreme_values_as_in_plain_torch(dtype: torch.dtype) -> None:
    values = [0.0, -0.0, 1e4, -1e4, 30.0, -30.0, torch.inf, -torch.inf, torch.nan]
    x = torch.tensor([values], device=DEVICE).to(dtype)
    bias = torch.zeros(len(values), device=DEVICE, dtype=dtype)
    want = plain(x.float(), bias.float()).to(dtype)
    torch.testing.assert_close(bias_gelu(x, bias), want, equal_nan=True)
    wide = x.float().requires_grad_()
    (want,) = torch.autograd.grad(plain(wide, bias.float()).sum(), wide)
    got = bias_gelu_backward(torch.ones_like(x), x, bias)[0]
    torch.testing.assert_close(got, want.to(dtype), equal_nan=True)


def test_wrong_arguments_are_named() -> None:
    x, bias = (t.detach() for t in sample(3, 4, DTYPES[0]))
    bad = [
        ("x: expected a torch.Tensor, got list", ([1.0], bias)),
        ("x: expected dtype float32 or .*, got int64", (x.long(), bias)),
        (r"x: expected shape \[N, F\], got \[4\]", (x[0], bias)),
        ("bias: expected dtype float32, got bfloat16", (x, bias.bfloat16())),
        ("bias: expected dtype bfloat16 or float32, got float16", (x.bfloat16(), bias.half())),
        (r"bias: expected shape \[4\], got \[3\]", (x, bias[:3])),
        ("bias: expected device", (x, bias.to("meta"))),
    ]
    for message, arguments in bad:
        with pytest.raises((TypeError, ValueError), match=f"bias_gelu: {message}"):
            bias_gelu(*arguments)  # type: ignore[arg-type]
        with pytest.raises((TypeError, ValueError), match=f"bias_gelu_backward: {message}"):
            bias_gelu_backward(x, *arguments)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="bias_gelu_backward: dy: expected dtype float32, got float64"):
        bias_gelu_backward(x.double(), x, bias)
    with pytest.raises(ValueError, match=r"bias_gelu_backward: dy: expected shape \[3, 4\], got \[2, 4\]"):
        bias_gelu_backward(x[:2], x, bias)
    assert bias_gelu(x, bias).isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="needs an NVIDIA GPU")
def test_the_gpu_has_kernels_of_its_own() -> None:
    for op in ("bias_gelu", "bias_gelu_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"bgpt_fast::{op}", "CUDA")
    for dtypes in DTYPES:
        check(33, 3072, dtypes)
    x, bias = sample(33, 3072, DTYPES[1])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        bias_gelu(x, bias).sum().backward()
        torch.cuda.synchronize()
    names = {event.key for event in profile.key_averages()}
    assert {"_bias_gelu_fwd_kernel", "_bias_gelu_bwd_kernel", "_bias_gelu_bwd_sum_kernel"} <= names


@pytest.mark.skipif(DEVICE != "cpu", reason="of the CPU's versions")
def test_every_instruction_set_and_number_of_threads_gives_the_same_bits() -> None:
    for N, F_ in ((1, 1), (3, 17), (64, 33), (65, 100), (300, 257)):
        x, bias = (t.detach() for t in sample(N, F_, DTYPES[0]))
        dy = torch.randn(N, F_, generator=torch.Generator().manual_seed(2))
        found = []
        for isa in (0, 1, 2):
            for threads in (1, 3):
                y, dx, dbias = torch.empty(N, F_), torch.empty(N, F_), torch.empty(F_)
                shape = (N, F_, threads, isa)
                _C.bias_gelu(x.data_ptr(), bias.data_ptr(), y.data_ptr(), *shape)
                pointers = [t.data_ptr() for t in (dy, x, bias, dx, dbias)]
                _C.bias_gelu_backward(*pointers, *shape)
                found.append((y, dx, dbias))
        assert all(torch.equal(a, b) for one in found[1:] for a, b in zip(one, found[0], strict=True))
        # An element depends on its x and bias alone.
        alone = bias_gelu(x[N // 2 : N // 2 + 1], bias)
        assert torch.equal(alone, found[0][0][N // 2 : N // 2 + 1])


def test_far_from_the_bend() -> None:
    x = torch.tensor([[-1e30, -1e4, -100.0, -12.0, -9.5, 9.5, 100.0, 1e4, 1e18, torch.nan]], device=DEVICE)
    zero = torch.zeros(10, device=DEVICE)
    y, (dx, _) = bias_gelu(x, zero), bias_gelu_backward(torch.ones_like(x), x, zero)
    assert torch.equal(y[0, 5:9], x[0, 5:9])
    assert (y[0, :5].abs() < 1e-18).all()
    assert y[0, 9].isnan()
    torch.testing.assert_close(dx[0, 5:9], torch.ones_like(dx[0, 5:9]), rtol=0.0, atol=1e-6)
    assert (dx[0, :5].abs() < 1e-18).all()
    assert dx[0, 9].isnan()
