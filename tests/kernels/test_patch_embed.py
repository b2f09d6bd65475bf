"""patch_embed: values, gradients, registration, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bgpt_fast.kernels.patch_embed.op import patch_embed
from bgpt_fast.kernels.patch_embed.reference import patch_embed_reference

SHAPES = [(0, 16, 32), (1, 1, 1), (17, 16, 257), (5, 4, 8), (300, 3, 40), (128, 16, 16)]


def sample(P: int, S: int, D: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(P + S + D)
    patches = torch.randint(0, 257, (P, S), generator=generator).to(torch.int16)
    weight = torch.randn(D, S * 257, generator=generator).to(dtype)
    return patches, weight.requires_grad_(), torch.randn(D, generator=generator).to(dtype).requires_grad_()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_values_and_gradients(shape: tuple[int, int, int], layout: str) -> None:
    patches, weight, bias = sample(*shape)
    laid = weight.detach().t().contiguous().t().requires_grad_() if layout == "columns" else weight
    y = patch_embed(patches, laid, bias)
    exact_weight, exact_bias = weight.detach().double().requires_grad_(), bias.detach().double().requires_grad_()
    expected = patch_embed_reference(patches, exact_weight, exact_bias)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    y.backward(dy)
    expected.backward(dy.double())
    torch.testing.assert_close(laid.grad.double(), exact_weight.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bias.grad.double(), exact_bias.grad, rtol=1e-5, atol=1e-4)


def test_bf16_error_at_most_twice_the_plain_versions() -> None:
    patches, weight, bias = sample(64, 16, 96, torch.bfloat16)
    exact = patch_embed_reference(patches, weight.double(), bias.double())
    plain = patch_embed_reference(patches, weight, bias)
    ours = patch_embed(patches, weight, bias)
    assert ours.dtype == torch.bfloat16
    error, allowed = (ours - exact).abs().max(), 2 * (plain - exact).abs().max() + 2**-8
    assert error <= allowed
    ours.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16


def test_a_row_does_not_depend_on_its_neighbours_or_on_threads() -> None:
    patches, weight, bias = sample(400, 16, 72)
    together = patch_embed(patches, weight, bias)
    alone = torch.cat([patch_embed(patches[i : i + 1], weight, bias) for i in range(0, 400, 57)])
    assert torch.equal(together[::57], alone)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        assert torch.equal(patch_embed(patches, weight, bias), together)
    finally:
        torch.set_num_threads(threads)
    changed = weight.detach().clone()
    changed[:, int(patches[0, 0])] += 1e-6  # the negative control: torch.equal sees a last bit
    assert not torch.equal(patch_embed(patches, changed, bias), together)


def test_gradient_is_bit_equal_over_runs_and_threads() -> None:
    patches, weight, bias = sample(900, 16, 96)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in [1, 2, 3, 4] * 25:
            torch.set_num_threads(count)
            weight.grad = None
            patch_embed(patches, weight, bias).square().sum().backward()
            found.append(weight.grad)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(gradient, found[0]) for gradient in found)


def test_strided_patches_and_expanded_bias() -> None:
    patches, weight, _ = sample(12, 6, 8)
    bias = torch.tensor([0.5]).expand(8)
    wide = torch.zeros(12, 12, dtype=torch.int16)
    wide[:, ::2] = patches
    torch.testing.assert_close(patch_embed(wide[:, ::2], weight, bias), patch_embed_reference(patches, weight, bias))


def test_gradcheck() -> None:
    patches, weight, bias = sample(5, 2, 3, torch.float64)
    assert torch.autograd.gradcheck(lambda w, b: patch_embed(patches, w, b), (weight, bias), fast_mode=True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_registration(shape: tuple[int, int, int]) -> None:
    patches, weight, bias = sample(*shape)
    torch.library.opcheck(torch.ops.bgpt_fast.patch_embed.default, (patches, weight, bias))
    torch.library.opcheck(
        torch.ops.bgpt_fast.patch_embed.default, (patches, weight.detach().t().contiguous().t().requires_grad_(), bias)
    )


def test_wrong_arguments_are_named() -> None:
    patches, weight, bias = sample(3, 4, 8)
    bad = {
        "expected dtype int16, got int64": (patches.long(), weight, bias),
        r"expected shape \[P, S\], got \[3\]": (patches[:, 0], weight, bias),
        r"weight: expected shape \[D, 771\]": (patches[:, :3].contiguous(), weight, bias),
        "bias: expected dtype float32, got float64": (patches, weight, bias.double()),
        r"bias: expected shape \[8\], got \[7\]": (patches, weight, bias[:7]),
        "expected device cpu": (patches, weight.to("meta"), bias),
        "expected a torch.Tensor, got list": ([[1, 2]], weight, bias),
        "expected tokens 0…256, got -1": (patches.clone().fill_(-1), weight, bias),
        "expected tokens 0…256, got 257…257": (patches.clone().fill_(257), weight, bias),
    }
    for message, arguments in bad.items():
        with pytest.raises((TypeError, ValueError), match=message):
            patch_embed(*arguments)
    torch.testing.assert_close(patch_embed(patches, weight, bias), patch_embed_reference(patches, weight, bias))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_gpu_has_its_own_kernel(dtype: torch.dtype) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key("bgpt_fast::patch_embed", "CUDA")
    patches, weight, bias = sample(300, 16, 200, dtype)
    exact = patch_embed_reference(patches, weight.double(), bias.double())
    y = patch_embed(patches.cuda(), weight.cuda(), bias.cuda()).cpu()
    torch.testing.assert_close(y.double(), exact, rtol=2**-7, atol=2**-7)
