"""byte_embed: values, gradients, registration, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bgpt_fast.kernels.byte_embed.op import byte_embed
from bgpt_fast.kernels.byte_embed.reference import byte_embed_reference

SHAPES = [(0, 16, 8), (1, 1, 1), (3, 16, 40), (17, 3, 33), (15, 17, 5), (200, 4, 24), (2, 2, 257)]
# Activations over tables: float32 master weights under activations of any dtype, or one dtype throughout.
DTYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float16),
    (torch.float16, torch.float32),
    (torch.float64, torch.float64),
]
SIZES = [(0, 40), (1, 18), (1, 70)]
"""Of T, S and D, where shapes are drawn."""
Sample = tuple[Tensor, Tensor, Tensor, Tensor]


def sample(
    shape: tuple[int, int, int], dtype: torch.dtype = torch.float32, table: torch.dtype = torch.float32
) -> Sample:
    T, S, D = shape
    generator = torch.Generator().manual_seed(sum(shape))
    patches = torch.randint(0, 257, (T, S), generator=generator).to(torch.int16)
    features, wte, wpe = (torch.randn(rows, D, generator=generator) for rows in (T, 257, S + 1))
    tables = (tensor.to(table).requires_grad_() for tensor in (wte, wpe))
    return features.to(dtype).requires_grad_(), patches, *tables


def layouts() -> dict[str, Sample]:
    """Float64 arguments of every kind of layout and size."""
    double = (torch.float64, torch.float64)
    features, patches, wte, wpe = sample((4, 3, 2), *double)
    bare = features.detach(), wte.detach(), wpe.detach()
    transposed = [tensor.t().contiguous().t().requires_grad_() for tensor in bare]
    sliced = [tensor.repeat_interleave(2, 1)[:, ::2].requires_grad_() for tensor in bare]
    expanded = [tensor[:1].expand(tensor.shape).requires_grad_() for tensor in bare]
    padded = torch.zeros(4, 6, dtype=torch.int16)
    padded[:, ::2] = patches
    return {
        "plain": (features, patches, wte, wpe),
        "no patch": sample((0, 3, 2), *double),
        "no column": sample((3, 3, 0), *double),
        "size 1": sample((1, 1, 1), *double),
        "one byte a patch": sample((3, 1, 4), *double),
        "seventeen bytes a patch": sample((2, 17, 3), *double),
        "transposed": (transposed[0], patches.t().contiguous().t(), transposed[1], transposed[2]),
        "sliced": (sliced[0], padded[:, ::2], sliced[1], sliced[2]),
        "stride 0": (expanded[0], patches[:1].expand(4, 3), expanded[1], expanded[2]),
        "one token": (features, torch.full_like(patches, 256), wte, wpe),
        "many positions": (features, patches, wte, torch.randn(40, 2, dtype=torch.float64).requires_grad_()),
        "exactly S positions": (features, patches, wte, wpe.detach()[:3].clone().requires_grad_()),
        "frozen tables": (features, patches, wte.detach(), wpe.detach()),
        "frozen features": (features.detach(), patches, wte, wpe),
    }


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_are_rounded_once(shape: tuple[int, int, int], dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    features, patches, wte, wpe = sample(shape, *dtypes)
    x = byte_embed(features, patches, wte, wpe)
    assert (x.shape, x.dtype) == (shape, dtypes[0])
    assert x.is_contiguous()
    wide = torch.promote_types(dtypes[0], torch.float32)
    assert torch.equal(x, byte_embed_reference(features.to(wide), patches, wte.to(wide), wpe.to(wide)).to(dtypes[0]))


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients(shape: tuple[int, int, int], dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    check_gradients(sample(shape, *dtypes), torch.Generator().manual_seed(1))


def check_gradients(arguments: Sample, generator: torch.Generator) -> None:
    """Errors at most twice those of the plain version in the same dtypes, and two ulps of the largest value."""
    features, patches, wte, wpe = arguments
    leaves = features, wte, wpe
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    dx = torch.randn(*patches.shape, features.shape[1], generator=generator).to(features)
    runs = []
    for op, of in ((byte_embed, leaves), (byte_embed_reference, leaves), (byte_embed_reference, exact)):
        x = op(of[0], patches, of[1], of[2])
        runs.append(torch.autograd.grad(x, of, dx.to(x.dtype)))
    for leaf, got, plain, want in zip(leaves, *runs, strict=True):
        assert (got.dtype, got.shape) == (leaf.dtype, leaf.shape)
        if got.numel():
            floor = 2 * torch.finfo(got.dtype).eps * want.abs().max()
            assert (got - want).abs().max() <= 2 * (plain - want).abs().max() + floor


@pytest.mark.slow
@pytest.mark.parametrize("dtypes", DTYPES[:3], ids=str)
def test_drawn_shapes(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        T, S, D = (int(torch.randint(least, most, (), generator=generator)) for least, most in SIZES)
        features, patches, wte, wpe = (tensor.detach().to(device) for tensor in sample((T, S, D), *dtypes))
        features, wte, wpe = (tensor.requires_grad_() for tensor in (features, wte, wpe))
        assert torch.equal(byte_embed(features, patches, wte, wpe), byte_embed_reference(features, patches, wte, wpe))
        check_gradients((features, patches, wte, wpe), generator)


def test_a_patch_does_not_depend_on_its_neighbours_and_what_is_not_finite_stays_in_its_rows() -> None:
    features, patches, wte, wpe = (tensor.detach() for tensor in sample((300, 5, 24)))
    x = byte_embed(features, patches, wte, wpe)
    assert torch.equal(x[77:79], byte_embed(features[77:79], patches[77:79], wte, wpe))
    features[3, 5], features[4, 6], features[5] = torch.nan, -torch.inf, 1e4
    changed = byte_embed(features, patches, wte, wpe)
    assert not torch.equal(changed[3, 0], x[3, 0])  # the negative control
    assert changed[3, 0, 5].isnan()
    assert changed[4, 0, 6] == -torch.inf
    assert torch.equal(changed[:, 1:], x[:, 1:])
    others = [0, 1, 2, *range(6, 300)]
    assert torch.equal(changed[others], x[others])


def test_nan_in_the_gradient_stays_visible() -> None:
    features, patches, wte, wpe = sample((6, 4, 8))
    x = byte_embed(features, patches, wte, wpe)
    dx = torch.ones_like(x)
    dx[2, 3, 1] = torch.nan
    dfeatures, dwte, dwpe = torch.autograd.grad(x, (features, wte, wpe), dx)
    assert dfeatures.isfinite().all()
    assert dwte[patches[2, 2].long(), 1].isnan()
    assert dwpe[3, 1].isnan()
    assert dwte.isnan().sum() + dwpe.isnan().sum() == 2


def test_gradients_are_bit_equal_over_runs_and_threads() -> None:
    features, patches, wte, wpe = sample((300, 4, 48))
    dx = torch.randn(300, 4, 48, generator=torch.Generator().manual_seed(1))
    in_order = torch.zeros_like(wte)
    for token, row in zip(patches[:, :-1].flatten().tolist(), dx[:, 1:].flatten(0, 1), strict=True):
        in_order[token] += row
    threads, found = torch.get_num_threads(), []
    try:
        for count in [1] * 60 + [2] * 20 + [3] * 20:
            torch.set_num_threads(count)
            x = byte_embed(features, patches, wte, wpe)
            found.append((x.detach(), *torch.autograd.grad(x, (features, wte, wpe), dx)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for run in found for a, b in zip(run, found[0], strict=True))
    assert torch.equal(found[0][2], in_order)
    assert not torch.equal(found[0][2], in_order.nextafter(torch.tensor(torch.inf)))  # the negative control


@pytest.mark.parametrize("kind", layouts())
def test_gradcheck(kind: str) -> None:
    features, patches, wte, wpe = layouts()[kind]
    leaves, shapes = [features, wte, wpe], [features.shape, wte.shape, wpe.shape]
    if kind == "stride 0":  # gradcheck changes one element at a time, so it must be given the one row
        leaves = [leaf.detach()[:1].clone().requires_grad_() for leaf in leaves]

    def embed(*given: Tensor) -> Tensor:
        rows, *tables = (tensor.expand(shape) for tensor, shape in zip(given, shapes, strict=True))
        return byte_embed(rows, patches, *tables)

    assert torch.autograd.gradcheck(embed, leaves, fast_mode=True)


@pytest.mark.parametrize("kind", layouts())
def test_registration(kind: str) -> None:
    torch.library.opcheck(torch.ops.bgpt_fast.byte_embed.default, layouts()[kind])


@pytest.mark.parametrize("dtypes", DTYPES[:4], ids=str)
def test_registration_of_mixed_dtypes_and_of_the_backward(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    features, patches, wte, wpe = sample((3, 4, 8), *dtypes)
    torch.library.opcheck(torch.ops.bgpt_fast.byte_embed.default, (features, patches, wte, wpe))
    dx = torch.ones(3, 4, 8, dtype=dtypes[0])
    torch.library.opcheck(torch.ops.bgpt_fast.byte_embed_backward.default, (dx, patches, 5))


def test_second_derivatives_are_refused() -> None:
    features, patches, wte, wpe = sample((3, 4, 8))
    x = byte_embed(features, patches, wte, wpe)
    dx = torch.ones_like(x).requires_grad_()
    (dwte,) = torch.autograd.grad(x, wte, dx, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated"):
        dwte.sum().backward()


def test_wrong_arguments_are_named() -> None:
    features, patches, wte, wpe = (tensor.detach() for tensor in sample((3, 4, 8)))
    half = features.bfloat16()
    bad = {
        "features: expected a torch.Tensor, got NoneType": (None, patches, wte, wpe),
        "features: expected dtype float32 or .*, got int64": (features.long(), patches, wte, wpe),
        r"features: expected shape \[T, D\], got \[24\]": (features.flatten(), patches, wte, wpe),
        "patches: expected dtype int16, got int64": (features, patches.long(), wte, wpe),
        r"patches: expected shape \[3, S\], got \[2, 4\]": (features, patches[:2], wte, wpe),
        "patches: expected at least 1 byte a patch": (features, patches[:, :0], wte, wpe),
        "patches: expected device cpu": (features, patches.to("meta"), wte, wpe),
        "wte: expected dtype float32, got bfloat16": (features, patches, wte.bfloat16(), wpe),
        "wte: expected dtype bfloat16 or float32, got float16": (half, patches, wte.half(), wpe),
        r"wte: expected shape \[257, 8\], got \[256, 8\]": (features, patches, wte[:256], wpe),
        "wte: expected device cpu": (features, patches, wte.to("meta"), wpe),
        "wpe: expected dtype bfloat16, got float32": (half, patches, wte.bfloat16(), wpe),
        r"wpe: expected shape \[L, 8\], got \[5, 7\]": (features, patches, wte, wpe[:, :7]),
        "wpe: expected at least 4 rows, one a byte of a patch, got 3": (features, patches, wte, wpe[:3]),
        "wpe: expected device cpu": (features, patches, wte, wpe.to("meta")),
        "expected tokens 0…256, got -1…-1": (features, torch.full_like(patches, -1), wte, wpe),
        "expected tokens 0…256, got 257…257": (features, torch.full_like(patches, 257), wte, wpe),
    }
    for message, arguments in bad.items():
        with pytest.raises((TypeError, ValueError), match=message):
            byte_embed(*arguments)
    assert torch.equal(byte_embed(features, patches, wte, wpe), byte_embed_reference(features, patches, wte, wpe))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_the_gpu_has_its_own_kernels(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    for op in ("byte_embed", "byte_embed_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"bgpt_fast::{op}", "CUDA")
    features, patches, wte, wpe = (tensor.detach().cuda() for tensor in sample((300, 16, 200), *dtypes))
    leaves = [tensor.requires_grad_() for tensor in (features, wte, wpe)]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    x = byte_embed(leaves[0], patches, leaves[1], leaves[2])
    want = byte_embed_reference(exact[0], patches, exact[1], exact[2])
    eps = torch.finfo(dtypes[0]).eps
    torch.testing.assert_close(x.double(), want, rtol=eps, atol=eps)
    dx = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(dtypes[0]).cuda()
    ours, want = torch.autograd.grad(x, leaves, dx, retain_graph=True), torch.autograd.grad(want, exact, dx.double())
    for got, expected in zip(ours, want, strict=True):
        eps = torch.finfo(got.dtype).eps
        torch.testing.assert_close(got.double(), expected, rtol=4 * eps, atol=256 * eps)
    for _ in range(100):
        again = torch.autograd.grad(x, leaves, dx, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(again, ours, strict=True))
