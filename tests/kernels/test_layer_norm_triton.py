"""layer_norm's Triton kernels against the float64 reference: in the interpreter, or on a GPU where there is one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from support.interpreter import DEVICE  # isort: skip  # before triton
from bgpt_fast.kernels.layer_norm.reference import (
    add_reference,
    dropout_words,
    layer_norm_backward_reference,
    layer_norm_reference,
)
from bgpt_fast.kernels.layer_norm.triton_kernels import (
    add_layer_norm_backward,
    add_layer_norm_forward,
    compile_cases,
    layer_norm_backward,
    layer_norm_forward,
)

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# x, weights, residual.
DTYPES = [(F32, F32, F32), (BF16, BF16, BF16), (F16, F16, F16), (BF16, F32, F32), (F16, F32, F16)]
# Around a program's rows, and widths below, at and beside a power of two, with dropout or without.
SHAPES = [(1, 1, 0.0), (15, 33, 0.25), (16, 128, 0.0), (33, 20, 0.25), (2, 257, 0.25)]


def sample(N: int, D: int, dtypes: tuple[torch.dtype, ...]) -> list[Tensor]:
    """x, residual, weight, bias, dy, dtotal."""
    generator = torch.Generator().manual_seed(N * 1000 + D)
    x, weight, residual = dtypes
    kinds = [((N, D), x), ((N, D), residual), ((D,), weight), ((D,), weight), ((N, D), x), ((N, D), residual)]
    return [torch.randn(shape, generator=generator).to(DEVICE, kind) for shape, kind in kinds]


def assert_as_exact(ours: list[Tensor], same: list[Tensor], exact: list[Tensor], largest: float) -> None:
    """Error at most twice that of the plain version, and 4 ulps of the largest number that the sums are made of."""
    for got, plain, want in zip(ours, same, exact, strict=True):
        assert got.isfinite().all()
        assert got.shape == want.shape
        floor = 4 * torch.finfo(got.dtype).eps * max(1.0, largest, float(want.abs().max()))
        assert (got - want).abs().max() <= 2 * (plain.to(got.dtype) - want).abs().max() + floor


def plain_add(x, residual, weight, bias, dy, dtotal, dropout, kind):  # type: ignore[no-untyped-def]
    """y, total, dx, dresidual, dweight, dbias in `kind`, but for a total that is rounded as the kernel's is."""
    total = add_reference(x.to(kind), residual.to(kind), dropout, 7).to(residual.dtype).to(kind)
    y, mean, rstd = layer_norm_reference(total, weight.to(kind), bias.to(kind), 1e-5, kind)
    dsum, *sums = layer_norm_backward_reference(dy.to(kind), total, weight.to(kind), mean, rstd)
    dsum = dsum + dtotal.to(kind)
    dx = add_reference(dsum, torch.zeros_like(dsum), dropout, 7)
    return [y, total, dx, dsum, *sums], float(rstd.max())


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_add_layer_norm(dtypes: tuple[torch.dtype, ...]) -> None:
    for N, D, dropout in SHAPES:
        x, residual, weight, bias, dy, dtotal = sample(N, D, dtypes)
        y, total, mean, rstd = add_layer_norm_forward(x, residual, weight, bias, 1e-5, dropout, 7)
        dx, dresidual, *sums = add_layer_norm_backward(dy, dtotal, total, weight, mean, rstd, x.dtype, dropout, 7)
        if dropout == 0.0 and x.dtype == residual.dtype:
            assert dx.shape == (0, D)
            dx = dresidual
        tensors = (x, residual, weight, bias, dy, dtotal)
        (same, _), (exact, largest) = (plain_add(*tensors, dropout, kind) for kind in (F32, torch.float64))
        ours = [y, total, dx, dresidual, *sums]
        assert [t.dtype for t in ours] == [dtypes[0], dtypes[2], dtypes[0], dtypes[2], dtypes[1], dtypes[1]]
        # The total is rounded as it is computed, in float32 and in float64: at a tie they may part.
        parted = total.double() != exact[1]
        assert (total - exact[1]).abs().max() <= torch.finfo(total.dtype).eps * exact[1].abs().max()
        assert total.dtype == F32 or parted.float().mean() < 0.01
        assert_as_exact(ours, same, exact, largest)


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_layer_norm(dtypes: tuple[torch.dtype, ...]) -> None:
    for N, D in ((1, 40), (17, 33)):
        x, _, weight, bias, dy, _ = sample(N, D, dtypes)
        y, mean, rstd = layer_norm_forward(x, weight, bias, 1e-5, x.dtype)
        ours = [y, *layer_norm_backward(dy, x, weight, mean, rstd)]
        results = []
        for kind in (F32, torch.float64):
            want, *rows = layer_norm_reference(x.to(kind), weight.to(kind), bias.to(kind), 1e-5, kind)
            results.append([want, *layer_norm_backward_reference(dy.to(kind), x.to(kind), weight.to(kind), *rows)])
        assert_as_exact(ours, *results, largest=float(rstd.max()))
        assert [t.dtype for t in ours] == [dtypes[0], dtypes[0], dtypes[1], dtypes[1]]


def test_the_bound_catches_a_wrong_eps() -> None:
    x, _, weight, bias, _, _ = sample(16, 128, DTYPES[0])
    want = layer_norm_reference(x.double(), weight.double(), bias.double(), 1e-5, torch.float64)[0]
    same = layer_norm_reference(x, weight, bias, 1e-5, F32)[0]
    with pytest.raises(AssertionError):
        assert_as_exact([layer_norm_forward(x, weight, bias, 1e-3, F32)[0]], [same], [want], 1.0)


def test_the_mask_is_the_references_to_the_bit() -> None:
    for (N, D), seed, dropout in (((33, 20), 0, 0.5), ((3, 130), 2**63 - 1, 0.1), ((5, 33), 2**31 + 16, 0.9)):
        x, zero = torch.ones(N, D, device=DEVICE), torch.zeros(N, D, device=DEVICE)
        weight, bias = torch.ones(D, device=DEVICE), torch.zeros(D, device=DEVICE)
        _, total, mean, rstd = add_layer_norm_forward(x, zero, weight, bias, 1e-5, dropout, seed)
        mask = dropout_words(seed, N, D, x.device) >= round(dropout * 2**32)
        assert torch.equal(total != 0, mask)
        assert torch.equal(total, add_reference(x, zero, dropout, seed))
        assert not torch.equal(mask, dropout_words(seed ^ 1, N, D, x.device) >= round(dropout * 2**32))
        dx, dresidual, _, _ = add_layer_norm_backward(zero, x, total, weight, mean, rstd, F32, dropout, seed)
        assert torch.equal(dx, total)
        assert torch.equal(dresidual, x)


def test_many_rows_share_a_program_of_the_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    from bgpt_fast.kernels.layer_norm import triton_kernels

    x, _, weight, bias, dy, _ = sample(40, 64, DTYPES[0])
    rows = layer_norm_forward(x, weight, bias, 1e-5, F32)[1:]
    want = layer_norm_backward(dy, x, weight, *rows)
    monkeypatch.setattr(triton_kernels, "_rows_a_program", lambda N, tile: 3 * tile.rows)
    for got, expected in zip(layer_norm_backward(dy, x, weight, *rows), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_out_dtype_missing_dtotal_and_empty() -> None:
    x, residual, weight, bias, dy, dtotal = sample(5, 33, (BF16, F32, BF16))
    y, mean, rstd = layer_norm_forward(x, weight, bias, 1e-5, F32)
    want = layer_norm_reference(x, weight, bias, 1e-5, F32)
    torch.testing.assert_close(y, want[0], rtol=1e-5, atol=1e-5)
    dx, dweight, _ = layer_norm_backward(dy.float(), x, weight, mean, rstd)
    torch.testing.assert_close(
        dx.float(), layer_norm_backward_reference(dy, x, weight, *want[1:])[0].bfloat16().float()
    )
    _, total, mean, rstd = add_layer_norm_forward(x, residual, weight, bias, 1e-5, 0.1, 3)
    without = add_layer_norm_backward(dy, None, total, weight, mean, rstd, BF16, 0.1, 3)
    zeros = add_layer_norm_backward(dy, torch.zeros_like(dtotal), total, weight, mean, rstd, BF16, 0.1, 3)
    assert all(torch.equal(a, b) for a, b in zip(without, zeros, strict=True))
    empty = x[:0]
    y, total, mean, rstd = add_layer_norm_forward(empty, residual[:0], weight, bias, 1e-5, 0.1, 3)
    dx, dresidual, dweight, dbias = add_layer_norm_backward(y, None, total, weight, mean, rstd, BF16, 0.1, 3)
    assert y.shape == total.shape == dx.shape == dresidual.shape == (0, 33)
    assert (dweight == 0).all()
    assert (dbias == 0).all()


def test_strides_are_followed() -> None:
    wide, tall, weight, bias, dy, _ = sample(12, 66, (BF16, F32, BF16))
    weight, bias, dy = weight[:33], bias[:33], dy[:, 5:38]
    for x in (wide[:, ::2], wide[:, 5:38], wide[:1, :33].expand(12, 33), tall.t().contiguous().t()[:, :33]):
        (a, *rows), (b, *_) = (layer_norm_forward(t, weight, bias, 1e-5, BF16) for t in (x, x.contiguous()))
        assert torch.equal(a, b)
        a, b = (
            layer_norm_backward(dy, x, weight, *rows),
            layer_norm_backward(dy.contiguous(), x.contiguous(), weight, *rows),
        )
        assert all(torch.equal(one, other) for one, other in zip(a, b, strict=True))


def test_repeated_runs_are_bit_equal_and_a_row_knows_no_other() -> None:
    x, residual, weight, bias, dy, dtotal = sample(17, 40, (BF16, F32, BF16))

    def run() -> list[Tensor]:
        y, total, *rows = add_layer_norm_forward(x, residual, weight, bias, 1e-5, 0.1, 5)
        return [y, total, *add_layer_norm_backward(dy, dtotal, total, weight, *rows, BF16, 0.1, 5)]

    first = run()
    for _ in range(2 if DEVICE == "cpu" else 1000):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))
    x[2], x[4, 3], x[6, 1] = torch.nan, torch.inf, 1e4
    others = torch.tensor([row for row in range(17) if row not in (2, 4, 6)], device=DEVICE)
    changed = run()
    for before, after in zip(first[:4], changed[:4], strict=True):
        assert torch.equal(before[others], after[others])
        assert after[2].isnan().all()
        assert after[6].isfinite().all()
    assert changed[0][4].isnan().all()
    assert changed[1][4, 3].isinf() or changed[1][4, 3].isnan()


def test_compile_cases_name_every_argument() -> None:
    cases = compile_cases()
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        assert set(case.kernel.arg_names) == case.types.keys() | case.constexprs.keys()
        assert case.unaligned <= case.types.keys()
