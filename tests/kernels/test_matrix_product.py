"""matrix_product: values, gradients and bits of the products in C++, on processors that do not use them too."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from support.ops import BF16, F16, F32, F64, DrawnTests, assert_accurate, check_errors, equal, results, seeded, threads
from torch import Tensor

from bgpt_fast.kernels.common import products
from bgpt_fast.kernels.common.products import cpp_product, cpu_product
from bgpt_fast.kernels.matrix_product.op import matrix_product
from bgpt_fast.kernels.matrix_product.reference import matrix_product_reference

ISAS = (0, 1, 2)
# One of everything, tiles with rows and columns missing, several tiles, blocks of terms and blocks of columns.
SHAPES = ((1, 1, 1), (5, 3, 4), (14, 192, 32), (15, 193, 33), (113, 7, 65), (29, 400, 770), (130, 1, 3), (3, 1000, 48))


@pytest.fixture(autouse=True)
def _in_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_IS_CPP", True)


def transposed(x: Tensor) -> Tensor:
    """The same values, with columns adjacent in memory."""
    return x.t().contiguous().t()


class TestMatrixProduct(DrawnTests):
    NAME = "matrix_product"
    function = staticmethod(matrix_product)
    plain = staticmethod(matrix_product_reference)

    @staticmethod
    def wrong_version(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        """Without the last term."""
        return matrix_product(a[:, :-1], b[:-1], bias)

    def draw(self, stream: random.Random) -> list[Any]:
        M, K, N = (stream.choice([1, 2, 13, 14, 15, 31, 32, 33, stream.randrange(1, 400)]) for _ in range(3))
        a, b, bias = seeded(stream.randrange(1000), (M, K), (K, N), (N,))
        a, b = (transposed(x) if stream.random() < 0.5 else x for x in (a, b))
        return [a, b, bias if stream.random() < 0.5 else None]

    def results(self, function: Any, arguments: Any) -> list[Tensor]:
        tensors = [argument for argument in arguments if argument is not None]
        return results(lambda *present: function(*present, *[None] * (3 - len(present))), tensors).all


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa: int) -> None:
    for M, K, N in SHAPES:
        a, b, bias = seeded(M + K + N, (M, K), (K, N), (N,))
        exact, plain = (matrix_product_reference(*(x.to(dtype) for x in (a, b, bias))) for dtype in (F64, F32))
        alone = exact - bias
        dense = cpp_product(a, b, bias, isa)
        assert_accurate([dense], [plain], [exact], ulps=8)
        assert_accurate([cpp_product(a, b, None, isa)], [a @ b], [alone], ulps=8)
        for x in (a, transposed(a), a.repeat_interleave(2, 1)[:, ::2], torch.cat([a, a], 1)[:, :K]):
            for y in (b, transposed(b), torch.cat([b, b], 1)[:, :N]):
                for count in (1, 2, 3):
                    with threads(count):
                        assert torch.equal(cpp_product(x, y, bias, isa), dense)


def test_a_row_and_a_column_do_not_depend_on_the_others() -> None:
    a, b, bias = seeded(0, (200, 300), (300, 100), (100,))
    y = matrix_product(a, b, bias)
    assert torch.equal(matrix_product(a[17:20], b, bias), y[17:20])
    assert torch.equal(matrix_product(a, b[:, 40:43], bias[40:43]), y[:, 40:43])
    a[3], b[:, 5] = torch.nan, torch.inf
    changed = matrix_product(a, b, bias)
    assert changed[3].isnan().all()
    assert not changed[4:, 5].isfinite().any()
    others = torch.ones_like(y, dtype=torch.bool)
    others[3], others[:, 5] = False, False
    assert torch.equal(changed[others], y[others])


def test_empty_products() -> None:
    for M, K, N in ((0, 3, 4), (3, 0, 4), (3, 4, 0)):
        a, b, bias = torch.ones(M, K), torch.ones(K, N), torch.ones(N)
        assert torch.equal(matrix_product(a, b, bias), a @ b + bias)


def test_each_gradient_alone() -> None:
    inputs = seeded(3, (20, 30), (30, 40), (40,))
    expected = results(matrix_product, inputs).gradients
    for i, gradient in enumerate(expected):
        leaves = [x.clone().requires_grad_(j == i) for j, x in enumerate(inputs)]
        y = matrix_product(*leaves)
        assert torch.equal(torch.autograd.grad(y, leaves[i], seeded(1, (20, 40))[0])[0], gradient)


def test_second_derivatives() -> None:
    """A product's gradient is products, so that they have gradients too."""
    inputs = [x.requires_grad_() for x in seeded(4, (3, 4), (4, 5))]
    ours, plain = (
        torch.autograd.grad(torch.autograd.grad(f(*inputs).square().sum(), inputs, create_graph=True)[0].sum(), inputs)
        for f in (matrix_product, torch.matmul)
    )
    for got, want in zip(ours, plain, strict=True):
        torch.testing.assert_close(got, want)


def test_registration() -> None:
    a, b, bias = (x.requires_grad_() for x in seeded(5, (5, 6), (6, 7), (7,)))
    for arguments in ((a, b, bias), (a, b, None), (transposed(a.detach()), b.detach(), None)):
        torch.library.opcheck(torch.ops.bgpt_fast.matrix_product.default, arguments)


@pytest.mark.parametrize("dtype", [BF16, F16, F64])
def test_other_dtypes_are_torchs(dtype: torch.dtype) -> None:
    a, b, bias = (x.to(dtype) for x in seeded(6, (9, 8), (8, 7), (7,)))
    for function in (matrix_product, cpu_product):
        assert equal([function(a, b, bias), function(a, b)], [torch.addmm(bias, a, b), a @ b])


def test_where_torch_is_as_fast_products_are_its(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_IS_CPP", False)
    a, b, bias = seeded(7, (90, 80), (80, 70), (70,))
    for function in (matrix_product, cpu_product):
        assert torch.equal(function(a, b, bias), torch.addmm(bias, a, b))


def test_wrong_arguments_are_named() -> None:
    a, b, bias = seeded(8, (3, 4), (4, 5), (5,))
    wrong: dict[str, tuple[Any, ...]] = {
        "a: expected a torch.Tensor, got list": ([1.0], b),
        r"a: expected shape \[M, K\], got \[4\]": (a[0], b),
        "a: expected dtype float32 or .*, got int64": (a.long(), b),
        "b: expected dtype float32, got float64": (a, b.double()),
        r"b: expected shape \[4, N\], got \[5, 4\]": (a, b.t()),
        "b: expected device": (a, b.to("meta")),
        r"bias: expected shape \[5\], got \[4\]": (a, b, bias[:4]),
        "bias: expected dtype float32, got bfloat16": (a, b, bias.bfloat16()),
    }
    check_errors(matrix_product, wrong, "matrix_product: ")
