"""Muon for stacks of equal matrices, in the dtype that the processor multiplies fast.

The update is that of `torch.optim.Muon` (Keller Jordan, 2024; coefficients, Nesterov momentum and state alike), which
orthogonalises one matrix at a time and always in bfloat16: on CPUs without bfloat16 products that takes longer than
the rest of the step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bgpt_fast import _C

_COEFFICIENTS = (3.4445, -4.775, 2.0315)
_ITERATIONS = 5
_EPS = 1e-7
_MIN_ASPECT = 2
"""Columns by rows from which the iteration of the Gram matrix is cheaper than that of the matrix."""
_BEST_ISA = 2  # the widest instruction set to use, where the processor has it


class Muon(torch.optim.Optimizer):
    """Muon with decoupled weight decay.

    Args:
        named_parameters: names and matrices (two dimensions).
        lr: the rate; a step has the root mean square of 0.2 times it in every entry, as AdamW's about has.
        weight_decay: share of a weight that goes with each step, times `lr`.
        momentum: of the gradients' average, used as Nesterov's.
        dtype: torch.bfloat16 or torch.float32, in which the products run.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        lr: float,
        weight_decay: float,
        momentum: float,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(named_parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Updates every matrix that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            stacks: dict[tuple[torch.Size, torch.device], list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    stacks[parameter.shape, parameter.device].append(parameter)
            for (shape, _), parameters in stacks.items():
                updates = orthogonalised(self._directions(parameters, group["momentum"]))
                weights: list[Tensor] = list(parameters)
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                rate = group["lr"] * 0.2 * max(shape) ** 0.5
                torch._foreach_add_(weights, list(updates.to(weights[0].dtype)), alpha=-rate)

    def _directions(self, parameters: list[nn.Parameter], momentum: float) -> Tensor:
        """Gradients with Nesterov momentum [matrices, rows, columns], in the products' dtype."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        averages = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        directions = gradients[0].new_empty(len(gradients), *gradients[0].shape)
        for gradient, average, direction in zip(gradients, averages, directions, strict=True):
            torch.lerp(gradient, average, momentum, out=direction)
        return directions.to(self._dtype)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Matrices with the singular vectors of the given ones and singular values near 1 (0.7 to 1.2).

    Args:
        matrices: [M, rows, columns], bfloat16 or float32.

    Returns:
        The same shape and dtype.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalised(matrices.mT).mT
    if matrices.dtype == torch.float32 and matrices.shape[2] >= _MIN_ASPECT * matrices.shape[1]:
        gram = symmetric_product(matrices.mT, matrices.mT)
        norm = gram.diagonal(dim1=1, dim2=2).sum(1).sqrt().clamp(min=_EPS)[:, None, None]
        return (_gram_products(gram / norm**2) / norm) @ matrices
    x = matrices / torch.linalg.matrix_norm(matrices, keepdim=True).clamp(min=_EPS)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = symmetric_product(x.mT, x.mT)
        x = torch.baddbmm(x, symmetric_product(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _gram_products(gram: Tensor) -> Tensor:
    """The matrices [M, rows, rows] that all iterations together multiply by, from X·Xᵀ; needs float32's precision.

    An iteration multiplies X by P = a + b·G + c·G², where G = X·Xᵀ; so the next G is P·G·P, without X. All are
    polynomials of the first G: symmetric, and in any order the same.
    """
    a, b, c = _COEFFICIENTS
    product = None
    for iteration in range(_ITERATIONS):
        p = symmetric_product(gram, gram, gram, beta=b, alpha=c, diagonal=a)
        product = p if product is None else symmetric_product(p, product)
        if iteration < _ITERATIONS - 1:
            gram = symmetric_product(p, symmetric_product(gram, p))
    assert product is not None
    return product


def symmetric_product(
    x: Tensor, y: Tensor, addend: Tensor | None = None, alpha: float = 1.0, beta: float = 0.0, diagonal: float = 0.0
) -> Tensor:
    """alpha·xᵀ·y + beta·addend + diagonal·I for each matrix, where xᵀ·y is symmetric: half the work of a product.

    In float32 on a CPU with AVX2; elsewhere the whole product.

    Args:
        x: [M, K, n].
        y: the same, or with x and y symmetric, another polynomial of the same matrices.
        addend: [M, n, n], symmetric.

    Returns:
        [M, n, n] in the dtype of x.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or _C.best_isa() == 0:
        base = x.new_zeros(1, 1, 1) if addend is None else addend
        product = torch.baddbmm(base, x.mT, y, beta=beta, alpha=alpha)
        if diagonal:
            product.diagonal(dim1=1, dim2=2).add_(diagonal)
        return product
    if x.stride() != y.stride() or not (x.is_contiguous() or x.mT.is_contiguous()):
        x, y = x.contiguous(), y.contiguous()
    M, K, n = x.shape
    addend = None if addend is None else addend.contiguous()
    product = x.new_empty(M, n, n)
    addresses = x.data_ptr(), y.data_ptr(), 0 if addend is None else addend.data_ptr(), product.data_ptr()
    row, column, threads = x.stride(1), x.stride(2), torch.get_num_threads()
    _C.symmetric_product(*addresses, M, n, K, row, column, alpha, beta, diagonal, threads, _BEST_ISA)
    return product
