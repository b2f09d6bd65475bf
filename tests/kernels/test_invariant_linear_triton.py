"""invariant_linear's Triton kernel: in the interpreter, or on a GPU where there is one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from support.interpreter import DEVICE  # isort: skip  # before triton
from kernels.test_invariant_linear import sample

from bgpt_fast import BGPT, BGPTConfig
from bgpt_fast.generation.decoders import cuda, cuda_layers
from bgpt_fast.kernels.cached_attention.triton_kernels import cached_attention_forward
from bgpt_fast.kernels.invariant_linear import triton_kernels
from bgpt_fast.kernels.invariant_linear.reference import invariant_linear_reference
from bgpt_fast.kernels.invariant_linear.triton_kernels import compile_cases, invariant_linear_forward

# (M, K, N): around tiles of 32 and 64 rows, 32 and 64 columns and steps of 32 and 64.
SHAPES = [(1, 1, 1), (3, 0, 5), (17, 33, 31), (33, 64, 65), (65, 130, 33)]
DTYPES = [torch.float32, torch.bfloat16]


def on_device(*tensors: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    return tuple(tensor.to(DEVICE, dtype) for tensor in tensors)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # of a GELU that is 0
def test_values(shape: tuple[int, int, int], dtype: torch.dtype, gelu: bool) -> None:
    x, weight, bias = on_device(*sample(*shape, seed=1), dtype=dtype)
    y = invariant_linear_forward(x, weight, bias, gelu)
    exact = invariant_linear_reference(x.double(), weight.double(), bias.double(), gelu)
    plain = (invariant_linear_reference(x, weight, bias, gelu) - exact).abs().max()
    bound = 2 * plain + 4 * torch.finfo(torch.float32).eps * exact.abs().max()
    if dtype == torch.bfloat16:
        bound += torch.finfo(dtype).eps / 2 * exact.abs().max()  # the result's one rounding
    assert y.dtype == dtype
    assert (y - exact).abs().max() <= bound
    wrong = y.clone()
    wrong[-1, -1] += 16 * torch.finfo(dtype).eps * exact.abs().max()
    assert not (wrong - exact).abs().max() <= bound


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_transposed_weights_and_biases(dtype: torch.dtype) -> None:
    x, weight, bias = on_device(*sample(5, 40, 24, seed=2), dtype=dtype)
    expected = invariant_linear_forward(x, weight, bias, False)
    same = {"rtol": 0, "atol": 0} if DEVICE == "cpu" else {}
    torch.testing.assert_close(invariant_linear_forward(x, weight.t().contiguous().t(), bias, False), expected, **same)
    torch.testing.assert_close(invariant_linear_forward(x, weight, bias.float(), False), expected, rtol=0, atol=0)
    strided = torch.cat([x, x], 1)[:, :40]
    torch.testing.assert_close(invariant_linear_forward(strided, weight, bias, False), expected, rtol=0, atol=0)
    without = invariant_linear_forward(x, weight, None, False)
    torch.testing.assert_close(without, invariant_linear_forward(x, weight, 0 * bias, False), rtol=0, atol=0)
    assert not torch.equal(without, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_a_row_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    """In batches of several sizes, at every index, and at an unaligned address."""
    x, weight, bias = on_device(*sample(70, 37, 33, seed=3), dtype=dtype)
    whole = invariant_linear_forward(x, weight, bias, True)
    for size in (1, 7, 33):
        first = [invariant_linear_forward(part, weight, bias, True) for part in x[: 4 * size].split(size)]
        assert torch.equal(torch.cat(first), whole[: 4 * size])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    assert torch.equal(invariant_linear_forward(x[order], weight, bias, True), whole[order])
    damaged = x.clone()
    damaged[::2] = torch.nan
    y = invariant_linear_forward(damaged, weight, bias, True)
    assert torch.equal(y[1::2], whole[1::2])
    assert y[::2].isnan().all()


def test_tiles_by_the_number_of_rows_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in libraries: few rows sum over K in other steps."""
    x, weight, bias = on_device(*sample(4, 300, 9, seed=4))
    whole = invariant_linear_forward(x, weight, bias, False)
    monkeypatch.setattr(triton_kernels, "_tile", lambda dtype, N: triton_kernels._Tile(16, 16, 128, 4, 2))
    assert not torch.equal(invariant_linear_forward(x[:1], weight, bias, False), whole[:1])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_logits_of_the_invariant_byte_decoder(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the GPU's kernels, attention included, a patch's bits do not depend on the other patches."""
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
    weights = cuda_layers.ByteWeights(model, precision)
    engine = cuda.GraphedByteDecoder(weights, batch_invariant=True)
    features = torch.randn(5, 20, device=DEVICE)
    patches = torch.randint(0, 257, (5, 3), device=DEVICE, dtype=torch.int16)

    with torch.inference_mode():
        together = engine.logits(features, patches, 3)
        parts = [engine.logits(features[part], patches[part], 3) for part in (slice(0, 1), slice(1, 3))]
        assert torch.equal(torch.cat(parts), together[:3])
        exact = model.double().byte_level_decoder.logits(features.double(), patches)
    bound = {"float32": 1e-5, "bfloat16": 2e-2}[precision] * exact.abs().max()
    assert (together - exact).abs().max() <= bound


def test_empty() -> None:
    for M, N in ((0, 4), (3, 0)):
        x, weight, bias = on_device(*sample(M, 3, N))
        assert invariant_linear_forward(x, weight, bias, False).shape == (M, N)


def test_compile_cases_match_the_kernel() -> None:
    cases = compile_cases()
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        assert case.kernel is triton_kernels._invariant_linear_fwd_kernel
        assert set(case.types) | set(case.constexprs) == set(case.kernel.arg_names)
