"""matrix_product: products of matrices, in C++ where torch's are slower (kernels/common/products.py).

Shape letters: M rows, K terms of each sum, N columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bgpt_fast.kernels.common.checks import FLOATS, check_tensor
from bgpt_fast.kernels.common.products import cpu_product, takes_cpp
from bgpt_fast.kernels.common.register import Op, register
from bgpt_fast.kernels.matrix_product.reference import matrix_product_reference


def matrix_product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b + bias.

    Args:
        a: float [M, K], any strides.
        b: float [K, N], of the dtype and device of `a`, any strides.
        bias: float [N], likewise; None for none.

    Returns:
        float [M, N], contiguous, of the dtype and device of `a`.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or device.
    """
    check_tensor("matrix_product", "a", a, dtypes=FLOATS, shape=("M", "K"))
    dtypes, device = (a.dtype,), a.device
    check_tensor("matrix_product", "b", b, dtypes=dtypes, shape=(a.shape[1], "N"), device=device)
    if bias is not None:
        check_tensor("matrix_product", "bias", bias, dtypes=dtypes, shape=(b.shape[1],), device=device)
    if takes_cpp(a):
        return torch.ops.bgpt_fast.matrix_product(a, b, bias)
    # Not through our op: torch's own gradient costs less.
    return matrix_product_reference(a, b, bias)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[:2])


def _backward(ctx, dy: Tensor):  # type: ignore[no-untyped-def]
    a, b = ctx.saved_tensors
    needs_a, needs_b, needs_bias = ctx.needs_input_grad[:3]
    product = torch.ops.bgpt_fast.matrix_product
    da = product(dy, b.t(), None) if needs_a else None
    db = product(a.t(), dy, None) if needs_b else None
    return da, db, dy.sum(0) if needs_bias else None


OPS = (
    Op(
        "matrix_product(Tensor a, Tensor b, Tensor? bias) -> Tensor",
        reference=matrix_product_reference,
        cpu=cpu_product,
        fake=lambda a, b, bias: a.new_empty(a.shape[0], b.shape[1]),
        setup_context=_setup_context,
        backward=_backward,
    ),
)
_library = register(*OPS)
