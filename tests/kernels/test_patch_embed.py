"""patch_embed: values, gradients, registration, and what it refuses; with and without positions."""

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
    weight = torch.randn(S * 257, D, generator=generator).to(dtype)
    return patches, weight.requires_grad_(), torch.randn(D, generator=generator).to(dtype).requires_grad_()


def sample_positions(P: int, D: int, dtype: torch.dtype = torch.float32, L: int = 13) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(P + D + L)
    table = torch.randn(L, D, generator=generator).to(dtype).requires_grad_()
    return table, torch.randint(0, L, (P,), generator=generator)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_positions(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    P, _, D = shape
    patches, weight, bias = sample(*shape, dtype)
    table, positions = sample_positions(P, D, dtype)
    leaves = (weight, bias, table)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    dy = torch.randn(P, D, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours, same, want = (
        (y, *torch.autograd.grad(y, of, dy.to(y.dtype)))
        for y, of in (
            (patch_embed(patches, *leaves, positions), leaves),
            (patch_embed_reference(patches, *leaves, positions), leaves),
            (patch_embed_reference(patches, *exact, positions), exact),
        )
    )
    for got, plain, expected in zip(ours, same, want, strict=True):
        assert (got.dtype, got.shape) == (dtype, expected.shape)
        if got.numel():
            floor = 2 * torch.finfo(dtype).eps * expected.abs().max()
            assert (got - expected).abs().max() <= 2 * (plain - expected).abs().max() + floor


def test_positions_are_added_last() -> None:
    patches, weight, bias = sample(300, 5, 40)
    table, positions = sample_positions(300, 40)
    together = patch_embed(patches, weight, bias, table, positions)
    assert torch.equal(together, patch_embed(patches, weight, bias) + table[positions])
    assert not torch.equal(together, patch_embed(patches, weight, bias) + table[positions.roll(1)])
    assert torch.equal(together[17:19], patch_embed(patches[17:19], weight, bias, table, positions[17:19]))


def test_gradient_of_positions_is_bit_equal_over_runs_and_threads() -> None:
    table, positions = sample_positions(900, 96)
    dy = torch.randn(900, 96, generator=torch.Generator().manual_seed(1))
    want = torch.zeros_like(table)
    for row, position in zip(dy, positions.tolist(), strict=True):
        want[position] += row
    threads = torch.get_num_threads()
    try:
        for count in [1] * 60 + [2] * 20 + [3] * 20:
            torch.set_num_threads(count)
            assert torch.equal(torch.ops.bgpt_fast.patch_embed_position_backward(dy, positions, len(table)), want)
    finally:
        torch.set_num_threads(threads)


def test_nan_stays_in_its_rows() -> None:
    patches, weight, bias = sample(9, 3, 8)
    table, positions = sample_positions(9, 8)
    y = patch_embed(patches, weight, bias, table, positions)
    dy = torch.ones_like(y)
    dy[4, 2] = torch.nan
    dweight, dtable = torch.autograd.grad(y, (weight, table), dy)
    assert dweight[257 * torch.arange(3) + patches[4], 2].isnan().all()
    assert dweight.isnan().sum() == 3
    assert dtable[positions[4], 2].isnan()
    assert dtable.isnan().sum() == 1
    with torch.no_grad():
        table[positions[4], 5] = torch.inf
    assert torch.equal(patch_embed(patches, weight, bias, table, positions).isinf().any(1), positions == positions[4])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_drawn_shapes(dtype: torch.dtype) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        P, S, D, L = (int(torch.randint(1, most, (), generator=generator)) for most in (40, 18, 70, 30))
        patches, weight, bias = (tensor.detach().to(device) for tensor in sample(P, S, D, dtype))
        table, positions = (tensor.detach().to(device) for tensor in sample_positions(P, D, dtype, L))
        leaves = [tensor.requires_grad_() for tensor in (weight, bias, table)]
        exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
        dy = torch.randn(P, D, generator=generator).to(dtype).to(device)
        runs = []
        for op, of in ((patch_embed, leaves), (patch_embed_reference, leaves), (patch_embed_reference, exact)):
            y = op(patches, *of, positions)
            runs.append((y, *torch.autograd.grad(y, of, dy.to(y.dtype))))
        for got, plain, want in zip(*runs, strict=True):
            floor = 2 * torch.finfo(dtype).eps * want.abs().max()
            assert (got - want).abs().max() <= 2 * (plain - want).abs().max() + floor, (P, S, D, L)


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
    changed[int(patches[0, 0])] += 1e-6  # the negative control: torch.equal sees a last bit
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


LAYOUTS = [
    "plain",
    "no positions",
    "no patch",
    "no column",
    "size 1",
    "one byte a patch",
    "seventeen bytes a patch",
    "transposed",
    "sliced",
    "stride 0",
    "one token, one position",
    "one position in the table",
    "frozen weight",
    "frozen positions",
]


@pytest.mark.parametrize("kind", LAYOUTS)
def test_gradcheck(kind: str) -> None:
    sizes = {"no patch": (0, 2, 3), "no column": (3, 2, 0), "size 1": (1, 1, 1), "one byte a patch": (4, 1, 3)}
    P, S, D = sizes.get(kind, (2, 17, 2) if kind.startswith("seventeen") else (5, 2, 3))
    patches, weight, bias = sample(P, S, D, torch.float64)
    table, positions = sample_positions(P, D, torch.float64, 1 if kind == "one position in the table" else 4)
    leaves = [leaf.detach().requires_grad_() for leaf in (weight, bias, table)]
    if kind == "transposed":
        patches = patches.t().contiguous().t()
        leaves = [weight.detach().t().contiguous().t(), bias.detach(), table.detach().t().contiguous().t()]
    if kind == "sliced":
        patches, positions = patches.repeat_interleave(2, 1)[:, ::2], positions.repeat_interleave(2)[::2]
        leaves = [leaf.repeat_interleave(2, -1)[..., ::2].detach() for leaf in leaves]
    if kind == "stride 0":  # gradcheck changes one element at a time, so it must be given the one row
        patches, positions = patches[:1].expand(P, S), positions[:1].expand(P)
        leaves = [leaf.detach()[:1].clone() for leaf in leaves]
    if kind == "one token, one position":
        patches, positions = torch.full_like(patches, 256), torch.zeros_like(positions)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    for frozen, at in (("frozen weight", 0), ("frozen positions", 2)):
        if kind == frozen:
            leaves[at] = leaves[at].detach()
    shapes = weight.shape, bias.shape, table.shape

    def embed(*given: Tensor) -> Tensor:
        full = [tensor.expand(shape) for tensor, shape in zip(given, shapes, strict=True)]
        return patch_embed(patches, *full[:2]) if kind == "no positions" else patch_embed(patches, *full, positions)

    given = [*leaves[:2], leaves[2].detach()] if kind == "no positions" else leaves
    assert torch.autograd.gradcheck(embed, given, fast_mode=True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_registration(shape: tuple[int, int, int]) -> None:
    patches, weight, bias = sample(*shape)
    torch.library.opcheck(torch.ops.bgpt_fast.patch_embed.default, (patches, weight, bias))
    torch.library.opcheck(
        torch.ops.bgpt_fast.patch_embed.default, (patches, weight.detach().t().contiguous().t().requires_grad_(), bias)
    )


@pytest.mark.parametrize("shape", [(0, 4, 8), (1, 1, 1), (5, 2, 12)], ids=str)
def test_registration_with_positions(shape: tuple[int, int, int]) -> None:
    patches, weight, bias = sample(*shape)
    table, positions = sample_positions(shape[0], shape[2])
    torch.library.opcheck(torch.ops.bgpt_fast.patch_embed.default, (patches, weight, bias, table, positions))
    expanded = table.detach()[:1].expand(4, shape[2]).requires_grad_()
    strided = (positions % 4).repeat_interleave(2)[::2]
    torch.library.opcheck(torch.ops.bgpt_fast.patch_embed.default, (patches, weight, bias, expanded, strided))
    dy = torch.ones(shape[0], shape[2])
    torch.library.opcheck(torch.ops.bgpt_fast.patch_embed_backward.default, (dy, patches))
    torch.library.opcheck(torch.ops.bgpt_fast.patch_embed_position_backward.default, (dy, positions, 13))


def test_wrong_positions_are_named() -> None:
    patches, weight, bias = sample(3, 4, 8)
    table, positions = sample_positions(3, 8)
    bad = {
        "position_weight: expected a tensor because positions is one, got None": (None, positions),
        "positions: expected a tensor because position_weight is one, got None": (table, None),
        "position_weight: expected dtype float32, got bfloat16": (table.bfloat16(), positions),
        r"position_weight: expected shape \[L, 8\], got \[13, 7\]": (table[:, :7], positions),
        "position_weight: expected device cpu": (table.to("meta"), positions),
        "positions: expected dtype int64, got int32": (table, positions.int()),
        r"positions: expected shape \[3\], got \[2\]": (table, positions[:2]),
        "positions: expected device cpu": (table, positions.to("meta")),
        "positions: expected 0…12, rows of position_weight, got -1…-1": (table, torch.full_like(positions, -1)),
        "positions: expected 0…12, rows of position_weight, got 13…13": (table, torch.full_like(positions, 13)),
    }
    for message, arguments in bad.items():
        with pytest.raises((TypeError, ValueError), match=message):
            patch_embed(patches, weight, bias, *arguments)
    expected = patch_embed_reference(patches, weight, bias, table, positions)
    torch.testing.assert_close(patch_embed(patches, weight, bias, table, positions), expected)


def test_second_derivatives_are_refused() -> None:
    patches, weight, bias = sample(3, 2, 4)
    table, positions = sample_positions(3, 4)
    y = patch_embed(patches, weight, bias, table, positions)
    for leaf in (weight, table):
        dy = torch.ones_like(y).requires_grad_()
        (gradient,) = torch.autograd.grad(y, leaf, dy, create_graph=True)
        with pytest.raises(RuntimeError, match="cannot be differentiated"):
            gradient.sum().backward()


def test_wrong_arguments_are_named() -> None:
    patches, weight, bias = sample(3, 4, 8)
    bad = {
        "expected dtype int16, got int64": (patches.long(), weight, bias),
        r"expected shape \[P, S\], got \[3\]": (patches[:, 0], weight, bias),
        r"weight: expected shape \[771, D\]": (patches[:, :3].contiguous(), weight, bias),
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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_gpu_has_its_own_kernels(dtype: torch.dtype) -> None:
    for op in ("patch_embed", "patch_embed_backward", "patch_embed_position_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"bgpt_fast::{op}", "CUDA")
    patches, *leaves = sample(300, 16, 200, dtype)
    table, positions = sample_positions(300, 200, dtype, 512)
    leaves = [leaf.detach().cuda().requires_grad_() for leaf in (*leaves, table)]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    y = patch_embed(patches.cuda(), *leaves, positions.cuda())
    want = patch_embed_reference(patches.cuda(), *exact, positions.cuda())
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), want, rtol=4 * eps, atol=16 * eps)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype).cuda()
    ours = torch.autograd.grad(y, leaves, dy)
    want = torch.autograd.grad(want, exact, dy.double())
    for got, expected in zip(ours, want, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=4 * eps, atol=64 * eps)
    for _ in range(100):
        y = patch_embed(patches.cuda(), *leaves, positions.cuda())
        again = torch.autograd.grad(y, leaves, dy)
        assert all(torch.equal(a, b) for a, b in zip(again, ours, strict=True))
