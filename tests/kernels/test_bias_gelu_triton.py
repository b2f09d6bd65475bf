"""bias_gelu's Triton kernels against the float64 reference: in the interpreter, or on a GPU where there is one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from support.interpreter import DEVICE  # isort: skip  # before triton
from bgpt_fast.kernels.bias_gelu import triton_kernels
from bgpt_fast.kernels.bias_gelu.triton_kernels import bias_gelu_backward, bias_gelu_forward, compile_cases

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
DTYPES = [(F32, F32), (BF16, BF16), (F16, F16), (BF16, F32), (F16, F32)]
# Around a program's rows; widths of one block, of several (384 = 3 · 128), and with a masked end.
SHAPES = [(1, 1), (15, 33), (17, 130), (33, 20), (5, 384)]


def sample(N: int, width: int, dtypes: tuple[torch.dtype, torch.dtype]) -> list[Tensor]:
    """x over the whole bend of GELU, bias and dy."""
    generator = torch.Generator().manual_seed(N * 1000 + width)
    tensors = [torch.randn(shape, generator=generator) for shape in ((N, width), (width,), (N, width))]
    return [
        (t * size).to(DEVICE, dtype)
        for t, size, dtype in zip(tensors, (3, 1, 1), (dtypes[0], dtypes[1], dtypes[0]), strict=True)
    ]


def plain(x: Tensor, bias: Tensor, dy: Tensor, kind: torch.dtype) -> list[Tensor]:
    """y, dx, dbias by torch in `kind`."""
    x, bias = (t.to(kind, copy=True).requires_grad_() for t in (x, bias))
    y = F.gelu(x + bias, approximate="tanh")
    return [y.detach(), *torch.autograd.grad(y, (x, bias), dy.to(kind))]


def assert_as_exact(ours: list[Tensor], same: list[Tensor], exact: list[Tensor]) -> None:
    """Error at most twice that of the plain version, and 4 ulps of the largest value."""
    for got, plain_one, want in zip(ours, same, exact, strict=True):
        assert got.isfinite().all()
        assert got.shape == want.shape
        floor = 4 * torch.finfo(got.dtype).eps * max(1.0, float(want.abs().max()))
        assert (got - want).abs().max() <= 2 * (plain_one.to(got.dtype) - want).abs().max() + floor


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_values_and_gradients(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    for shape in SHAPES:
        x, bias, dy = sample(*shape, dtypes)
        ours = [bias_gelu_forward(x, bias), *bias_gelu_backward(dy, x, bias)]
        assert [t.dtype for t in ours] == [x.dtype, x.dtype, bias.dtype]
        assert_as_exact(ours, plain(x, bias, dy, F32), plain(x, bias, dy, torch.float64))


def test_the_bound_catches_the_other_gelu() -> None:
    x, bias, dy = sample(16, 20, DTYPES[0])
    same, exact = plain(x, bias, dy, F32), plain(x, bias, dy, torch.float64)
    assert_as_exact([bias_gelu_forward(x, bias)], same[:1], exact[:1])
    with pytest.raises(AssertionError):
        assert_as_exact([F.gelu(x + bias)], same[:1], exact[:1])


def test_rows_over_many_programs_and_many_rows_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x, bias, dy = sample(40, 128, DTYPES[0])
    want = plain(x, bias, dy, F32)[1:]
    for share in (1, 3):
        monkeypatch.setattr(triton_kernels, "_rows_a_program", lambda N, width, tile, share=share: share * tile.rows)
        for got, expected in zip(bias_gelu_backward(dy, x, bias), want, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_strides_and_empty() -> None:
    wide, bias, dy = sample(12, 66, (BF16, F32))
    bias, dy = bias[::2], dy[:, 5:38]
    for x in (wide[:, ::2], wide[:, 5:38], wide[:1, :33].expand(12, 33), wide.t().contiguous().t()[:, :33]):
        assert torch.equal(bias_gelu_forward(x, bias), bias_gelu_forward(x.contiguous(), bias.contiguous()))
        strided, dense = bias_gelu_backward(dy, x, bias), bias_gelu_backward(dy.contiguous(), x.contiguous(), bias)
        assert all(torch.equal(a, b) for a, b in zip(strided, dense, strict=True))
    assert bias_gelu_forward(wide[:0], bias.repeat(2)).shape == (0, 66)
    dx, dbias = bias_gelu_backward(wide[:0], wide[:0], bias.repeat(2))
    assert dx.shape == (0, 66)
    assert torch.equal(dbias, torch.zeros(66, device=DEVICE))


def test_repeated_runs_are_bit_equal_and_a_row_knows_no_other() -> None:
    x, bias, dy = sample(17, 40, (BF16, BF16))
    first = [bias_gelu_forward(x, bias), *bias_gelu_backward(dy, x, bias)]
    for _ in range(2 if DEVICE == "cpu" else 1000):
        again = [bias_gelu_forward(x, bias), *bias_gelu_backward(dy, x, bias)]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    x[2], x[4] = torch.nan, torch.inf
    others = torch.tensor([row for row in range(17) if row not in (2, 4)], device=DEVICE)
    y, (dx, _) = bias_gelu_forward(x, bias), bias_gelu_backward(dy, x, bias)
    assert torch.equal(y[others], first[0][others])
    assert torch.equal(dx[others], first[1][others])
    assert y[2].isnan().all()
    assert dx[2].isnan().all()


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_extreme_values_as_in_plain_torch(dtype: torch.dtype) -> None:
    x = torch.tensor([[0.0, 1e4, -1e4, 30.0, -30.0, torch.inf, -torch.inf, torch.nan]], device=DEVICE).to(dtype)
    bias, dy = torch.zeros(8, device=DEVICE, dtype=dtype), torch.ones_like(x)
    y, dx, _ = plain(x, bias, dy, F32)
    torch.testing.assert_close(bias_gelu_forward(x, bias), y.to(dtype), equal_nan=True)
    torch.testing.assert_close(bias_gelu_backward(dy, x, bias)[0], dx.to(dtype), equal_nan=True)


def test_an_infinite_bias_stays_in_its_column() -> None:
    x, bias, dy = sample(3, 20, DTYPES[0])
    bias[7] = torch.inf
    dbias = bias_gelu_backward(dy, x, bias)[1]
    assert dbias[7].isnan()
    dbias[7] = 0
    assert dbias.isfinite().all()


def test_compile_cases_name_every_argument() -> None:
    cases = compile_cases()
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        assert set(case.kernel.arg_names) == case.types.keys() | case.constexprs.keys()
        assert case.unaligned <= case.types.keys()
