"""layer_norm and add_layer_norm: dropout, dtypes, unused results, independence of rows; the rest is in OpTests."""

from __future__ import annotations

import random

import pytest
import torch
from support.ops import (
    BF16,
    F16,
    F32,
    F64,
    HALVES,
    REPORTED_BY_NUMPY,
    Backend,
    OpTests,
    assert_accurate,
    check_errors,
    equal,
    results,
    seeded,
)
from torch import Tensor
from torch.nn import functional as F

from bgpt_fast.kernels.layer_norm import op
from bgpt_fast.kernels.layer_norm.op import add_layer_norm, layer_norm
from bgpt_fast.kernels.layer_norm.reference import add_reference, dropout_words

OPS = op.OPS
pytestmark = pytest.mark.filterwarnings(REPORTED_BY_NUMPY)
SEED = 7


def plain_norm(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    wide = torch.promote_types(x.dtype, F32)
    return F.layer_norm(x.to(wide), x.shape[1:], weight.to(wide), bias.to(wide), 1e-5).to(dtype)


def largest_number(backend: Backend, rows: Tensor) -> float:
    """The largest number that is added up: 1/deviation in the kernels.

    torch's CPU subtracts mean/deviation from x/deviation, which at D = 1 are large and cancel.
    """
    if len(rows) == 0:
        return 1.0
    rows = rows.detach().double()
    rstd = (rows.var(1, correction=0) + 1e-5).rsqrt()
    return max(1.0, float((rows.abs().amax(1) * rstd if backend.name == "cpu" else rstd).max()))


class TestLayerNorm(OpTests):
    NAME = "layer_norm"
    # x and weights: one dtype, or half-precision activations and float32 weights.
    DTYPES = ((F32, F32), (BF16, BF16), (F16, F16), (BF16, F32), (F16, F32))
    # None, one of everything, around a program's rows, widths below, at and beside a power of two.
    SHAPES = ((0, 16), (1, 1), (15, 33), (16, 128), (33, 20), (2, 257))
    # More rows than the CPU takes at a time.
    LARGE_SHAPES = ((300, 20), (1, 40), (1, 768), (16, 24), (17, 33), (17, 257), (33, 192))
    STRIDED_SHAPE = (20, 24)
    GPU_SHAPE = (150, 768)
    KERNELS = ("_layer_norm_fwd_kernel", "_layer_norm_bwd_kernel", "_layer_norm_bwd_sum_kernel")
    function = staticmethod(layer_norm)
    test_threads_change_nothing = None  # type: ignore[assignment]  # torch's own gradient depends on their number

    def sample(self, shape, dtypes=(F32, F32), seed=0):  # type: ignore[no-untyped-def]
        """x, weight, bias; the rows have different means."""
        N, D = shape
        x, weight, bias, means = seeded(N * 10_000 + D + seed, (N, D), (D,), (D,), (N, 1))
        return [(x + 2 * means).to(dtypes[0]), weight.to(dtypes[1]), bias.to(dtypes[1])]

    @staticmethod
    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return plain_norm(x, weight, bias, x.dtype)

    @staticmethod
    def wrong_version(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return layer_norm(x, weight, bias, eps=1e-3)

    def tolerance(self, backend, inputs, exact):  # type: ignore[no-untyped-def]
        return {"largest": largest_number(backend, inputs[0])}

    def arguments(self, inputs):  # type: ignore[no-untyped-def]
        return (*inputs, 1e-5, inputs[0].dtype)

    def draw_shape(self, stream: random.Random) -> tuple[int, int]:
        return stream.choice([1, 15, 16, 17, 257, stream.randrange(400)]), stream.randrange(1, 300)

    def layouts(self) -> dict[str, list[Tensor]]:
        def beside(view: Tensor) -> list[Tensor]:
            return [view, *self.sample(tuple(view.shape), (F64,) * 3)[1:]]

        wide = self.sample((12, 10), (F64,) * 3)[0]
        one = torch.ones(1, dtype=F64).expand(10)
        shapes = ((0, 4), (1, 1), (1, 5), (5, 1), (3, 4), (2, 7), (17, 2))
        return {
            **{str(shape): self.sample(shape, (F64,) * 3) for shape in shapes},
            "transposed": beside(wide.t()),
            "part of the rows": beside(wide[::3, 2:9]),
            "every second": beside(wide[:, ::2]),
            "one row": beside(wide[:1].expand(6, 10)),
            "one weight": [*beside(wide)[:-2], one, one],
        }

    def wrong_arguments(self):  # type: ignore[no-untyped-def]
        x, weight, bias = self.sample((3, 4))
        return {
            "layer_norm: x: expected a torch.Tensor, got list": ([1.0], weight, bias),
            "layer_norm: x: expected D of at least 1": (x[:, :0], weight[:0], bias[:0]),
            "layer_norm: weight: expected dtype float32, got float64": (x, weight.double(), bias),
        }


class TestAddLayerNorm(TestLayerNorm):
    NAME, FOLDER = "add_layer_norm", "layer_norm"
    DROPOUT = 0.0
    # x, weights and residual.
    DTYPES = (
        *((dtype, dtype, dtype) for dtype in (F32, BF16, F16)),
        *((half, F32, residual) for half in HALVES for residual in (half, F32)),
    )
    wrong_version = staticmethod(lambda *tensors: add_layer_norm(*tensors, eps=1e-3))

    def sample(self, shape, dtypes=(F32, F32, F32), seed=0):  # type: ignore[no-untyped-def]
        """x, residual, weight, bias."""
        x, weight, bias = super().sample(shape, dtypes, seed)
        return [x, seeded(seed + 1, shape)[0].to(dtypes[2]), weight, bias]

    def function(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        return add_layer_norm(*tensors, dropout=self.DROPOUT, seed=SEED)

    def plain(self, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        wide = torch.promote_types(x.dtype, F32)
        total = x.to(wide)
        if self.DROPOUT:
            is_present = dropout_words(SEED, *x.shape, x.device) >= round(self.DROPOUT * 2**32)
            total = total * (is_present * (1 / (1 - self.DROPOUT)))
        total = (residual.to(wide) + total).to(residual.dtype)
        return plain_norm(total, weight, bias, x.dtype), total

    def tolerance(self, backend, inputs, exact):  # type: ignore[no-untyped-def]
        return {"largest": largest_number(backend, exact[1])}

    def arguments(self, inputs):  # type: ignore[no-untyped-def]
        return (*inputs, 1e-5, self.DROPOUT, SEED)

    def wrong_arguments(self):  # type: ignore[no-untyped-def]
        x, residual, weight, bias = self.sample((3, 4))
        return {
            "add_layer_norm: x: expected a torch.Tensor, got list": ([1.0], residual, weight, bias),
            "x: expected dtype float32 or .*, got int64": (x.long(), residual, weight, bias),
            r"x: expected shape \[N, D\], got \[4\]": (x[0], residual, weight, bias),
            "x: expected D of at least 1": (x[:, :0], residual, weight[:0], bias[:0]),
            "residual: expected dtype float32, got bfloat16": (x, residual.bfloat16(), weight, bias),
            r"residual: expected shape \[3, 4\], got \[2, 4\]": (x, residual[:2], weight, bias),
            "residual: expected device": (x, residual.to("meta"), weight, bias),
            "weight: expected dtype float32, got float64": (x, residual, weight.double(), bias),
            r"weight: expected shape \[4\], got \[3\]": (x, residual, weight[:3], bias),
            "bias: expected dtype float32, got bfloat16": (x, residual, weight, bias.bfloat16()),
            "bias: expected device": (x, residual, weight, bias.to("meta")),
        }


class TestAddLayerNormWithDropout(TestAddLayerNorm):
    DROPOUT = 0.25
    wrong_version = staticmethod(lambda *tensors: add_layer_norm(*tensors, dropout=0.25, seed=SEED + 1))
    test_wrong_arguments_are_named = None  # type: ignore[assignment]
    test_compile_cases = None  # type: ignore[assignment]


inputs = TestAddLayerNorm().inputs


def test_wrong_numbers_are_named() -> None:
    tensors = TestAddLayerNorm().sample((3, 4))
    for message, numbers in (
        ("eps: expected at least 0, got -1", {"eps": -1.0}),
        ("dropout: expected a probability, got 1.5", {"dropout": 1.5}),
        ("seed: expected 0", {"seed": -1}),
        ("seed: expected 0", {"seed": 2**63}),
    ):
        check_errors(lambda *t, numbers=numbers: add_layer_norm(*t, **numbers), {message: tuple(tensors)})
    with pytest.raises(TypeError, match="layer_norm: out_dtype: expected a float dtype"):
        layer_norm(tensors[0], *tensors[2:], out_dtype=torch.int64)


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_the_last_rows_count_in_the_weight_gradients(backend: Backend, half: torch.dtype) -> None:
    rows = 600 if backend.is_interpreter else 5000
    x, _, weight, bias = inputs(backend, (rows, 8), (half, half, half))
    dbias = results(layer_norm, [x, weight, bias], [torch.ones_like(x)]).gradients[2]
    torch.testing.assert_close(dbias, torch.full_like(dbias, rows), rtol=torch.finfo(half).eps, atol=0.0)


def test_out_dtype(backend: Backend) -> None:
    x, _, weight, bias = inputs(backend, (9, 33), (BF16, F32, F32))
    ours = results(lambda *t: layer_norm(*t, out_dtype=F32), [x, weight, bias])
    plain = results(lambda *t: plain_norm(*t, F32), [x, weight, bias])
    assert [t.dtype for t in ours.all] == [F32, BF16, F32, F32]
    for got, want in zip(ours.all, plain.all, strict=True):
        torch.testing.assert_close(got, want)


def test_the_total_is_rounded_as_in_float64(backend: Backend) -> None:
    for dtypes in TestAddLayerNorm.DTYPES:
        x, residual, weight, bias = inputs(backend, (33, 20), dtypes)
        y, total = add_layer_norm(x, residual, weight, bias)
        exact = (x.double() + residual.double()).to(total.dtype)
        # The sum is rounded to float32 and then to the dtype: at a tie the two may differ.
        assert (total.double() - exact.double()).abs().max() <= torch.finfo(total.dtype).eps * exact.abs().max()
        assert total.dtype == F32 or (total != exact).float().mean() < 0.01
        # The norm is that of the rounded sum.
        norm = plain_norm(total, weight, bias, x.dtype)
        exact_norm = plain_norm(total.double(), weight.double(), bias.double(), F64)
        assert_accurate([y], [norm], [exact_norm], largest=largest_number(backend, total))


@pytest.mark.parametrize("shape", [(0, 16), (1, 1), (9, 24), (70, 33), (130, 257)], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_the_sum_of_the_gradient_over_rows(backend: Backend, dropout: float, shape: tuple[int, int]) -> None:
    """The gradient of a bias that x contains, in the pass that has the columns."""
    for dtypes in TestAddLayerNorm.DTYPES:
        x, residual, weight, bias = inputs(backend, shape, dtypes)
        _, total, mean, rstd = torch.ops.bgpt_fast.add_layer_norm(x, residual, weight, bias, 1e-5, dropout, SEED)
        dy, dtotal = (seeded(seed, shape)[0].to(x.device) for seed in (8, 9))
        for added in (None, dtotal.to(total.dtype)):
            arguments = (dy.to(x.dtype), added, total, weight, mean, rstd, x.dtype, dropout, SEED)
            *without, nothing = torch.ops.bgpt_fast.add_layer_norm_backward(*arguments, False)
            *gradients, column_sum = torch.ops.bgpt_fast.add_layer_norm_backward(*arguments, True)
            assert equal(gradients[:2], without[:2])  # those of weight and bias are summed by other tiles on a GPU
            for with_sum, plain in zip(gradients[2:], without[2:], strict=True):
                torch.testing.assert_close(with_sum, plain)
            assert nothing.shape == (0,)
            dx = gradients[0] if dropout or x.dtype != total.dtype else gradients[1]
            assert (column_sum.shape, column_sum.dtype) == (shape[1:], dx.dtype)
            # Sums of the gradients before they are rounded: each differs from its rounded one by half a unit at most.
            size = dx.double().abs().sum(0) + torch.finfo(dx.dtype).tiny
            error = (column_sum.double() - dx.double().sum(0)).abs()
            assert (error <= 2 * torch.finfo(dx.dtype).eps * size).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, {}), (F32, {"rtol": 1e-5, "atol": 1e-4})], ids=str)
def test_unused_results_have_no_part_in_the_gradients(
    backend: Backend, dtype: torch.dtype, tolerance: dict[str, float]
) -> None:
    x, residual, weight, bias = (t.requires_grad_() for t in inputs(backend, (9, 24), (dtype,) * 3))
    for choose in (0, 1):
        ours = torch.autograd.grad(add_layer_norm(x, residual, weight, bias)[choose].square().sum(), (x, residual))
        total = residual + x
        want = (plain_norm(total, weight, bias, x.dtype), total)[choose].square().sum()
        for got, expected in zip(ours, torch.autograd.grad(want, (x, residual)), strict=True):
            torch.testing.assert_close(got, expected, **tolerance)
    # A gradient of zeros has the bits of none.
    both = [t.detach() for t in (x, residual, weight, bias)]

    def first(*tensors: Tensor) -> Tensor:
        return add_layer_norm(*tensors, dropout=0.1, seed=3)[0]

    dy = torch.randn_like(x)
    zeros = results(lambda *t: add_layer_norm(*t, dropout=0.1, seed=3), both, [dy, torch.zeros_like(residual)])
    assert equal(results(first, both, [dy]).gradients, zeros.gradients)


@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
def test_gradients_of_one_tensor_in_two_places_add_up(dtype: torch.dtype) -> None:
    """By the reference and in C++."""
    tensors = TestAddLayerNorm().sample((9, 24), (dtype,) * 3)
    x, _, weight, bias = tensors
    x.requires_grad_()
    y, total = add_layer_norm(x, x, weight, bias)
    (dx,) = torch.autograd.grad(y.square().sum() + total.sum(), x)
    exact, _, *vectors = (tensor.detach().double() for tensor in tensors)
    exact.requires_grad_()
    want_y, want_total = plain_norm(exact + exact, *vectors, F64), exact + exact
    (want,) = torch.autograd.grad(want_y.square().sum() + want_total.sum(), exact)
    torch.testing.assert_close(dx, want.to(dtype))
    torch.library.opcheck(torch.ops.bgpt_fast.add_layer_norm.default, (x, x, weight, bias, 1e-5, 0.0, 3))


def test_programs_of_many_rows(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    from bgpt_fast.kernels.layer_norm import triton_kernels

    monkeypatch.setattr(triton_kernels, "_rows_a_program", lambda N, tile: 3 * tile.rows)
    TestLayerNorm().check(backend, TestLayerNorm().inputs(backend, (40, 64)))


def test_rows_are_independent(backend: Backend) -> None:
    x, residual, weight, bias = inputs(backend, (33, 24), (BF16, F32, BF16))
    dy, dtotal = (t.to(backend.device) for t in seeded(2, (33, 24), (33, 24)))

    def run() -> list[Tensor]:
        tensors = [x, residual, weight, bias]
        both = results(lambda *t: add_layer_norm(*t, dropout=0.1, seed=5), tensors, [dy, dtotal])
        return [layer_norm(x, weight, bias), *both.outputs, *both.gradients[:2]]

    before = run()
    assert torch.equal(layer_norm(x[::8], weight, bias), before[0][::8])
    x[3] = torch.nan
    x[5, 2], residual[5, 2] = torch.inf, torch.inf
    x[7, 1] = 1e4
    others = [row for row in range(33) if row not in (3, 5, 7)]
    after = run()
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new[others], old[others])
        assert new[3].isnan().all()
        assert new[7].isfinite().all()
    assert after[0][5].isnan().all()
    assert after[1][5].isnan().all()
    assert not after[2][5, 2].isfinite()


@pytest.mark.parametrize("dtypes", [(F32, F32), (BF16, BF16), (BF16, F32)])
def test_every_instruction_set_and_number_of_threads_gives_the_same_bits(
    dtypes: tuple[torch.dtype, torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    for N, D in ((1, 1), (3, 17), (64, 33), (300, 257)):
        x, residual, dy, dtotal = seeded(3, *[(N, D)] * 4)
        x, dy, residual, dtotal = x.to(dtypes[0]), dy.to(dtypes[0]), residual.to(dtypes[1]), dtotal.to(dtypes[1])
        weight, bias = seeded(4, (D,), (D,))
        outputs = []
        for isa in (0, 1, 2):
            for threads in (1, 3):
                monkeypatch.setattr(op, "_BEST_ISA", isa)
                monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
                outputs.append(results(add_layer_norm, [x, residual, weight, bias], [dy, dtotal]).all)
        assert all(equal(one, outputs[0]) for one in outputs[1:])


def test_extreme_values_as_in_plain_torch(backend: Backend) -> None:
    for values in ([1e4, -1e4, 1e4, 3.0], [torch.inf, 0.0, 1.0, 2.0], [0.0] * 4, [torch.nan, 1.0, 2.0, 3.0]):
        x = torch.tensor([values, [1.0, 2.0, 3.0, 4.0]], device=backend.device)
        weight, bias = torch.tensor([1.0, 2, 3, 4], device=backend.device), torch.ones(4, device=backend.device)
        for dtype, tolerance in ((F32, {"rtol": 1e-5, "atol": 1e-5}), (F16, {})):
            want = plain_norm(x.to(dtype), weight, bias, dtype)
            torch.testing.assert_close(layer_norm(x.to(dtype), weight, bias), want, equal_nan=True, **tolerance)


def test_the_random_words_are_philox() -> None:
    # The known answers of the published implementation, and the key of 64 bits.
    assert dropout_words(0, 1, 4).tolist() == [[0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]]
    words = dropout_words(5, 64, 257)
    assert torch.equal(dropout_words(5, 10, 30), words[:10, :30])
    assert torch.equal(dropout_words(5, 10, 30, first=20), words[20:30, :30])
    assert words.unique().numel() > 0.999 * words.numel()
    assert not torch.equal(dropout_words(5 + 2**32, 64, 257), words)
    assert (int(words.min()), int(words.max())) > (0, 2**31)
    assert int(words.max()) < 2**32


def test_the_mask_is_the_references_to_the_bit(backend: Backend) -> None:
    # The last has more rows than the CPU takes at a time.
    for (N, D), seed, dropout in (
        ((33, 20), 0, 0.5),
        ((3, 130), 2**63 - 1, 0.1),
        ((5, 33), 2**31 + 16, 0.9),
        ((300, 3), 1, 0.5),
    ):
        x, zero = torch.ones(N, D, device=backend.device), torch.zeros(N, D, device=backend.device)
        weight, bias = torch.ones(D, device=backend.device), torch.zeros(D, device=backend.device)

        def dropped(*tensors: Tensor, dropout=dropout, seed=seed) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
            return add_layer_norm(*tensors, dropout=dropout, seed=seed)

        (_, total), (dx, dresidual, _, _) = results(dropped, [x, zero, weight, bias], [zero, x])
        mask = dropout_words(seed, N, D, x.device) >= round(dropout * 2**32)
        assert torch.equal(total != 0, mask)
        assert torch.equal(total, add_reference(x, zero, dropout, seed))
        assert not torch.equal(mask, dropout_words(seed ^ 1, N, D, x.device) >= round(dropout * 2**32))
        assert torch.equal(dx, total)
        assert torch.equal(dresidual, x)


def test_dropout_has_its_probability_in_all_rows_and_columns(backend: Backend) -> None:
    N, D = (64 if backend.is_interpreter else 256), 257
    x, zero = torch.ones(N, D, device=backend.device), torch.zeros(N, D, device=backend.device)
    weight, bias = torch.ones(D, device=backend.device), torch.zeros(D, device=backend.device)
    for dropout in (0.1, 0.5, 0.9):
        total = add_layer_norm(x, zero, weight, bias, dropout=dropout, seed=11)[1]
        is_present = total != 0
        torch.testing.assert_close(total[is_present], torch.full_like(total[is_present], 1 / (1 - dropout)))
        variance, shares = dropout * (1 - dropout), is_present.float()
        assert abs(float(shares.mean()) - (1 - dropout)) < 4 * (variance / (N * D)) ** 0.5
        for axis, size in ((0, N), (1, D)):
            assert (shares.mean(axis) - (1 - dropout)).abs().max() < 5 * (variance / size) ** 0.5
    assert (add_layer_norm(x, zero, weight, bias, dropout=1.0)[1] == 0).all()
    nan = torch.full_like(x, torch.nan)
    assert add_layer_norm(nan, zero, weight, bias, dropout=0.5)[1].isnan().all()
