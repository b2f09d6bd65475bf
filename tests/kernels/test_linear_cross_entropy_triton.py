"""The Triton kernels of linear_cross_entropy, on a GPU or in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from support.interpreter import DEVICE  # isort: skip  # before triton
from bgpt_fast.kernels.linear_cross_entropy import triton_kernels
from bgpt_fast.kernels.linear_cross_entropy.triton_kernels import (
    compile_cases,
    linear_cross_entropy_backward,
    linear_cross_entropy_forward,
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# (N, D, V): a row more than a tile and two tiles of D; one tile padded (16, 256, 512 columns); a token apart (17, 257).
SHAPES = [(65, 72, 257), (33, 16, 17), (16, 40, 256), (17, 33, 300), (15, 7, 5), (1, 1, 1)]


def sample(N: int, D: int, V: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, targets and dnats; the logits have a standard deviation of 2."""
    stream = torch.Generator().manual_seed(N + D + V)
    x, weight = torch.randn(N, D, generator=stream), torch.randn(V, D, generator=stream) * 2 / D**0.5
    targets, dnats = torch.randint(V, (N,), generator=stream), torch.randn(N, generator=stream)
    targets[-1] = V - 1  # the token that may stand apart
    return x.to(DEVICE, dtype), weight.to(DEVICE, dtype), targets.to(DEVICE), dnats.to(DEVICE)


def kernels(x: Tensor, weight: Tensor, targets: Tensor, dnats: Tensor) -> list[Tensor]:
    """nats, dx, dweight."""
    nats, lse = linear_cross_entropy_forward(x, weight, targets)
    return [nats, *linear_cross_entropy_backward(dnats, x, weight, targets, lse)]


def plain(x: Tensor, weight: Tensor, targets: Tensor, dnats: Tensor) -> list[Tensor]:
    x, weight = (t.detach().requires_grad_() for t in (x, weight))
    logits = F.linear(x, weight).to(torch.promote_types(x.dtype, torch.float32))
    nats = F.cross_entropy(logits, targets, reduction="none")
    return [nats.detach(), *torch.autograd.grad(nats, (x, weight), dnats.to(nats.dtype))]


def excess(ours: list[Tensor], arguments: tuple[Tensor, Tensor, Tensor, Tensor]) -> list[float]:
    """For nats, dx, dweight: the error to float64 over what is allowed, twice plain torch's and a floor.

    The floor is 4 ulp of the largest value, in float32 of the logits for nats. For gradients it grows by a float32 ulp
    of the largest logit, times the largest gradient: the exponent's, in exp(logit − lse).
    """
    x, weight, targets, dnats = arguments
    wants = plain(x.double(), weight.double(), targets, dnats)
    largest_logit = (x.double() @ weight.double().t()).abs().max()
    ratios = []
    for i, (got, peer, want) in enumerate(zip(ours, plain(*arguments), wants, strict=True)):
        assert got.isfinite().all()
        exponent = torch.finfo(torch.float32).eps * largest_logit
        floor = (4 * torch.finfo(x.dtype).eps + exponent) * want.abs().max() if i else 4 * exponent
        ratios.append(float((got - want).abs().max() / (2 * (peer - want).abs().max() + floor)))
    return ratios


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    arguments = sample(*shape, dtype)
    ours = kernels(*arguments)
    assert [t.dtype for t in ours] == [torch.float32, dtype, dtype]
    assert max(excess(ours, arguments)) <= 1


def test_a_lost_token_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: a kernel told that V is 256 must not pass for 257 tokens."""
    arguments = sample(33, 16, 257)
    tile = triton_kernels._row_tile
    monkeypatch.setattr(triton_kernels, "_row_tile", lambda V, dtype: tile(V, dtype) | {"V": 256})
    x, weight, targets, _ = arguments
    nats, _ = linear_cross_entropy_forward(x, weight, targets.clamp(max=255))
    want = F.cross_entropy(F.linear(x, weight), targets.clamp(max=255), reduction="none")
    assert (nats - want).abs().max() > 1e-3


def test_a_lost_gradient_is_noticed() -> None:
    """The negative control of the gradients: rounded once more to bfloat16, or without the last token's row."""
    arguments = sample(33, 16, 257)
    nats, dx, dweight = kernels(*arguments)
    rounded = excess([nats, dx.bfloat16().float(), dweight], arguments)
    assert rounded[1] > 1
    dweight[-1] = 0
    assert excess([nats, dx, dweight], arguments)[2] > 1


def test_rows_in_several_splits() -> None:
    arguments = sample(520, 16, 17, torch.bfloat16)
    assert triton_kernels._splits(520, 1) == (3, 192)
    assert max(excess(kernels(*arguments), arguments)) <= 1


def test_splits_cover_all_rows() -> None:
    for N in (1, 31, 255, 257, 4096, 65_536, 99_999, 2**31 + 5):
        for tiles in (1, 2, 12, 16, 300):
            splits, rows = triton_kernels._splits(N, tiles)
            assert rows % 32 == 0
            assert (splits - 1) * rows < N <= splits * rows
            assert splits == 1 or splits * tiles <= 264


def test_empty() -> None:
    x, weight, targets, dnats = sample(1, 8, 257)
    nats, dx, dweight = kernels(x[:0], weight, targets[:0], dnats[:0])
    assert nats.shape == (0,)
    assert dx.shape == (0, 8)
    assert torch.equal(dweight, torch.zeros_like(weight))


def test_any_strides_and_int16_targets() -> None:
    x, weight, targets, dnats = sample(17, 24, 33)
    want = kernels(x, weight, targets, dnats)
    apart = [torch.stack([t, t], 1)[:, 0] for t in (targets.short(), dnats)]
    wide = torch.cat([x, x], 1)[:, :24]
    for ours, expected in zip(kernels(wide, weight.t().contiguous().t(), *apart), want, strict=True):
        assert torch.equal(ours, expected)
    same = kernels(x, weight, targets, dnats[:1].expand(17))  # a gradient of stride 0
    assert torch.equal(same[0], want[0])


def test_large_logits() -> None:
    for dtype in DTYPES:
        x, weight, targets, dnats = sample(16, 8, 33, dtype)
        arguments = (x * 70, weight * 70, targets, dnats)  # logits of about 1e4
        assert max(excess(kernels(*arguments), arguments)) <= 1


@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
def test_what_is_not_finite_stays_in_its_row() -> None:
    x, weight, targets, dnats = sample(20, 8, 257)
    clean = kernels(x, weight, targets, dnats)
    for row, value in ((3, torch.nan), (8, torch.inf), (19, -torch.inf)):
        x[row, 5] = value
    nats, dx, _ = kernels(x, weight, targets, dnats)
    bad = torch.zeros(20, dtype=torch.bool, device=DEVICE)
    bad[[3, 8, 19]] = True
    assert not nats[bad].isfinite().any()
    assert dx[bad].isnan().all()
    assert torch.equal(nats[~bad], clean[0][~bad])
    assert torch.equal(dx[~bad], clean[1][~bad])


@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
@pytest.mark.parametrize("V", [257, 100])
def test_infinite_logits_as_logsumexp(V: int) -> None:
    x, weight = torch.ones(3, 1, device=DEVICE), torch.zeros(V, 1, device=DEVICE)
    targets = torch.tensor([5, 0, V - 1], device=DEVICE)
    weight[5] = -torch.inf
    nats, lse = linear_cross_entropy_forward(x, weight, targets)
    logs = torch.full((2,), float(V - 1), device=DEVICE).log()
    assert nats[0] == torch.inf
    torch.testing.assert_close(nats[1:], logs)
    weight[V - 1] = torch.inf
    nats, lse = linear_cross_entropy_forward(x, weight, targets)
    assert (lse == torch.inf).all()
    assert (nats[:2] == torch.inf).all()
    assert nats[2].isnan()


@pytest.mark.parametrize("token", [-1, 257, 2**33, 2**32])
def test_targets_that_are_no_tokens(token: int) -> None:
    x, weight, targets, dnats = sample(6, 8, 257)
    targets[2] = token
    nats, dx, dweight = kernels(x, weight, targets, dnats)
    alone = [False, False, True, False, False, False]
    assert nats.isnan().tolist() == alone
    assert dx.isnan().all(1).tolist() == dx.isnan().any(1).tolist() == alone
    assert dweight.isnan().all()


def test_bit_equal_whatever_the_neighbours() -> None:
    x, weight, targets, dnats = sample(70, 24, 257, torch.bfloat16)
    first, again = kernels(x, weight, targets, dnats), kernels(x, weight, targets, dnats)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    rows = torch.arange(69, -1, -3, device=DEVICE)
    alone = kernels(x[rows], weight, targets[rows], dnats[rows])
    assert torch.equal(alone[0], first[0][rows])
    assert torch.equal(alone[1], first[1][rows])


def test_every_launch_has_its_case() -> None:
    """The tiles that dispatch chooses at V = 257 are those that are compiled ahead of time."""
    cases = compile_cases()
    assert len({case.name for case in cases}) == len(cases) == 15
    for case in cases:
        assert set(case.types) | set(case.constexprs) == set(case.kernel.arg_names), case.name
    for dtype in DTYPES:
        for tile in (triton_kernels._row_tile(257, dtype), triton_kernels._dweight_tile(257, dtype)):
            assert any({**case.constexprs, **case.options}.items() >= tile.items() for case in cases)


@pytest.mark.parametrize(("V", "main", "columns"), [(1, 16, 16), (9, 16, 16), (16, 16, 16), (17, 16, 24)])
def test_columns(V: int, main: int, columns: int) -> None:
    assert (triton_kernels._main(V), triton_kernels._columns(V)) == (main, columns)
    for V, main, columns in ((255, 256, 256), (256, 256, 256), (257, 256, 264), (258, 512, 512), (512, 512, 512)):
        assert (triton_kernels._main(V), triton_kernels._columns(V)) == (main, columns)
