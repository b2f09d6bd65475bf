"""invariant_linear: equal to float64, and a row's bits depend on that row alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.ops import BF16, DEVICE, F32, DrawnTests, assert_accurate, check_cases, needs_gpu
from torch import Tensor
from torch.nn import functional as F

from bgpt_fast import BGPT, BGPTConfig
from bgpt_fast.generation.decoders import cuda, cuda_layers
from bgpt_fast.kernels.cached_attention.triton_kernels import cached_attention_forward
from bgpt_fast.kernels.invariant_linear import triton_kernels
from bgpt_fast.kernels.invariant_linear.op import invariant_linear
from bgpt_fast.kernels.invariant_linear.reference import invariant_linear_reference
from bgpt_fast.kernels.invariant_linear.triton_kernels import compile_cases, invariant_linear_forward

# (M, K, N): one row, rows around the switch from streaming to tiles (16) and around a tile's rows (4, 6, 8); links
# around the unrolling (4, 8) and the block (256); columns around vectors (8, 16), tiles (48) and blocks (480).
SHAPES = [
    (1, 1, 1),
    (1, 9, 17),
    (2, 8, 48),
    (3, 257, 15),
    (15, 5, 33),
    (16, 64, 257),
    (17, 256, 47),
    (20, 300, 49),
    (23, 255, 8),
    (41, 513, 7),
    (24, 3, 500),
    (64, 96, 96),
]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def sample(M: int, K: int, N: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    x, weight, bias = (torch.randn(shape, generator=stream) for shape in ((M, K), (K, N), (N,)))
    return x, weight, bias


def in_order(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The documented order of sums, one product at a time; float64 is exact for factors of few bits, and rounding once
    is what FMA does."""
    y = torch.zeros(x.shape[0], weight.shape[1]) if bias is None else bias.expand(x.shape[0], -1)
    for block in torch.arange(x.shape[1]).split(256):
        total = torch.zeros_like(y)
        for k in block:
            total = (total.double() + x[:, k, None].double() * weight[k].double()).float()
        y = y + total
    return y


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("isa", [0, 1, 2])
def test_sums_in_the_documented_order(shape: tuple[int, int, int], isa: int) -> None:
    x, weight, bias = (t.bfloat16().float() for t in sample(*shape))
    torch.testing.assert_close(invariant_linear(x, weight, bias, isa=isa), in_order(x, weight, bias), rtol=0, atol=0)
    torch.testing.assert_close(invariant_linear(x, weight, isa=isa), in_order(x, weight, None), rtol=0, atol=0)


def test_another_order_is_noticed() -> None:
    x, weight, bias = (t.bfloat16().float() for t in sample(4, 300, 32))
    assert not torch.equal(invariant_linear(x, weight, bias), in_order(x.flip(1), weight.flip(0), bias))


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_instruction_sets_agree(shape: tuple[int, int, int], gelu: bool) -> None:
    arguments = sample(*shape, seed=1)
    portable = invariant_linear(*arguments, gelu=gelu, isa=0)
    for isa in (1, 2):
        torch.testing.assert_close(invariant_linear(*arguments, gelu=gelu, isa=isa), portable, rtol=0, atol=0)


def rows_are_independent(linear: Callable[[Tensor, Tensor, Tensor], Tensor]) -> bool:
    """Whether each row has the same bits in batches of several sizes and at every index."""
    x, weight, bias = sample(70, 288, 160, seed=2)
    whole = linear(x, weight, bias)
    singles = torch.cat([linear(x[m : m + 1], weight, bias) for m in range(len(x))])
    same = torch.equal(whole, singles)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    same &= torch.equal(linear(x[order], weight, bias), whole[order])
    for size in (2, 3, 7, 16, 17, 64):
        same &= torch.equal(torch.cat([linear(part, weight, bias) for part in x.split(size)]), whole)
    return same


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("isa", [1, 2])
def test_rows_are_independent(gelu: bool, threads: int, isa: int) -> None:
    torch.set_num_threads(threads)
    assert rows_are_independent(lambda x, weight, bias: invariant_linear(x, weight, bias, gelu=gelu, isa=isa))


def test_dependence_on_the_batch_is_noticed() -> None:
    def split_where_rows_are_few(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The usual split-K: with few rows, the two halves of the sum run side by side."""
        if len(x) > 4:
            return invariant_linear(x, weight, bias)
        half = x.shape[1] // 2
        return invariant_linear(x[:, :half], weight[:half], bias) + invariant_linear(x[:, half:], weight[half:])

    assert not rows_are_independent(split_where_rows_are_few)


@pytest.mark.parametrize("gelu", [False, True])
def test_bfloat16_is_rounded_once(gelu: bool) -> None:
    x, weight, bias = (t.bfloat16() for t in sample(30, 300, 40, seed=8))
    assert rows_are_independent(
        lambda x, weight, bias: invariant_linear(x.bfloat16(), weight.bfloat16(), bias, gelu=gelu)
    )
    y = invariant_linear(x, weight, bias, gelu=gelu)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, invariant_linear(x, weight, bias.float(), gelu=gelu))
    exact = invariant_linear_reference(x.double(), weight.double(), bias.double(), gelu)
    plain = (invariant_linear_reference(x, weight, bias, gelu) - exact).abs().max()
    assert (y - exact).abs().max() <= 2 * plain
    default = torch.ops.bgpt_fast.invariant_linear(x.to("meta"), weight.to("meta"), None, gelu, 2)
    assert (default.shape, default.dtype) == (y.shape, y.dtype)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_are_independent_on_a_gpu(dtype: torch.dtype) -> None:
    def on_gpu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x, weight, bias = (t.to("cuda", dtype) for t in (x, weight.t().contiguous(), bias))
        return invariant_linear(x, weight.t(), bias, gelu=True).cpu()

    assert rows_are_independent(on_gpu)
    x, weight, bias = sample(70, 288, 160, seed=2)
    exact = invariant_linear_reference(*(t.to(dtype).double() for t in (x, weight, bias)), True)
    plain = invariant_linear_reference(*(t.to("cuda", dtype) for t in (x, weight, bias)), True).cpu()
    rounding = 4 * torch.finfo(torch.float32).eps * exact.abs().max()
    assert (on_gpu(x, weight, bias) - exact).abs().max() <= 2 * (plain - exact).abs().max() + rounding


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_threads_change_nothing(rows: int) -> None:
    x, weight, bias = sample(rows, 512, 1100, seed=3)
    torch.set_num_threads(1)
    expected = invariant_linear(x, weight, bias, gelu=True)
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        torch.testing.assert_close(invariant_linear(x, weight, bias, gelu=True), expected, rtol=0, atol=0)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES, (4, 3072, 32), (32, 3072, 32)], ids=str)
def test_error_is_at_most_twice_plain_float32(shape: tuple[int, int, int], gelu: bool) -> None:
    x, weight, bias = sample(*shape, seed=4)
    exact = invariant_linear_reference(x.double(), weight.double(), bias.double(), gelu)
    plain = (invariant_linear_reference(x, weight, bias, gelu) - exact).abs().max()
    rounding = 4 * torch.finfo(torch.float32).eps * exact.abs().max()
    assert (invariant_linear(x, weight, bias, gelu=gelu) - exact).abs().max() <= 2 * plain + rounding


class TestInvariantLinear(DrawnTests):
    NAME = "invariant_linear"
    function = staticmethod(lambda x, weight, bias, gelu: invariant_linear(x, weight, bias, gelu=gelu))
    plain = staticmethod(invariant_linear_reference)
    wrong_version = staticmethod(lambda x, weight, bias, gelu: invariant_linear(x, weight, bias, gelu=gelu) * 1.0001)

    def draw(self, stream: random.Random) -> list[Any]:
        M, K, N = (stream.choice([1, 2, 15, 16, 17, 48, 257, stream.randint(1, 300)]) for _ in range(3))
        return [*sample(M, K, N, seed=stream.randrange(2**30)), stream.random() < 0.5]


def test_gelu_over_the_range_of_float32() -> None:
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, 1e-30, -1e-30, 1e4, -1e4, 3e38, -3e38])])[:, None]
    one = torch.ones(1, 1)
    y = invariant_linear(x, one, gelu=True)
    torch.testing.assert_close(y, F.gelu(x.double(), approximate="tanh").float(), rtol=1e-6, atol=2e-7)
    assert invariant_linear(torch.tensor([[torch.inf]]), one, gelu=True).item() == torch.inf


@pytest.mark.parametrize("rows", [1, 30])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_stay_in_their_row(rows: int, value: float) -> None:
    x, weight, bias = sample(rows, 20, 20, seed=5)
    clean = invariant_linear(x, weight, bias)
    x[0, 7] = value
    y = invariant_linear(x, weight, bias)
    assert not y[0].isfinite().any()
    torch.testing.assert_close(y[1:], clean[1:], rtol=0, atol=0)


@pytest.mark.parametrize(("M", "K", "N"), [(0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0), (20, 0, 60)])
def test_empty(M: int, K: int, N: int) -> None:
    x, weight, bias = sample(M, K, N)
    torch.testing.assert_close(invariant_linear(x, weight, bias), x @ weight + bias)


def test_any_strides() -> None:
    x, weight, bias = sample(6, 10, 24, seed=6)
    expected = invariant_linear(x, weight, bias)
    same = {"rtol": 0, "atol": 0}
    torch.testing.assert_close(invariant_linear(x.t().contiguous().t(), weight, bias), expected, **same)
    torch.testing.assert_close(invariant_linear(x, weight.t().contiguous().t(), bias), expected, **same)
    torch.testing.assert_close(invariant_linear(x, weight, torch.stack([bias, bias], 1)[:, 0]), expected, **same)
    torch.testing.assert_close(invariant_linear(torch.cat([x, x], 1)[:, :10], weight, bias), expected, **same)
    torch.testing.assert_close(invariant_linear(x[:1].expand(6, 10), weight, bias), expected[:1].expand(6, 24), **same)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(0, 3, 4), (1, 1, 1), (5, 7, 9), (18, 4, 3)], ids=str)
def test_opcheck(shape: tuple[int, int, int], bias: bool) -> None:
    x, weight, b = sample(*shape)
    torch.library.opcheck(torch.ops.bgpt_fast.invariant_linear, (x, weight, b if bias else None, True, 2))


def test_errors_name_what_is_wrong() -> None:
    x, weight, bias = sample(2, 3, 4)
    with pytest.raises(TypeError, match=r"x: expected a torch.*, got list"):
        invariant_linear([1.0], weight)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="weight: expected dtype float32, got float64"):
        invariant_linear(x, weight.double())
    with pytest.raises(TypeError, match="x: expected dtype float32 or bfloat16, got float16"):
        invariant_linear(x.half(), weight)
    with pytest.raises(TypeError, match="bias: expected dtype float32, got bfloat16"):
        invariant_linear(x, weight, bias.bfloat16())
    with pytest.raises(ValueError, match=r"weight: expected shape \[3, N\], got \[4, 3\]"):
        invariant_linear(x, weight.t())
    with pytest.raises(ValueError, match=r"bias: expected shape \[4\], got \[3\]"):
        invariant_linear(x, weight, bias[:3])
    with pytest.raises(ValueError, match=r"x: expected shape \[M, K\], got \[3\]"):
        invariant_linear(x[0], weight)
    with pytest.raises(ValueError, match="device"):
        invariant_linear(x, weight.to("meta"))
    with pytest.raises(ValueError, match="isa: expected 0"):
        invariant_linear(x, weight, isa=3)
    with pytest.raises(ValueError, match="call it under torch"):
        invariant_linear(x, weight.requires_grad_())
    with torch.no_grad():
        torch.testing.assert_close(invariant_linear(x, weight, bias), x @ weight + bias)


# The Triton kernel, in the interpreter or on a GPU.
# (M, K, N): around tiles of 32 and 64 rows, 32 and 64 columns and steps of 32 and 64.
KERNEL_SHAPES = [(1, 1, 1), (3, 0, 5), (17, 33, 31), (33, 64, 65), (65, 130, 33)]
DTYPES = [F32, BF16]


def on_device(*tensors: Tensor, dtype: torch.dtype = F32) -> list[Tensor]:
    return [tensor.to(DEVICE, dtype) for tensor in tensors]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # of a GELU that is 0
def test_the_kernels_values(dtype: torch.dtype, gelu: bool) -> None:
    for shape in KERNEL_SHAPES:
        x, weight, bias = on_device(*sample(*shape, seed=1), dtype=dtype)
        y = invariant_linear_forward(x, weight, bias, gelu)
        exact = invariant_linear_reference(x.double(), weight.double(), bias.double(), gelu)
        plain, largest = invariant_linear_reference(x, weight, bias, gelu), float(exact.abs().max())
        floor = 4 * torch.finfo(F32).eps * largest
        if dtype == BF16:
            floor += torch.finfo(dtype).eps / 2 * largest  # the result's one rounding
        assert_accurate([y], [plain], [exact], floors=[floor])
        wrong = y.clone()
        wrong[-1, -1] += 16 * torch.finfo(dtype).eps * largest
        with pytest.raises(AssertionError, match="error"):
            assert_accurate([wrong], [plain], [exact], floors=[floor])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernels_strides_and_biases(dtype: torch.dtype) -> None:
    x, weight, bias = on_device(*sample(5, 40, 24, seed=2), dtype=dtype)
    expected = invariant_linear_forward(x, weight, bias, False)
    tolerance = {"rtol": 0, "atol": 0} if DEVICE == "cpu" else {}
    columns = invariant_linear_forward(x, weight.t().contiguous().t(), bias, False)
    torch.testing.assert_close(columns, expected, **tolerance)
    assert torch.equal(invariant_linear_forward(x, weight, bias.float(), False), expected)
    assert torch.equal(invariant_linear_forward(torch.cat([x, x], 1)[:, :40], weight, bias, False), expected)
    without = invariant_linear_forward(x, weight, None, False)
    assert torch.equal(without, invariant_linear_forward(x, weight, 0 * bias, False))
    assert not torch.equal(without, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_the_kernels_rows_are_independent(dtype: torch.dtype) -> None:
    """In batches of several sizes, at every place, and where a row starts on an odd address."""
    x, weight, bias = on_device(*sample(70, 37, 33, seed=3), dtype=dtype)
    together = invariant_linear_forward(x, weight, bias, True)
    for size in (1, 7, 33):
        first = [invariant_linear_forward(part, weight, bias, True) for part in x[: 4 * size].split(size)]
        assert torch.equal(torch.cat(first), together[: 4 * size])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    assert torch.equal(invariant_linear_forward(x[order], weight, bias, True), together[order])
    damaged = x.clone()
    damaged[::2] = torch.nan
    y = invariant_linear_forward(damaged, weight, bias, True)
    assert torch.equal(y[1::2], together[1::2])
    assert y[::2].isnan().all()


def test_tiles_that_depend_on_the_number_of_rows_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in libraries: for few rows, the sum over K in other steps."""
    x, weight, bias = on_device(*sample(4, 300, 9, seed=4))
    together = invariant_linear_forward(x, weight, bias, False)
    monkeypatch.setattr(triton_kernels, "_tile", lambda dtype, N: triton_kernels._Tile(16, 16, 128, 4, 2))
    assert not torch.equal(invariant_linear_forward(x[:1], weight, bias, False), together[:1])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_patches_are_independent_in_a_byte_decoder_of_the_kernels(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the kernels of a GPU, the attention's included, a patch's logits have the same bits in every batch."""
    if DEVICE == "cpu":

        def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
            return invariant_linear_forward(x, weight, bias, gelu)

        monkeypatch.setattr(cuda_layers, "invariant_linear", linear)
        monkeypatch.setattr(cuda, "cached_attention", cached_attention_forward)
    torch.manual_seed(0)
    config = BGPTConfig(
        patch_size=3, patch_length=4, hidden_size=20, patch_num_layers=1, byte_num_layers=1, num_heads=2
    )
    model = BGPT(config).eval().to(DEVICE)
    decoder = cuda.GraphedByteDecoder(cuda_layers.ByteWeights(model, precision), batch_invariant=True)
    features = torch.randn(5, 20, device=DEVICE)
    patches = torch.randint(0, 257, (5, 3), device=DEVICE, dtype=torch.int16)
    with torch.inference_mode():
        together = decoder.logits(features, patches, 3)
        apart = [decoder.logits(features[part], patches[part], 3) for part in (slice(0, 1), slice(1, 3))]
        assert torch.equal(torch.cat(apart), together[:3])
        exact = model.double().byte_level_decoder.logits(features.double(), patches)
    bound = {"float32": 1e-5, "bfloat16": 2e-2}[precision] * exact.abs().max()
    assert (together - exact).abs().max() <= bound


def test_nothing_is_no_launch() -> None:
    for M, N in ((0, 4), (3, 0)):
        x, weight, bias = on_device(*sample(M, 3, N))
        assert invariant_linear_forward(x, weight, bias, False).shape == (M, N)


def test_compile_cases() -> None:
    check_cases(compile_cases())
