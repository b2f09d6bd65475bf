"""layer_norm and add_layer_norm: values, gradients, dropout, registration, and what they refuse."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bgpt_fast.kernels.layer_norm.op import add_layer_norm, layer_norm
from bgpt_fast.kernels.layer_norm.reference import dropout_words

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALVES = (torch.bfloat16, torch.float16)
# (x, weights, residual): all of one dtype, and half-precision activations over float32 weights or residuals.
DTYPES = [(dtype, dtype, dtype) for dtype in (torch.float32, *HALVES)]
DTYPES += [(half, torch.float32, residual) for half in HALVES for residual in (half, torch.float32)]
# None, one of everything, around 16, more rows than a piece of the CPU's, widths that are no power of two.
SHAPES = [(0, 16), (1, 1), (1, 768), (15, 33), (16, 24), (17, 257), (33, 192), (300, 20)]


def sample(N: int, D: int, dtypes=(torch.float64,) * 3, seed: int = 0) -> list[Tensor]:  # type: ignore[no-untyped-def]
    """x, residual, weight, bias; the rows have a mean of their own."""
    generator = torch.Generator().manual_seed(N * 10_000 + D + seed)
    shapes = [(N, D), (N, D), (D,), (D,)]
    kinds = [dtypes[0], dtypes[2], dtypes[1], dtypes[1]]
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    tensors[0] += 2 * torch.randn(N, 1, generator=generator)
    return [t.to(kind).to(DEVICE).requires_grad_() for t, kind in zip(tensors, kinds, strict=True)]


def plain(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    return F.layer_norm(x, x.shape[1:], weight.to(x.dtype), bias.to(x.dtype), 1e-5).to(dtype)


def gradients(y: tuple[Tensor, ...], inputs: list[Tensor], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dy = [torch.randn(t.shape, generator=generator).to(t.device, t.dtype) for t in y]
    return list(torch.autograd.grad(y, inputs, dy))


def assert_as_exact(ours: list[Tensor], same: list[Tensor], exact: list[Tensor], largest: float = 1.0) -> None:
    """Error at most twice that of the plain version, and 4 ulps of the largest number that the sums are made of."""
    for got, plain_one, want in zip(ours, same, exact, strict=True):
        assert got.shape == want.shape
        if got.numel():
            floor = 4 * torch.finfo(got.dtype).eps * max(largest, float(want.detach().abs().max()))
            assert (got - want).abs().max() <= 2 * (plain_one - want).abs().max() + floor


def largest_term(rows: Tensor) -> float:
    """torch's CPU subtracts mean/deviation from x/deviation, which at D = 1 are large and cancel."""
    rows = rows.detach().double()
    variance = (rows - rows.mean(1, keepdim=True)).square().mean(1)
    terms = rows.abs().amax(1) * (variance + 1e-5).rsqrt()
    return max(1.0, float(terms.max())) if len(rows) else 1.0


def check_layer_norm(N: int, D: int, dtypes: tuple[torch.dtype, ...], seed: int = 0) -> None:
    x, _, weight, bias = sample(N, D, dtypes, seed)
    results = []
    for kind in (None, x.dtype, torch.float64):
        inputs = [
            t.detach().to(t.dtype if kind is not torch.float64 else kind).requires_grad_() for t in (x, weight, bias)
        ]
        y = layer_norm(*inputs) if kind is None else plain(*inputs, dtype=kind)
        dy = torch.randn(N, D, generator=torch.Generator().manual_seed(1)).to(DEVICE, x.dtype).to(y.dtype)
        results.append([y, *torch.autograd.grad(y, inputs, dy)])
    assert [t.dtype for t in results[0]] == [x.dtype, x.dtype, weight.dtype, weight.dtype]
    assert_as_exact(*results, largest=largest_term(x))


def check_add_layer_norm(N: int, D: int, dtypes: tuple[torch.dtype, ...], seed: int = 0, dropout: float = 0.0) -> None:
    tensors = sample(N, D, dtypes, seed)
    keep = torch.ones(N, D, device=DEVICE, dtype=torch.float64)
    if dropout:
        keep = (dropout_words(7, N, D, torch.device(DEVICE)) >= round(dropout * 2**32)).double() / (1 - dropout)
    results = []
    for kind in (None, torch.float32, torch.float64):
        inputs = [t.detach().to(t.dtype if kind is not torch.float64 else kind).requires_grad_() for t in tensors]
        x, residual, weight, bias = inputs
        if kind is None:
            y, total = add_layer_norm(*inputs, dropout=dropout, seed=7)
        else:
            total = (residual + x * keep.to(kind)).to(residual.dtype)
            y = plain(total, weight, bias, x.dtype)
        generator = torch.Generator().manual_seed(1)
        dy, dtotal = (
            torch.randn(N, D, generator=generator).to(DEVICE, t.dtype).to(out.dtype)
            for t, out in zip(tensors[:2], (y, total), strict=True)
        )
        results.append([y, total, *torch.autograd.grad((y, total), inputs, (dy, dtotal))])
    assert [t.dtype for t in results[0]] == [dtypes[0], dtypes[2], dtypes[0], dtypes[2], dtypes[1], dtypes[1]]
    assert_as_exact(*results, largest=largest_term(results[2][1]))


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_values_and_gradients(dtypes: tuple[torch.dtype, ...]) -> None:
    for shape in SHAPES:
        check_layer_norm(*shape, dtypes)
        check_add_layer_norm(*shape, dtypes)
        check_add_layer_norm(*shape, dtypes, dropout=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_drawn_shapes(dtypes: tuple[torch.dtype, ...]) -> None:
    stream = random.Random(str(dtypes))
    for seed in range(200):
        N, D = stream.choice([1, 15, 16, 17, 257, stream.randrange(400)]), stream.randrange(1, 300)
        check_layer_norm(N, D, dtypes, seed)
        check_add_layer_norm(N, D, dtypes, seed, dropout=stream.choice([0.0, 0.1, 0.5]))


def test_the_bound_catches_a_wrong_eps() -> None:
    x, _, weight, bias = sample(16, 24, DTYPES[0])
    exact = plain(x.double(), weight, bias, torch.float64)
    with pytest.raises(AssertionError):
        assert_as_exact([layer_norm(x, weight, bias, eps=1e-3)], [plain(x, weight, bias, x.dtype)], [exact])


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_the_last_rows_count_in_the_weight_gradients(half: torch.dtype) -> None:
    x, _, weight, bias = sample(5000, 8, (half, half, half))
    (dbias,) = torch.autograd.grad(layer_norm(x, weight, bias), bias, torch.ones_like(x))
    torch.testing.assert_close(dbias, torch.full_like(dbias, 5000), rtol=torch.finfo(half).eps, atol=0.0)


def test_out_dtype() -> None:
    x, _, weight, bias = sample(9, 24, (torch.bfloat16, torch.float32, torch.float32))
    y = layer_norm(x, weight, bias, out_dtype=torch.float32)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, plain(x.float(), weight, bias, torch.float32))
    dx, dweight = torch.autograd.grad(y.square().sum(), (x, weight))
    assert (dx.dtype, dweight.dtype) == (torch.bfloat16, torch.float32)


def test_unused_results_have_no_part_in_the_gradients() -> None:
    x, residual, weight, bias = sample(9, 24)
    for choose in (0, 1):
        ours = torch.autograd.grad(add_layer_norm(x, residual, weight, bias)[choose].square().sum(), (x, residual))
        total = residual + x
        want = (plain(total, weight, bias, x.dtype), total)[choose].square().sum()
        for got, expected in zip(ours, torch.autograd.grad(want, (x, residual)), strict=True):
            torch.testing.assert_close(got, expected)


def test_gradients_of_inputs_of_one_tensor_add_up() -> None:
    x, _, weight, bias = sample(9, 24)
    y, total = add_layer_norm(x, x, weight, bias)
    (dx,) = torch.autograd.grad(y.square().sum() + total.sum(), x)
    (want,) = torch.autograd.grad(plain(x + x, weight, bias, x.dtype).square().sum() + (x + x).sum(), x)
    torch.testing.assert_close(dx, want)


def layouts() -> list[list[Tensor]]:
    """x, residual, weight, bias in float64: empty, one of each, transposed, sliced, stride 0, and plain."""
    wide = sample(12, 10)[0].detach()
    return [
        *(sample(N, D) for N, D in ((0, 4), (1, 1), (1, 5), (5, 1), (3, 4), (2, 7), (17, 2))),
        [wide.t().requires_grad_(), *sample(10, 12)[1:]],
        [wide[::3, 2:9].requires_grad_(), *sample(4, 7)[1:]],
        [
            wide[:, ::2].requires_grad_(),
            wide[:, 1::2].clone().t().contiguous().t().requires_grad_(),
            *sample(12, 5)[2:],
        ],
        [wide[:1].expand(6, 10).requires_grad_(), *sample(6, 10)[1:]],
        [*sample(6, 10)[:2], *(torch.ones(1, dtype=torch.float64, device=DEVICE).expand(10).requires_grad_(),) * 2],
    ]


@pytest.mark.parametrize("tensors", layouts(), ids=lambda t: str([tuple(t[0].shape), t[0].stride()]))
def test_gradcheck(tensors: list[Tensor]) -> None:
    # gradcheck wants leaves without overlap.
    x, residual, weight, bias = ((t.detach().clone() if 0 in t.stride() else t) for t in tensors)
    x, residual, weight, bias = (t.detach().requires_grad_() for t in (x, residual, weight, bias))
    assert torch.autograd.gradcheck(layer_norm, (x, weight, bias), fast_mode=True)
    for dropout in (0.0, 0.3):
        assert torch.autograd.gradcheck(
            lambda *t, dropout=dropout: add_layer_norm(*t, dropout=dropout), (x, residual, weight, bias), fast_mode=True
        )


@pytest.mark.parametrize("tensors", layouts(), ids=lambda t: str([tuple(t[0].shape), t[0].stride()]))
def test_registration(tensors: list[Tensor]) -> None:
    x, residual, weight, bias = tensors
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    add = torch.ops.bgpt_fast.add_layer_norm.default
    torch.library.opcheck(
        torch.ops.bgpt_fast.layer_norm.default, (x, weight, bias, 1e-5, torch.float32), test_utils=checks
    )
    for dropout in (0.0, 0.3):
        torch.library.opcheck(add, (x, residual, weight, bias, 1e-5, dropout, 3), test_utils=checks)


def test_traced() -> None:
    x, residual, weight, bias = sample(5, 12, (torch.bfloat16, torch.float32, torch.float32))
    torch.library.opcheck(torch.ops.bgpt_fast.layer_norm.default, (x, weight, bias, 1e-5, torch.bfloat16))
    torch.library.opcheck(torch.ops.bgpt_fast.add_layer_norm.default, (x, residual, weight, bias, 1e-5, 0.0, 3))
    torch.library.opcheck(torch.ops.bgpt_fast.add_layer_norm.default, (x, x, weight, bias, 1e-5, 0.0, 3))


def test_no_second_derivative() -> None:
    x, _, weight, bias = sample(3, 4)
    (dx,) = torch.autograd.grad(layer_norm(x, weight, bias).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="layer_norm_backward cannot be differentiated"):
        dx.sum().backward()


def test_strides_are_followed() -> None:
    wide = sample(20, 48, (torch.bfloat16,) * 3)[0].detach()
    _, _, weight, bias = sample(20, 24, (torch.bfloat16,) * 3)
    for x in (wide[:, ::2], wide[::3, 5:29], wide.t()[:24].t(), wide[:1, :24].expand(20, 24)):
        assert torch.equal(layer_norm(x, weight, bias), layer_norm(x.contiguous(), weight, bias))


def test_repeated_runs_are_bit_equal() -> None:
    inputs = sample(300, 20, (torch.bfloat16, torch.float32, torch.bfloat16))

    def run(seed: int) -> list[Tensor]:
        outputs = add_layer_norm(*inputs, dropout=0.1, seed=seed)
        return [*outputs, *gradients(outputs, inputs)]

    first = run(3)
    for _ in range(100):
        assert all(torch.equal(a, b) for a, b in zip(first, run(3), strict=True))
    assert not torch.equal(first[0], run(4)[0])


def test_a_row_knows_no_other() -> None:
    x, residual, weight, bias = (t.detach() for t in sample(33, 24, (torch.bfloat16, torch.float32, torch.bfloat16)))
    y = layer_norm(x, weight, bias)
    both = add_layer_norm(x, residual, weight, bias)
    assert torch.equal(layer_norm(x[::8], weight, bias), y[::8])
    x[3] = torch.nan
    x[5, 2] = torch.inf
    other = torch.arange(33, device=DEVICE) % 33
    other = other[(other != 3) & (other != 5)]
    changed, total = add_layer_norm(x, residual, weight, bias)
    assert torch.equal(layer_norm(x, weight, bias)[other], y[other])
    assert torch.equal(changed[other], both[0][other])
    assert torch.equal(total[other], both[1][other])
    assert changed[[3, 5]].isnan().all()


def test_extreme_values_as_in_plain_torch() -> None:
    for values in ([1e4, -1e4, 1e4, 3.0], [torch.inf, 0.0, 1.0, 2.0], [0.0] * 4, [torch.nan, 1.0, 2.0, 3.0]):
        x = torch.tensor([values, [1.0, 2.0, 3.0, 4.0]], device=DEVICE)
        weight, bias = torch.tensor([1.0, 2, 3, 4], device=DEVICE), torch.ones(4, device=DEVICE)
        want = plain(x, weight, bias, x.dtype)
        torch.testing.assert_close(layer_norm(x, weight, bias), want, equal_nan=True, rtol=1e-5, atol=1e-5)
        half = layer_norm(x.half(), weight, bias)
        torch.testing.assert_close(half, plain(x.half().float(), weight, bias, torch.float16), equal_nan=True)


def test_the_stream_is_philox() -> None:
    # The known answers of the published implementation, and the key of 64 bits.
    assert dropout_words(0, 1, 4).tolist() == [[0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]]
    words = dropout_words(5, 64, 257)
    assert torch.equal(dropout_words(5, 10, 30), words[:10, :30])
    assert torch.equal(dropout_words(5, 10, 30, first=20), words[20:30, :30])
    assert words.unique().numel() > 0.999 * words.numel()
    assert not torch.equal(dropout_words(5 + 2**32, 64, 257), words)
    assert (int(words.min()), int(words.max())) > (0, 2**31)
    assert int(words.max()) < 2**32


def test_dropout_keeps_what_it_should() -> None:
    N, D = 256, 257
    x, zero = torch.ones(N, D, device=DEVICE), torch.zeros(N, D, device=DEVICE)
    weight, bias = torch.ones(D, device=DEVICE), torch.zeros(D, device=DEVICE)
    for dropout in (0.1, 0.5, 0.9):
        total = add_layer_norm(x, zero, weight, bias, dropout=dropout, seed=11)[1]
        kept = total != 0
        torch.testing.assert_close(total[kept], torch.full_like(total[kept], 1 / (1 - dropout)))
        spread = (dropout * (1 - dropout) / (N * D)) ** 0.5
        assert abs(float(kept.float().mean()) - (1 - dropout)) < 4 * spread
        for axis, size in ((0, N), (1, D)):  # no row or column is favoured
            assert (kept.float().mean(axis) - (1 - dropout)).abs().max() < 5 * (dropout * (1 - dropout) / size) ** 0.5
    assert (add_layer_norm(x, zero, weight, bias, dropout=1.0)[1] == 0).all()
    nan = torch.full_like(x, torch.nan)
    assert add_layer_norm(nan, zero, weight, bias, dropout=0.5)[1].isnan().all()


def test_wrong_arguments_are_named() -> None:
    x, residual, weight, bias = (t.detach() for t in sample(3, 4, DTYPES[0]))
    good = {"x": x, "residual": residual, "weight": weight, "bias": bias}
    bad = [
        ("x: expected a torch.Tensor, got list", {"x": [1.0]}),
        ("x: expected dtype float32 or .*, got int64", {"x": x.long()}),
        (r"x: expected shape \[N, D\], got \[4\]", {"x": x[0]}),
        ("x: expected D of at least 1", {"x": x[:, :0], "weight": weight[:0], "bias": bias[:0]}),
        ("residual: expected dtype float32, got bfloat16", {"residual": residual.bfloat16()}),
        (r"residual: expected shape \[3, 4\], got \[2, 4\]", {"residual": residual[:2]}),
        ("residual: expected device", {"residual": residual.to("meta")}),
        ("weight: expected dtype float32, got float64", {"weight": weight.double()}),
        (r"weight: expected shape \[4\], got \[3\]", {"weight": weight[:3]}),
        ("bias: expected dtype float32, got bfloat16", {"bias": bias.bfloat16()}),
        ("bias: expected device", {"bias": bias.to("meta")}),
        ("eps: expected at least 0, got -1", {"eps": -1.0}),
        ("dropout: expected a probability, got 1.5", {"dropout": 1.5}),
        ("seed: expected 0", {"seed": -1}),
        ("seed: expected 0", {"seed": 2**63}),
    ]
    for message, arguments in bad:
        with pytest.raises((TypeError, ValueError), match=f"add_layer_norm: {message}"):
            add_layer_norm(**(good | arguments))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="layer_norm: out_dtype: expected a float dtype"):
        layer_norm(x, weight, bias, out_dtype=torch.int64)
    assert layer_norm(x, weight, bias).isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="needs an NVIDIA GPU")
def test_the_gpu_has_kernels_of_its_own() -> None:
    for op in ("layer_norm", "layer_norm_backward", "add_layer_norm", "add_layer_norm_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"bgpt_fast::{op}", "CUDA")
    for dtypes in DTYPES:
        check_layer_norm(33, 768, dtypes)
        check_add_layer_norm(33, 768, dtypes, dropout=0.1)
    x, residual, weight, bias = sample(33, 768, DTYPES[1])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        gradients(add_layer_norm(x, residual, weight, bias, dropout=0.1), [x, residual, weight, bias])
        torch.cuda.synchronize()
    names = {event.key for event in profile.key_averages()}
    assert {"_layer_norm_fwd_kernel", "_layer_norm_bwd_kernel", "_layer_norm_bwd_sum_kernel"} <= names
