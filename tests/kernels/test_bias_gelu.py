"""bias_gelu: GELU's limits, what NaN and infinity reach, the bits of the CPU's versions; the rest is in OpTests."""

from __future__ import annotations

import random

import pytest
import torch
from support.ops import BF16, F16, F32, F64, HALVES, REPORTED_BY_NUMPY, Backend, OpTests, check_errors, equal, seeded
from torch import Tensor
from torch.nn import functional as F

from bgpt_fast import _C
from bgpt_fast.kernels.bias_gelu import op
from bgpt_fast.kernels.bias_gelu.op import bias_gelu, bias_gelu_backward

OPS = op.OPS
pytestmark = pytest.mark.filterwarnings(REPORTED_BY_NUMPY)


class TestBiasGelu(OpTests):
    NAME = "bias_gelu"
    # x and bias: one dtype, or a float32 bias.
    DTYPES = ((F32, F32), (BF16, BF16), (F16, F16), (BF16, F32), (F16, F32))
    # None, one of everything, around 16, widths of one block of columns, of several and with a masked end.
    SHAPES = ((0, 16), (16, 0), (1, 1), (15, 33), (17, 130), (33, 20), (5, 384))
    # One row, more rows than the CPU takes at a time, widths that are no power of two.
    LARGE_SHAPES = ((200, 24), (1, 3072), (17, 257), (33, 192))
    STRIDED_SHAPE = (70, 24)
    GPU_SHAPE = (80, 3072)
    KERNELS = ("_bias_gelu_fwd_kernel", "_bias_gelu_bwd_kernel", "_bias_gelu_bwd_sum_kernel")
    function = staticmethod(bias_gelu)

    def sample(self, shape, dtypes=(F32, F32), seed=0):  # type: ignore[no-untyped-def]
        x, bias = seeded(shape[0] * 10_000 + shape[1] + seed, shape, shape[1:])
        return [(3 * x).to(dtypes[0]), bias.to(dtypes[1])]  # x reaches beyond the bend of GELU

    @staticmethod
    def plain(x: Tensor, bias: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, F32)
        return F.gelu(x.to(wide) + bias.to(wide), approximate="tanh").to(x.dtype)

    @staticmethod
    def wrong_version(x: Tensor, bias: Tensor) -> Tensor:
        return F.gelu(x + bias)

    def tolerance(self, backend, inputs, exact):  # type: ignore[no-untyped-def]
        return {"largest": 1.0}

    def draw_shape(self, stream: random.Random) -> tuple[int, int]:
        return stream.choice([1, 15, 16, 17, 257, stream.randrange(300)]), stream.randrange(1, 300)

    def layouts(self) -> dict[str, list[Tensor]]:
        wide, _ = self.sample((12, 10), (F64, F64))
        views = {
            "transposed": wide.t(),
            "part of the rows": wide[::3, 2:9],
            "every second": wide[:, ::2],
            "one row": wide[:1].expand(6, 10),
            "one column": wide[:, :1].expand(12, 4),
        }
        shapes = ((0, 4), (4, 0), (1, 1), (1, 5), (5, 1), (3, 4), (70, 2))
        return {
            **{str(shape): self.sample(shape, (F64, F64)) for shape in shapes},
            **{name: [view, self.sample((1, view.shape[1]), (F64, F64))[1]] for name, view in views.items()},
            "one bias": [wide, torch.ones(1, dtype=F64).expand(10)],
        }

    def wrong_arguments(self):  # type: ignore[no-untyped-def]
        x, bias = self.sample((3, 4))
        return {
            "bias_gelu: x: expected a torch.Tensor, got list": ([1.0], bias),
            "bias_gelu: x: expected dtype float32 or .*, got int64": (x.long(), bias),
            r"bias_gelu: x: expected shape \[N, F\], got \[4\]": (x[0], bias),
            "bias_gelu: bias: expected dtype float32, got bfloat16": (x, bias.bfloat16()),
            "bias_gelu: bias: expected dtype bfloat16 or float32, got float16": (x.bfloat16(), bias.half()),
            r"bias_gelu: bias: expected shape \[4\], got \[3\]": (x, bias[:3]),
            "bias_gelu: bias: expected device": (x, bias.to("meta")),
        }


inputs = TestBiasGelu().inputs


def test_the_backward_function(backend: Backend) -> None:
    for dtypes in TestBiasGelu.DTYPES:
        x, bias = (t.requires_grad_() for t in inputs(backend, (17, 40), dtypes))
        dy = torch.randn_like(x)
        gradients = torch.autograd.grad(bias_gelu(x, bias), (x, bias), dy)
        *ours, again = bias_gelu_backward(dy, x.detach(), bias.detach())
        assert equal(ours, gradients)
        assert torch.equal(again, bias_gelu(x, bias))
    x, bias = TestBiasGelu().sample((3, 4))
    wrong = TestBiasGelu().wrong_arguments()
    prefixed = {text.replace("bias_gelu:", "bias_gelu_backward:"): (x, *arguments) for text, arguments in wrong.items()}
    check_errors(bias_gelu_backward, prefixed)
    with pytest.raises(TypeError, match="bias_gelu_backward: dy: expected dtype float32, got float64"):
        bias_gelu_backward(x.double(), x, bias)
    with pytest.raises(ValueError, match=r"bias_gelu_backward: dy: expected shape \[3, 4\], got \[2, 4\]"):
        bias_gelu_backward(x[:2], x, bias)


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_the_last_rows_count_in_the_bias_gradient(backend: Backend, half: torch.dtype) -> None:
    rows = 600 if backend.is_interpreter else 5000
    x, bias = torch.full((rows, 3), 20.0).to(backend.device, half), torch.zeros(3).to(backend.device, half)
    dbias = bias_gelu_backward(torch.ones_like(x), x, bias)[1]
    torch.testing.assert_close(dbias, torch.full_like(dbias, rows), rtol=torch.finfo(half).eps, atol=0.0)


def test_rows_are_independent(backend: Backend) -> None:
    for dtypes in TestBiasGelu.DTYPES:
        x, bias = inputs(backend, (17 if backend.is_interpreter else 70, 24), dtypes)
        dy = torch.ones_like(x)
        y, dx = bias_gelu(x, bias), bias_gelu_backward(dy, x, bias)[0]
        assert torch.equal(bias_gelu(x[3:4], bias), y[3:4])
        x[3] = torch.nan
        x[5] = torch.inf
        others = [row for row in range(len(x)) if row not in (3, 5)]
        changed, dchanged = bias_gelu(x, bias), bias_gelu_backward(dy, x, bias)[0]
        assert torch.equal(changed[others], y[others])
        assert torch.equal(dchanged[others], dx[others])
        assert changed[3].isnan().all()
        assert dchanged[3].isnan().all()


def test_an_infinite_bias_changes_its_column_only(backend: Backend) -> None:
    x, bias = inputs(backend, (3, 20), (F32, F32))
    bias[7] = torch.inf
    dbias = bias_gelu_backward(torch.ones_like(x), x, bias)[1]
    assert dbias[7].isnan()
    dbias[7] = 0
    assert dbias.isfinite().all()


@pytest.mark.parametrize("dtype", [F32, *HALVES], ids=str)
def test_extreme_values_as_in_plain_torch(backend: Backend, dtype: torch.dtype) -> None:
    values = [0.0, -0.0, 1e4, -1e4, 30.0, -30.0, torch.inf, -torch.inf, torch.nan]
    x = torch.tensor([values], device=backend.device).to(dtype)
    bias = torch.zeros(len(values), device=backend.device, dtype=dtype)
    torch.testing.assert_close(bias_gelu(x, bias), TestBiasGelu.plain(x, bias), equal_nan=True)
    wide = x.float().requires_grad_()
    (dx,) = torch.autograd.grad(TestBiasGelu.plain(wide, bias).sum(), wide)
    torch.testing.assert_close(bias_gelu_backward(torch.ones_like(x), x, bias)[0], dx.to(dtype), equal_nan=True)


def test_far_from_the_bend(backend: Backend) -> None:
    x = torch.tensor([[-1e30, -1e4, -100.0, -12.0, -9.5, 9.5, 100.0, 1e4, 1e18, torch.nan]], device=backend.device)
    zero = torch.zeros(10, device=backend.device)
    y, (dx, _, _) = bias_gelu(x, zero), bias_gelu_backward(torch.ones_like(x), x, zero)
    assert torch.equal(y[0, 5:9], x[0, 5:9])
    assert (y[0, :5].abs() < 1e-18).all()
    assert y[0, 9].isnan()
    if backend.name == "cpu":
        torch.testing.assert_close(dx[0, 5:9], torch.ones_like(dx[0, 5:9]), rtol=0.0, atol=1e-6)
        assert (dx[0, :5].abs() < 1e-18).all()
    assert dx[0, 9].isnan()


def test_programs_of_few_and_of_many_rows(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    from bgpt_fast.kernels.bias_gelu import triton_kernels

    for share in (1, 3):
        monkeypatch.setattr(triton_kernels, "_rows_a_program", lambda N, width, tile, share=share: share * tile.rows)
        TestBiasGelu().check(backend, inputs(backend, (40, 128), (F32, F32)))


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_every_instruction_set_and_number_of_threads_gives_the_same_bits(dtype: torch.dtype) -> None:
    for N, width in ((1, 1), (3, 17), (64, 33), (65, 100), (300, 257)):
        x, bias = TestBiasGelu().sample((N, width))
        x, dy = x.to(dtype), seeded(2, (N, width))[0].to(dtype)
        outputs = []
        for isa in (0, 1, 2):
            for threads in (1, 3):
                y, dx, dbias = torch.empty_like(x), torch.empty_like(x), torch.empty(width)
                shape = (N, width, dtype == BF16, threads, isa)
                _C.bias_gelu(x.data_ptr(), bias.data_ptr(), y.data_ptr(), *shape)
                again = torch.empty_like(x)
                pointers = [t.data_ptr() for t in (dy, x, bias, dx, again, dbias)]
                _C.bias_gelu_backward(*pointers, *shape)
                assert torch.equal(again, y)
                outputs.append((y, dx, dbias))
        assert all(equal(one, outputs[0]) for one in outputs[1:])
        alone = bias_gelu(x[N // 2 : N // 2 + 1], bias)
        assert torch.equal(alone, outputs[0][0][N // 2 : N // 2 + 1])
