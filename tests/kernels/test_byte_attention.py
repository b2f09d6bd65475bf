"""byte_attention and byte_attention_projected: causality, independence of patches, the projection without gradients.

What every op must pass is in OpTests.
"""

from __future__ import annotations

import math
import random

import pytest
import torch
from support.ops import (
    BF16,
    F16,
    F32,
    F64,
    REPORTED_BY_NUMPY,
    Backend,
    OpTests,
    assert_accurate,
    equal,
    is_float,
    random_gradients,
    results,
    seeded,
    threads,
)
from torch import Tensor
from torch.nn import functional as F

from bgpt_fast.kernels.byte_attention import op
from bgpt_fast.kernels.byte_attention.op import byte_attention, byte_attention_projected
from bgpt_fast.kernels.byte_attention.reference import byte_attention_reference

OPS = op.OPS
pytestmark = pytest.mark.filterwarnings(REPORTED_BY_NUMPY)
Shape = tuple[int, int, int, int]


class TestByteAttention(OpTests):
    NAME = "byte_attention"
    DTYPES = (F32, BF16, F16)
    # T, S, H, d: none, one of everything, the lengths around 16, more than a tile of patches and of heads, each padding
    # and each tile.
    SHAPES = (
        (0, 16, 2, 8),
        (1, 1, 1, 1),
        (5, 16, 1, 64),
        (3, 16, 3, 32),
        (3, 15, 5, 16),
        (2, 17, 1, 24),
        (1, 33, 1, 20),
        (5, 16, 1, 128),
    )
    # The widths for which the CPU has loops of their own, odd ones, and patches and heads that no kernel takes.
    LARGE_SHAPES = (
        (9, 16, 4, 16),
        (5, 16, 3, 64),
        (7, 8, 2, 16),
        (300, 8, 4, 8),
        (3, 17, 2, 5),
        (2, 64, 1, 33),
        (2, 65, 1, 8),
        (3, 16, 1, 200),
    )
    STRIDED_SHAPE = (3, 8, 4, 8)
    GPU_SHAPE = (33, 16, 12, 64)
    KERNELS = ("_byte_attention_fwd_kernel", "_byte_attention_bwd_kernel")
    LEAST_CASES = 51
    function = staticmethod(byte_attention)
    plain = staticmethod(byte_attention_reference)

    def sample(self, shape: Shape, dtypes: torch.dtype = F32, seed: int = 0) -> list[Tensor]:
        T, S, H, d = shape
        return [seeded(sum(shape) + seed, (T, S, 3, H, d))[0].to(dtypes)]

    @staticmethod
    def wrong_version(qkv: Tensor) -> Tensor:
        return byte_attention(qkv * 1.001)

    def draw_shape(self, stream: random.Random) -> Shape:
        S = stream.choice([1, 8, 15, 16, 17, stream.randrange(1, 65)])
        d = stream.choice([1, 16, 17, stream.randrange(1, 70)])
        return stream.choice([0, 1, 7, 9, 17]), S, stream.randrange(1, 6), d

    def layouts(self) -> dict[str, list[Tensor]]:
        def qkv(*shape: int) -> Tensor:
            return self.sample(shape, F64)[0]  # type: ignore[arg-type]

        views = {
            "plain": qkv(2, 3, 2, 4),
            "empty": qkv(0, 4, 2, 3),
            "one of everything": qkv(1, 1, 1, 1),
            "one patch": qkv(1, 5, 2, 3),
            "one byte": qkv(3, 1, 2, 3),
            "one head": qkv(2, 4, 1, 5),
            "one channel": qkv(2, 4, 3, 1),
            "more than 16 bytes": qkv(1, 17, 1, 2),
            "patches and bytes transposed": qkv(4, 2, 2, 3).transpose(0, 1),
            "heads and channels transposed": qkv(2, 3, 4, 2).transpose(3, 4),
            "every second patch": qkv(5, 3, 2, 3)[::2],
            "later heads": qkv(2, 3, 4, 3)[:, :, :, 2:],
            "stride 0": qkv(1, 3, 2, 3).expand(3, -1, -1, -1, -1),
        }
        return {name: [view] for name, view in views.items()}

    def wrong_arguments(self):  # type: ignore[no-untyped-def]
        (qkv,) = self.sample((2, 4, 2, 8))
        return {
            "expected a torch.Tensor, got NoneType": (None,),
            "expected dtype float32 or bfloat16 or float16 or float64, got int64": (qkv.long(),),
            r"expected shape \[T, S, 3, H, d\], got \[2, 4, 3, 2\]": (qkv[..., 0],),
            r"got \[2, 4, 2, 2, 8\]": (qkv[:, :, :2],),
            "expected S, H, d of at least 1": (qkv[..., :0],),
            r"expected shape \[T, S, 3, H, d\], got \[1, 2, 4, 3, 2, 8\]": (qkv[None],),
            "expected dtype .*, got complex64": (qkv.to(torch.complex64),),
        }


class TestByteAttentionProjected(OpTests):
    NAME, FOLDER = "byte_attention_projected", "byte_attention"
    DTYPES = (F32, BF16, F16)
    # Widths that are no multiple of the projection's block, and as above.
    SHAPES = ((0, 16, 2, 8), (1, 1, 1, 1), (9, 16, 1, 64), (3, 16, 3, 32), (9, 15, 3, 20), (2, 8, 5, 16))
    LARGE_SHAPES = ((9, 16, 2, 64), (5, 8, 3, 32), (3, 17, 2, 5), (2, 65, 1, 8))
    STRIDED_SHAPE = (9, 16, 2, 16)
    GPU_SHAPE = (9, 16, 12, 64)
    KERNELS = ("_byte_attention_fwd_kernel", "_byte_attention_bwd_kernel")
    HAS_GRADIENT = False
    function = staticmethod(byte_attention_projected)
    # With gradients it is the library's matrix product, which may round otherwise for other strides and threads.
    test_strides_are_followed = None  # type: ignore[assignment]
    test_threads_change_nothing = None  # type: ignore[assignment]

    def sample(self, shape: Shape, dtypes: torch.dtype = F32, seed: int = 0) -> list[Tensor | int]:  # type: ignore[override]
        """x, weight, bias, heads."""
        T, S, H, d = shape
        x, weight, bias = seeded(sum(shape) + seed, (T, S, H * d), (H * d, 3 * H * d), (3 * H * d,))
        return [x.to(dtypes), (weight / math.sqrt(H * d)).to(dtypes), bias.to(dtypes), H]

    @staticmethod
    def plain(x: Tensor, weight: Tensor, bias: Tensor, heads: int) -> Tensor:
        return byte_attention_reference(project(x, weight, bias, heads))

    @staticmethod
    def wrong_version(x: Tensor, weight: Tensor, bias: Tensor, heads: int) -> Tensor:
        return byte_attention_projected(x + 0.001 * (x - x.detach()), weight, bias, heads)  # a wrong gradient alone

    def tolerance(self, backend, inputs, exact):  # type: ignore[no-untyped-def]
        eps = torch.finfo(inputs[0].dtype).eps
        return {"floors": [4 * eps * term for term in largest_sums(*inputs)]}

    def draw_shape(self, stream: random.Random) -> Shape:
        return TestByteAttention().draw_shape(stream)

    def layouts(self) -> dict[str, list[Tensor | int]]:  # type: ignore[override]
        def arguments(*shape: int) -> list[Tensor | int]:
            return self.sample(shape, F64)  # type: ignore[arg-type]

        (x, weight, bias, _), wide = arguments(4, 3, 2, 3), arguments(4, 3, 4, 3)
        return {
            "plain": [x, weight, bias, 2],
            "empty": arguments(0, 4, 2, 3),
            "one of everything": [*arguments(1, 1, 2, 1)],
            "one patch": arguments(1, 5, 2, 3),
            "one byte": arguments(3, 1, 2, 3),
            "one channel": arguments(2, 4, 2, 1),
            "more than 16 bytes": arguments(1, 17, 2, 2),
            "x transposed": [x.transpose(0, 1), weight, bias, 2],  # type: ignore[union-attr]
            "x sliced": [wide[0][::2, :, ::2], weight, bias, 2],  # type: ignore[index]
            "x of stride 0": [x[:1].expand(3, -1, -1), weight, bias, 2],  # type: ignore[index]
            "weight transposed": [x, weight.t().contiguous().t(), bias, 2],  # type: ignore[union-attr]
            "weight sliced": [x, wide[1][::2, : 3 * 6], bias, 2],  # type: ignore[index]
            "bias of stride 0": [x, weight, bias[:1].expand(18), 2],  # type: ignore[index]
        }

    def wrong_arguments(self):  # type: ignore[no-untyped-def]
        x, weight, bias, _ = self.sample((2, 4, 2, 8))
        return {
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

    def test_values_without_gradients(self, backend: Backend, dtypes: torch.dtype) -> None:
        for shape in (*self.SHAPES, *(() if backend.is_interpreter else self.LARGE_SHAPES)):
            x, weight, bias, H = self.inputs(backend, shape, dtypes)
            y = byte_attention_projected(x, weight, bias, H)
            plain = byte_attention_reference(project(x, weight, bias, H))
            if backend.name == "cpu":
                exact = byte_attention_reference(project(x.double(), weight.double(), bias.double(), H))
            else:  # its qkv is rounded to x's dtype, and exact from there on
                qkv = project(x.double(), weight.double(), bias.double(), H).to(dtypes)
                exact = byte_attention_reference(qkv.double())
            assert y.is_contiguous()
            assert_accurate([y], [plain], [exact])


def project(x: Tensor, weight: Tensor, bias: Tensor, heads: int) -> Tensor:
    return F.linear(x, weight.t(), bias).unflatten(2, (3, heads, x.shape[2] // heads))


def largest_sums(x: Tensor, weight: Tensor, bias: Tensor, heads: int) -> list[float]:
    """The largest result, and for the gradients of x, weight and bias the largest sum of their terms' sizes."""
    if x.numel() == 0:
        return [0.0] * 4
    x, weight, bias = x.double(), weight.double(), bias.double()
    qkv = project(x, weight, bias, heads)
    y = byte_attention_reference(qkv)
    dy = random_gradients([y])[0].abs()
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


attention_inputs, projected_inputs = TestByteAttention().inputs, TestByteAttentionProjected().inputs


def test_float32_values_and_gradients_on_the_cpu() -> None:
    for shape in (*TestByteAttention.SHAPES, *TestByteAttention.LARGE_SHAPES):
        (qkv,) = TestByteAttention().sample(shape)
        ours = results(byte_attention, [qkv])
        exact = results(byte_attention_reference, [qkv.double()], random_gradients(ours.outputs))
        for got, want, atol in zip(ours.all, exact.all, (1e-6, 1e-5), strict=True):
            torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=atol)


def test_the_tolerance_catches_a_wrong_mask(backend: Backend) -> None:
    (qkv,) = attention_inputs(backend, (5, 16, 1, 64))
    with pytest.raises(AssertionError, match="error"):
        TestByteAttention().check(backend, [qkv], lambda qkv: byte_attention(qkv.flip(1)).flip(1).contiguous())


def test_patches_are_independent(backend: Backend) -> None:
    T = 9 if backend.is_interpreter else 800
    for dtype in TestByteAttention.DTYPES:
        (qkv,), (dy,) = attention_inputs(backend, (T, 16, 2, 16), dtype), seeded(2, (T, 16, 2, 16))
        x, weight, bias, H = projected_inputs(backend, (T, 16, 2, 16), dtype)
        dy = dy.to(qkv)

        def run(patches: slice, qkv=qkv, dy=dy, x=x, weight=weight, bias=bias, H=H) -> list[Tensor]:  # type: ignore[no-untyped-def]
            both = results(byte_attention, [qkv[patches]], [dy[patches]]).all
            return [*both, byte_attention_projected(x[patches], weight, bias, H)]

        together, alone = run(slice(None)), run(slice(3, 5))
        count = 2 if backend.name == "cpu" else 3  # on the CPU the projection is the library's product
        assert equal([a[3:5] for a in together[:count]], alone[:count])
        if backend.name == "cpu":
            with threads(3):
                assert equal(run(slice(None))[:2], together[:2])
        qkv[0, 0] += 0.125  # the negative control: the first byte's change reaches its own patch, and no other
        changed = run(slice(None))
        assert not torch.equal(changed[0][0], together[0][0])
        assert torch.equal(changed[0][1:], together[0][1:])
        others = [row for row in range(1, T) if row not in (3, 5)]
        qkv[3], qkv[5, 4, 2, 0], dy[3, 2], dy[5] = torch.nan, torch.inf, torch.nan, -torch.inf
        x[3], x[5, 4, 7] = torch.nan, torch.inf
        for before, after in list(zip(together, run(slice(None)), strict=True))[:count]:
            assert torch.equal(after[others], before[others])
            assert after[3].isnan().all()
            assert not after[5].isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
def test_later_bytes_are_never_seen(backend: Backend, bad: float) -> None:
    for dtype in TestByteAttention.DTYPES:
        (qkv,) = attention_inputs(backend, (3, 16, 2, 16), dtype)
        if dtype == F16 and backend.name == "cpu":
            continue  # plain torch, in which NaN of later bytes reaches earlier ones
        before = byte_attention(qkv)
        for part in range(3):
            changed = qkv.clone()
            changed[1, 9, part, 0] = bad
            y = byte_attention(changed)
            assert torch.equal(y[1, :9], before[1, :9])
            assert torch.equal(y[:, :, 1], before[:, :, 1])
            assert torch.equal(y[::2], before[::2])
            assert not torch.equal(y[1, 9, 0], before[1, 9, 0])
            if part == 2 and backend.name != "cpu":
                assert y[1, 9:, 0].isnan().all()
        qkv[:, 9:] = torch.nan
        assert torch.equal(byte_attention(qkv)[:, :9], before[:, :9])
        assert byte_attention(qkv)[:, 9:].isnan().all()


def test_extreme_scores_as_in_plain_torch(backend: Backend) -> None:
    (qkv,) = attention_inputs(backend, (3, 16, 2, 8))
    qkv[:, :, 0] *= 1e4
    plain, exact = byte_attention_reference(qkv), byte_attention_reference(qkv.double())
    assert_accurate([byte_attention(qkv)], [plain], [exact])
    if backend.name == "cpu":
        qkv[1, 0, 2] = math.inf
        expected = byte_attention_reference(qkv)
        torch.testing.assert_close(byte_attention(qkv), expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    qkv[0, 3, 0] = math.inf
    if backend.name != "cpu":
        assert torch.equal(byte_attention(qkv).isnan(), byte_attention_reference(qkv).isnan())


def test_the_projection_takes_a_float32_bias(backend: Backend) -> None:
    x, weight, bias, H = projected_inputs(backend, (3, 8, 2, 16), BF16)
    y = byte_attention_projected(x, weight, bias, H)
    assert torch.equal(byte_attention_projected(x, weight, bias.float(), H), y)
    for strided in (weight.t().contiguous().t(), torch.cat([weight, weight], dim=1)[:, : weight.shape[1]]):
        if backend.name != "cpu":
            columns = x.transpose(0, 1).contiguous().transpose(0, 1)
            assert torch.equal(byte_attention_projected(columns, strided, bias, H), y)
    wide = bias.float().requires_grad_()
    (dbias,) = torch.autograd.grad(byte_attention_projected(x, weight, wide, H).sum(), wide)
    assert dbias.dtype == F32


def test_the_projected_op_itself_has_no_gradient() -> None:
    leaves = [t.requires_grad_() if is_float(t) else t for t in TestByteAttentionProjected().sample((3, 4, 2, 8))]
    with pytest.raises(RuntimeError, match="has no gradient"):
        torch.ops.bgpt_fast.byte_attention_projected(*leaves).sum().backward()
