"""Muon against torch's, its iterations against the published ones, and the symmetric products against float64."""

from __future__ import annotations

import pytest
import torch
from support.ops import threads
from torch import Tensor, nn

from bgpt_fast import _C
from bgpt_fast.training import muon
from bgpt_fast.training.muon import Muon, orthogonalised, symmetric_product

SHAPES = [(24, 24), (24, 72), (96, 24), (24, 96), (96, 24)]


def _matrices(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def test_muon_is_torchs() -> None:
    """Five steps of both, within the noise of torch's bfloat16 products."""
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95}
    weights = {"float32": _matrices(0), "bfloat16": _matrices(0), "torch": _matrices(0)}
    named = {kind: [(str(i), nn.Parameter(m)) for i, m in enumerate(stack)] for kind, stack in weights.items()}
    ours = [Muon(named[kind], **options, dtype=getattr(torch, kind)) for kind in ("float32", "bfloat16")]
    theirs = torch.optim.Muon(named["torch"], **options, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        gradients = _matrices(step + 1)
        for parameters in named.values():
            for (_, parameter), gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
        for optimizer in (*ours, theirs):
            optimizer.step()
    start = _matrices(0)
    for index, shape in enumerate(SHAPES):
        moved = {kind: parameters[index][1].detach() - start[index] for kind, parameters in named.items()}
        scale = moved["torch"].norm()
        assert scale > 0.02 * 0.2 * max(shape) ** 0.5  # of at least one step
        assert (moved["bfloat16"] - moved["torch"]).norm() < 0.02 * scale
        assert (moved["float32"] - moved["torch"]).norm() < 0.02 * scale


@pytest.mark.parametrize("shape", [(16, 16), (16, 64), (64, 16), (8, 200)])
def test_muons_products_of_the_gram_matrix_are_the_iterations(shape: tuple[int, int]) -> None:
    """Against the iteration as published, in float64, for singular values over five orders of magnitude.

    A rounding of the Gram matrix in float32 (6e-8) grows up to 3.4445² times in each of four iterations, to 1.2e-3.
    """
    generator = torch.Generator().manual_seed(3)
    spread = torch.logspace(-5, 0, min(shape), dtype=torch.float64)
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=generator, dtype=torch.float64), full_matrices=False)
    matrix = u * spread @ v
    expected = matrix / matrix.norm()
    for _ in range(5):
        a, b, c = 3.4445, -4.775, 2.0315
        gram = expected @ expected.T
        expected = a * expected + b * gram @ expected + c * gram @ gram @ expected
    got = orthogonalised(matrix.float()[None])[0].double()
    assert (got - expected).abs().max() < 3e-3 * expected.abs().max()
    assert not torch.allclose(got, matrix / matrix.norm(), atol=0.1)


@pytest.mark.parametrize("isa", range(1, _C.best_isa() + 1))
@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize(("count", "n", "terms"), [(1, 1, 1), (2, 23, 300), (3, 24, 256), (2, 97, 513), (1, 160, 40)])
def test_symmetric_products(
    monkeypatch: pytest.MonkeyPatch, isa: int, is_transposed: bool, count: int, n: int, terms: int
) -> None:
    """In tiles that the matrix fills or not, and in one block of terms or more; with the bits of one thread."""
    monkeypatch.setattr(muon, "_BEST_ISA", isa)
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(count, terms, n, generator=generator)
    if is_transposed:
        x = x.mT.contiguous().mT
    addend = torch.randn(count, n, n, generator=generator)
    addend = addend + addend.mT
    wide = x.double()
    plain = wide.mT @ wide
    assert (symmetric_product(x, x) - plain).abs().max() < 1e-6 * plain.diagonal(dim1=1, dim2=2).max()
    expected = 1.5 * plain - 2 * addend.double() + 3 * torch.eye(n, dtype=torch.float64)
    got = symmetric_product(x, x, addend, alpha=1.5, beta=-2, diagonal=3)
    assert (got - expected).abs().max() < 1e-6 * expected.abs().max()
    assert torch.equal(got, got.mT)
    with threads(3):
        assert torch.equal(got, symmetric_product(x, x, addend, alpha=1.5, beta=-2, diagonal=3))


def test_symmetric_products_of_polynomials_and_without_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 40, 30, generator=generator)
    gram = symmetric_product(x, x)
    cubic = symmetric_product(gram, symmetric_product(gram, gram, gram, beta=0.5, alpha=2))
    wide = x.double().mT @ x.double()
    expected = wide @ (0.5 * wide + 2 * wide @ wide)
    assert (cubic - expected).abs().max() < 1e-5 * expected.abs().max()
    assert torch.equal(cubic, cubic.mT)
    monkeypatch.setattr(_C, "best_isa", lambda: 0)
    assert (
        symmetric_product(gram, gram, gram, 2, 0.5, 1) - (2 * gram @ gram + 0.5 * gram + torch.eye(30))
    ).abs().max() < 1e-5 * expected.abs().max()
