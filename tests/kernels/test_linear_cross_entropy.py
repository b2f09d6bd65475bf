"""linear_cross_entropy: infinite logits, targets that are no tokens, chunks and splits of rows.

What every op must pass is in OpTests.
"""

from __future__ import annotations

import random

import pytest
import torch
from support.ops import BF16, F16, F32, F64, REPORTED_BY_NUMPY, Backend, OpTests, equal, results, seeded
from torch import Tensor
from torch.nn import functional as F

from bgpt_fast.kernels.linear_cross_entropy import op, triton_kernels
from bgpt_fast.kernels.linear_cross_entropy.op import linear_cross_entropy
from bgpt_fast.kernels.linear_cross_entropy.reference import (
    linear_cross_entropy_backward_reference,
    linear_cross_entropy_reference,
)

OPS = op.OPS
pytestmark = pytest.mark.filterwarnings(REPORTED_BY_NUMPY)


class TestLinearCrossEntropy(OpTests):
    NAME = "linear_cross_entropy"
    DTYPES = (F32, BF16, F16)
    # N, D, V: none, one of everything, one tile padded (16, 256, 512 columns), a token apart (17, 257), a row more than
    # a tile of rows and two tiles of D.
    SHAPES = ((0, 8, 257), (1, 1, 1), (15, 7, 5), (33, 16, 17), (16, 40, 256), (17, 33, 300), (65, 72, 257))
    # bGPT's V, the V around powers of two, the smallest and largest.
    LARGE_SHAPES = (
        (300, 64, 257),
        (33, 48, 257),
        (16, 64, 256),
        (17, 33, 258),
        (15, 7, 17),
        (5, 3, 16),
        (9, 5, 2),
        (4, 20, 512),
        (300, 16, 33),
        (1, 130, 257),
        (64, 1, 9),
    )
    STRIDED_SHAPE = (18, 24, 33)
    GPU_SHAPE = (1000, 768, 257)
    KERNELS = tuple(f"_linear_cross_entropy_{kernel}_kernel" for kernel in ("fwd", "bwd", "bwd_dweight"))
    LEAST_CASES = 15
    function = staticmethod(linear_cross_entropy)
    test_threads_change_nothing = None  # type: ignore[assignment]  # the CPU's products are the library's

    def arguments(self, inputs):  # type: ignore[no-untyped-def]
        return *inputs, True

    def sample(self, shape, dtypes=F32, seed=0):  # type: ignore[no-untyped-def]
        """x, weight, targets; the logits have a standard deviation of 2."""
        N, D, V = shape
        x, weight = seeded(sum(shape) + seed, (N, D), (V, D))
        targets = torch.randint(V, (N,), generator=torch.Generator().manual_seed(seed))
        targets[-1:] = V - 1  # the token that may stand apart
        return [x.to(dtypes), (weight * 2 / D**0.5).to(dtypes), targets]

    @staticmethod
    def plain(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        logits = F.linear(x, weight).to(torch.promote_types(x.dtype, F32))
        return F.cross_entropy(logits, targets.long(), reduction="none")

    @staticmethod
    def wrong_version(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Without the last token."""
        return linear_cross_entropy(x, weight[:-1], targets.clamp(max=len(weight) - 2))

    def tolerance(self, backend, inputs, exact):  # type: ignore[no-untyped-def]
        """4 ulps, in float32 of the logits for nats.

        For gradients the floor grows by a float32 ulp of the largest logit, times the largest gradient: the exponent's,
        in exp(logit − lse).
        """
        x, weight, _ = inputs
        if not len(x):
            return {}
        exponent = torch.finfo(F32).eps * float((x.double() @ weight.double().t()).abs().max())
        gradient = 4 * torch.finfo(x.dtype).eps + exponent
        return {"floors": [4 * exponent, *(gradient * float(want.abs().max()) for want in exact[1:])]}

    def strides_tolerance(self, backend: Backend, dtype: torch.dtype) -> dict[str, float]:
        # The CPU's products are the library's, which may round otherwise for other strides.
        if backend.name == "cpu":
            return {"rtol": 1e-5, "atol": 1e-5} if dtype == F32 else {"rtol": 2**-6, "atol": 2**-6}
        return super().strides_tolerance(backend, dtype)

    def draw_shape(self, stream: random.Random) -> tuple[int, int, int]:
        edges = [1, 2, 15, 16, 17, 31, 33, 127, 129, 255, 256, 257, 258, 511, 512, stream.randrange(1, 513)]
        return stream.randrange(90), stream.randrange(1, 90), stream.choice(edges)

    def layouts(self) -> dict[str, list[Tensor]]:
        shapes = ((5, 3, 4), (2, 2, 17), (1, 1, 1), (3, 4, 257), (0, 2, 3))
        x, weight, targets = self.sample((5, 3, 4), F64)
        return {
            **{str(shape): self.sample(shape, F64) for shape in shapes},
            "columns": [*(t.t().contiguous().t() for t in (x, weight)), targets],
            "int16 targets": [x, weight, targets.short()],
            "one row": [x[:1].expand(5, 3), weight, targets[:1].expand(5)],
        }

    def wrong_arguments(self):  # type: ignore[no-untyped-def]
        x, weight, targets = self.sample((6, 8, 257))
        wrong = {
            "x: expected a torch.Tensor, got NoneType": (None, weight, targets),
            "x: expected dtype float32 or bfloat16 or float16 or float64, got int64": (x.long(), weight, targets),
            r"x: expected shape \[N, D\], got \[6\]": (x[:, 0], weight, targets),
            "x: expected D of at least 1": (x[:, :0], weight[:, :0], targets),
            "weight: expected dtype float32, got bfloat16": (x, weight.bfloat16(), targets),
            r"weight: expected shape \[V, 8\], got \[8, 257\]": (x, weight.t(), targets),
            r"weight: expected V from 1 to 512, got \[0, 8\]": (x, weight[:0], targets),
            r"weight: expected V from 1 to 512, got \[514, 8\]": (x, torch.cat([weight, weight]), targets),
            "weight: expected device": (x, weight.to("meta"), targets),
            "targets: expected dtype int64 or int16, got int32": (x, weight, targets.int()),
            r"targets: expected shape \[6\], got \[5\]": (x, weight, targets[:5]),
            "targets: expected device": (x, weight, targets.to("meta")),
        }
        return {f"linear_cross_entropy: {message}": arguments for message, arguments in wrong.items()}


inputs = TestLinearCrossEntropy().inputs


def test_the_reference_is_plain_torch() -> None:
    x, weight, targets = TestLinearCrossEntropy().sample((33, 48, 257), F64)
    nats, lse = linear_cross_entropy_reference(x, weight, targets)
    (want,), gradients = results(TestLinearCrossEntropy.plain, [x, weight, targets])
    torch.testing.assert_close(nats, want)
    torch.testing.assert_close(lse, (x @ weight.t()).logsumexp(1))
    (dnats,) = seeded(1, (33,))
    ours = linear_cross_entropy_backward_reference(dnats.double(), x, weight, targets, lse)
    torch.testing.assert_close(ours, tuple(gradients))


def test_the_tolerance_catches_lost_gradients(backend: Backend) -> None:
    """Rounded once more to bfloat16, or without the last token's row."""

    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            return x.clone()

        @staticmethod
        def backward(ctx, dx):  # type: ignore[no-untyped-def]
            return dx.bfloat16().float()

    tests, arguments = TestLinearCrossEntropy(), inputs(backend, (33, 16, 257))
    with pytest.raises(AssertionError, match="result 1"):
        tests.check(backend, arguments, lambda x, *rest: linear_cross_entropy(Rounded.apply(x), *rest))

    def without_last_row(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return linear_cross_entropy(x, torch.cat([weight[:-1], weight[-1:].detach()]), targets)

    with pytest.raises(AssertionError, match="result 2"):
        tests.check(backend, arguments, without_last_row)


def test_the_cpu_works_in_chunks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in TestLinearCrossEntropy.DTYPES:
        arguments = TestLinearCrossEntropy().sample((70, 24, 257), dtype)
        at_once = results(linear_cross_entropy, arguments).all
        with monkeypatch.context() as patch:
            patch.setattr(op, "_CPU_ROWS", 16)
            TestLinearCrossEntropy().check(Backend("cpu"), arguments)
            chunked = results(linear_cross_entropy, arguments).all
        eps = torch.finfo(dtype).eps
        for ours, want in zip(chunked, at_once, strict=True):
            torch.testing.assert_close(ours, want, rtol=4 * eps, atol=8 * eps)


def test_int16_targets(backend: Backend) -> None:
    x, weight, targets = inputs(backend, (33, 16, 257))
    long, short = (results(linear_cross_entropy, [x, weight, t]).all for t in (targets, targets.short()))
    assert equal(long, short)


def test_large_logits(backend: Backend) -> None:
    for dtype in TestLinearCrossEntropy.DTYPES:
        x, weight, targets = inputs(backend, (16, 8, 33 if backend.is_interpreter else 257), dtype)
        TestLinearCrossEntropy().check(backend, [x * 70, weight * 70, targets])  # logits of about 1e4


def test_a_large_offset_that_all_logits_share(backend: Backend) -> None:
    """It changes neither nats nor probabilities (pytorch/pytorch#195829)."""
    x, weight, targets = inputs(backend, (16, 8, 33 if backend.is_interpreter else 257))
    x[:, 0], weight[:, 0] = 100, 100
    TestLinearCrossEntropy().check(backend, [x, weight, targets])
    nats = linear_cross_entropy(x, weight, targets)
    without = linear_cross_entropy(x[:, 1:].contiguous(), weight[:, 1:].contiguous(), targets)
    # Logits of 1e4 have steps of 1e-3.
    torch.testing.assert_close(nats, without, rtol=0, atol=5e-3)


def test_rows_are_independent(backend: Backend) -> None:
    x, weight, targets = inputs(backend, (20, 8, 257))
    before = results(linear_cross_entropy, [x, weight, targets])
    for row, value in ((3, torch.nan), (8, torch.inf), (19, -torch.inf)):
        x[row, 5] = value
    (nats,), (dx, _) = results(linear_cross_entropy, [x, weight, targets])
    bad = torch.zeros(20, dtype=torch.bool, device=backend.device)
    bad[[3, 8, 19]] = True
    assert not nats[bad].isfinite().any()
    assert dx[bad].isnan().all()
    assert torch.equal(nats[~bad], before.outputs[0][~bad])
    assert torch.equal(dx[~bad], before.gradients[0][~bad])


def test_the_gpus_rows_have_their_bits_in_any_company(backend: Backend) -> None:
    if backend.name == "cpu":
        return  # the library's products
    x, weight, targets = inputs(backend, (70, 24, 257), BF16)
    (dnats,) = (t.to(backend.device) for t in seeded(1, (70,)))
    rows = torch.arange(69, -1, -3, device=backend.device)
    (nats,), (dx, _) = results(linear_cross_entropy, [x, weight, targets], [dnats])
    (alone,), (dalone, _) = results(linear_cross_entropy, [x[rows], weight, targets[rows]], [dnats[rows]])
    assert torch.equal(alone, nats[rows])
    assert torch.equal(dalone, dx[rows])


@pytest.mark.parametrize("V", [257, 100])
def test_infinite_logits_as_logsumexp(backend: Backend, V: int) -> None:
    """Tokens of −inf count nothing, a token of +inf takes all, and a target of −inf costs +inf."""
    x, weight = torch.ones(3, 1, device=backend.device), torch.zeros(V, 1, device=backend.device)
    targets = torch.tensor([5, 0, V - 1], device=backend.device)
    weight[5] = -torch.inf
    nats = linear_cross_entropy(x, weight, targets)
    assert nats[0] == torch.inf
    torch.testing.assert_close(nats[1:], torch.full((2,), float(V - 1), device=backend.device).log())
    weight[V - 1] = torch.inf
    nats, lse, _ = torch.ops.bgpt_fast.linear_cross_entropy(x, weight, targets, False)
    assert (lse == torch.inf).all()
    assert (nats[:2] == torch.inf).all()
    assert nats[2].isnan()


@pytest.mark.parametrize("token", [-1, 257, 2**14, 2**32, 2**33])
def test_targets_that_are_no_tokens(backend: Backend, token: int) -> None:
    x, weight, targets = inputs(backend, (6, 8, 257))
    targets[2] = token
    alone = [False, False, True, False, False, False]
    assert linear_cross_entropy_reference(x, weight, targets)[0].isnan().tolist() == alone
    if backend.name == "cpu":
        with pytest.raises(ValueError, match=r"targets: expected tokens 0…256, got"):
            linear_cross_entropy(x, weight, targets)
        return
    (nats,), (dx, dweight) = results(linear_cross_entropy, [x, weight, targets])
    assert nats.isnan().tolist() == alone
    assert dx.isnan().all(1).tolist() == dx.isnan().any(1).tolist() == alone
    assert dweight.isnan().all()


def test_only_nats_have_a_gradient() -> None:
    x, weight, targets = TestLinearCrossEntropy().sample((5, 3, 4))
    nats, *others = torch.ops.bgpt_fast.linear_cross_entropy(x.requires_grad_(), weight, targets, True)
    assert nats.requires_grad
    assert not any(tensor.requires_grad for tensor in others)


def test_the_cpu_keeps_logits_for_a_gradient_alone() -> None:
    x, weight, targets = TestLinearCrossEntropy().sample((5, 3, 4))
    op = torch.ops.bgpt_fast.linear_cross_entropy
    torch.testing.assert_close(op(x, weight, targets, True)[2], x @ weight.t())
    assert op(x, weight, targets, False)[2].shape == (0, 4)
    with torch.no_grad():
        assert linear_cross_entropy(x.requires_grad_(), weight, targets).grad_fn is None


def test_a_kernel_for_too_few_tokens_is_noticed(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend.name == "cpu":
        return
    tile = triton_kernels._row_tile
    monkeypatch.setattr(triton_kernels, "_row_tile", lambda V, dtype: tile(V, dtype) | {"V": 256})
    x, weight, targets = inputs(backend, (33, 16, 257))
    targets.clamp_(max=255)
    nats = linear_cross_entropy(x, weight, targets)
    assert (nats - TestLinearCrossEntropy.plain(x, weight, targets)).abs().max() > 1e-3


def test_rows_in_several_splits(backend: Backend) -> None:
    assert triton_kernels._splits(520, 1) == (3, 192)
    TestLinearCrossEntropy().check(backend, inputs(backend, (520, 16, 17), BF16))


def test_splits_cover_all_rows() -> None:
    for N in (1, 31, 255, 257, 4096, 65_536, 99_999, 2**31 + 5):
        for tiles in (1, 2, 12, 16, 300):
            splits, rows = triton_kernels._splits(N, tiles)
            assert rows % 32 == 0
            assert (splits - 1) * rows < N <= splits * rows
            assert splits == 1 or splits * tiles <= 264


def test_every_launch_has_its_case() -> None:
    """The tiles that dispatch chooses at V = 257 are those that are compiled ahead of time."""
    cases = triton_kernels.compile_cases()
    for dtype in TestLinearCrossEntropy.DTYPES:
        for tile in (triton_kernels._row_tile(257, dtype), triton_kernels._dweight_tile(257, dtype)):
            assert any({**case.constexprs, **case.options}.items() >= tile.items() for case in cases)


def test_columns() -> None:
    small = ((1, 16, 16), (9, 16, 16), (16, 16, 16), (17, 16, 24))
    large = ((255, 256, 256), (256, 256, 256), (257, 256, 264), (258, 512, 512), (512, 512, 512))
    for V, main, columns in small + large:
        assert (triton_kernels._main(V), triton_kernels._columns(V)) == (main, columns)
