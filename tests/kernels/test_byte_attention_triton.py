"""byte_attention's Triton kernels: values, gradients, and what NaN and infinity reach."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from support.interpreter import DEVICE  # isort: skip  # before triton
from bgpt_fast.kernels.byte_attention.reference import byte_attention_backward_reference, byte_attention_reference
from bgpt_fast.kernels.byte_attention.triton_kernels import (
    byte_attention_backward,
    byte_attention_forward,
    byte_attention_projected_forward,
    compile_cases,
)

# The interpreter's numpy warns of NaN and infinity.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# None, one of everything, the lengths around 16, more than a tile of patches and of heads, each padding and each tile.
SHAPES = [
    (0, 16, 2, 8),
    (1, 1, 1, 1),
    (5, 16, 1, 64),
    (3, 16, 3, 32),
    (3, 15, 5, 16),
    (2, 17, 1, 24),
    (1, 33, 1, 20),
    (5, 16, 1, 128),
]
# T, S, H, d of the projection; widths that are no multiple of its block.
PROJECTED = [(0, 16, 2, 8), (1, 1, 1, 1), (9, 16, 1, 64), (3, 16, 3, 32), (9, 15, 3, 20), (2, 8, 5, 16)]


def sample(T: int, S: int, H: int, d: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(T + S + H + d)
    qkv, dy = (torch.randn(shape, generator=generator) for shape in ((T, S, 3, H, d), (T, S, H, d)))
    return qkv.to(DEVICE, dtype), dy.to(DEVICE, dtype)


def projected_sample(
    T: int, S: int, H: int, d: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    D = H * d
    generator = torch.Generator().manual_seed(T + S + D)
    x, bias = (torch.randn(shape, generator=generator) for shape in ((T, S, D), (3 * D,)))
    weight = torch.randn(D, 3 * D, generator=generator) / math.sqrt(D)
    return x.to(DEVICE, dtype), weight.to(DEVICE, dtype), bias.to(DEVICE)


def project(x: Tensor, weight: Tensor, bias: Tensor, heads: int) -> Tensor:
    return (x @ weight + bias.to(x.dtype)).unflatten(2, (3, heads, x.shape[2] // heads))


def assert_close(got: Tensor, plain: Tensor, want: Tensor) -> None:
    """Error at most twice the plain version's, and 4 ulps of the largest result."""
    assert (got.shape, got.dtype) == (plain.shape, plain.dtype)
    assert got.is_contiguous()
    assert got.isfinite().all()
    if got.numel():
        floor = 4 * torch.finfo(got.dtype).eps * want.abs().max()
        assert (got - want).abs().max() <= 2 * (plain - want).abs().max() + floor


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    qkv, dy = sample(*shape, dtype)
    exact = qkv.double()
    assert_close(
        byte_attention_forward(qkv), byte_attention_reference(qkv).contiguous(), byte_attention_reference(exact)
    )
    ours, same = byte_attention_backward(dy, qkv), byte_attention_backward_reference(dy, qkv)
    want = byte_attention_backward_reference(dy.double(), exact)
    for part in range(3):
        assert_close(*(t[:, :, part].contiguous() for t in (ours, same, want)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", PROJECTED, ids=str)
def test_projected_values(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    x, weight, bias = projected_sample(*shape, dtype)
    H = shape[2]
    same = byte_attention_reference(project(x, weight, bias, H)).contiguous()
    # Its qkv is rounded to x's dtype and so is the bias: exact from there on.
    qkv = project(x.double(), weight.double(), bias.to(dtype).double(), H).to(dtype).double()
    assert_close(byte_attention_projected_forward(x, weight, bias, H), same, byte_attention_reference(qkv))


def test_the_bound_catches_a_wrong_mask() -> None:
    qkv, _ = sample(5, 16, 1, 64)
    wrong = byte_attention_reference(qkv.flip(1)).flip(1).contiguous()
    with pytest.raises(AssertionError):
        assert_close(wrong, byte_attention_reference(qkv).contiguous(), byte_attention_reference(qkv.double()))


def test_strides_and_a_bias_of_the_inputs_dtype() -> None:
    qkv, dy = sample(3, 8, 4, 8)
    turned, dy_turned = (
        qkv.transpose(0, 4).contiguous().transpose(0, 4),
        dy.transpose(0, 3).contiguous().transpose(0, 3),
    )
    assert torch.equal(byte_attention_forward(turned), byte_attention_forward(qkv))
    assert torch.equal(byte_attention_backward(dy_turned, turned), byte_attention_backward(dy, qkv))
    one = dy[:1, :1].expand_as(dy)
    assert torch.equal(byte_attention_backward(one, qkv), byte_attention_backward(one.contiguous(), qkv))
    x, weight, bias = projected_sample(3, 8, 2, 16, torch.bfloat16)
    y = byte_attention_projected_forward(x, weight, bias, 2)
    columns = [x.transpose(0, 1).contiguous().transpose(0, 1), weight.t().contiguous().t()]
    assert torch.equal(byte_attention_projected_forward(*columns, bias, 2), y)
    wide = torch.cat([weight, weight], dim=1)[:, : weight.shape[1]]
    assert torch.equal(byte_attention_projected_forward(x, wide, bias.bfloat16(), 2), y)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_patch_does_not_depend_on_its_neighbours(dtype: torch.dtype) -> None:
    qkv, dy = sample(9, 16, 2, 16, dtype)
    x, weight, bias = projected_sample(9, 16, 2, 16, dtype)

    def run(patches: slice) -> list[Tensor]:
        return [
            byte_attention_forward(qkv[patches]),
            byte_attention_backward(dy[patches], qkv[patches]),
            byte_attention_projected_forward(x[patches], weight, bias, 2),
        ]

    together = run(slice(None))
    assert all(torch.equal(a[3:5], b) for a, b in zip(together, run(slice(3, 5)), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(together, run(slice(None)), strict=True))
    others = [0, 1, 2, 4, 6, 7, 8]
    qkv[3], qkv[5, 4, 2, 0], dy[3, 2], dy[5] = torch.nan, torch.inf, torch.nan, -torch.inf
    x[3], x[5, 4, 7] = torch.nan, torch.inf
    spoiled = run(slice(None))
    for before, after in zip(together, spoiled, strict=True):
        assert torch.equal(after[others], before[others])
        assert after[3].isnan().all()  # the negative control
        assert not after[5].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
def test_later_bytes_are_never_seen(dtype: torch.dtype, bad: float) -> None:
    qkv, _ = sample(3, 16, 2, 16, dtype)
    before = byte_attention_forward(qkv)
    for part in range(3):
        changed = qkv.clone()
        changed[1, 9, part, 0] = bad
        y = byte_attention_forward(changed)
        assert torch.equal(y[1, :9], before[1, :9])
        assert torch.equal(y[:, :, 1], before[:, :, 1])
        assert torch.equal(y[::2], before[::2])
        assert not torch.equal(y[1, 9, 0], before[1, 9, 0])
        if part == 2:
            assert y[1, 9:, 0].isnan().all()


def test_large_scores_as_in_plain_torch() -> None:
    qkv, _ = sample(2, 16, 1, 16)
    qkv[:, :, 0] *= 1e4
    assert_close(byte_attention_forward(qkv), byte_attention_reference(qkv), byte_attention_reference(qkv.double()))
    qkv[0, 3, 0] = math.inf
    ours, same = byte_attention_forward(qkv), byte_attention_reference(qkv)
    assert torch.equal(ours.isnan(), same.isnan())


def test_compile_cases_have_names_of_their_own() -> None:
    cases = compile_cases()
    assert len({case.name for case in cases}) == len(cases) > 50
