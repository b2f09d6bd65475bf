"""invariant_linear: y = x W + bias, where the bits of a row of y depend only on that row of x.

Shape letters: M rows, K inputs, N outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bgpt_fast import _C
from bgpt_fast.kernels.common.checks import check_inference, check_tensor, or_float32
from bgpt_fast.kernels.common.register import Op, Triton, register
from bgpt_fast.kernels.invariant_linear.reference import invariant_linear_reference

_DTYPES = (torch.float32, torch.bfloat16)


def invariant_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False, isa: int = 2
) -> Tensor:
    """A linear layer for inference in which a row's rounding does not depend on the other rows.

    On the CPU an output is its bias plus the sums of blocks of 256 inputs, added one after the other; each block is a
    chain of fused multiply-adds in ascending order. So its bits depend on its row of `x`, its column of `weight` and
    its bias only: not on M, the row's index, the number of threads (`torch.get_num_threads()`) or the instruction set.
    An NVIDIA GPU uses a Triton kernel with fixed tiles: a row's bits do not depend on M or on its index, but they
    differ from the CPU's and may change with the strides of `weight`. Other devices use the reference, which gives no
    such guarantee. Sums are float32; a bfloat16 result is rounded once.

    Args:
        x: float32 or bfloat16 [M, K].
        weight: dtype of x [K, N], as GPT-2's Conv1D stores it, or the transpose of [N, K]. On the CPU fastest when
            contiguous and float32.
        bias: dtype of x, or float32 [N], or None.
        gelu: apply the tanh GELU to the output.
        isa: the widest instruction set to use, 0 portable, 1 AVX2, 2 AVX-512; the processor's own if that is less.

    Returns:
        [M, N] in x's dtype.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or device, or an argument that asks for a gradient.
    """
    check_tensor("invariant_linear", "x", x, dtypes=_DTYPES, shape=("M", "K"))
    check_tensor("invariant_linear", "weight", weight, dtypes=(x.dtype,), shape=(x.shape[1], "N"), device=x.device)
    if bias is not None:
        shape, dtypes = (weight.shape[1],), or_float32(x.dtype)
        check_tensor("invariant_linear", "bias", bias, dtypes=dtypes, shape=shape, device=x.device)
    check_inference("invariant_linear", isa, x, weight, bias)
    return torch.ops.bgpt_fast.invariant_linear(x, weight, bias, gelu, isa)


def _reference(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, isa: int) -> Tensor:
    return invariant_linear_reference(x, weight, None if bias is None else bias.to(x.dtype), gelu)


def _cpu(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, isa: int) -> Tensor:
    if x.dtype != torch.float32:
        return _cpu(x.float(), weight.float(), None if bias is None else bias.float(), gelu, isa).to(x.dtype)
    x, weight, bias = x.contiguous(), weight.contiguous(), None if bias is None else bias.contiguous()
    y = x.new_empty(x.shape[0], weight.shape[1])
    _C.invariant_linear(
        x.data_ptr(),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        x.shape[0],
        x.shape[1],
        weight.shape[1],
        gelu,
        torch.get_num_threads(),
        isa,
    )
    return y


_triton = Triton("invariant_linear", "invariant_linear_forward", invariant_linear_reference)
OPS = (
    Op(
        "invariant_linear(Tensor x, Tensor weight, Tensor? bias, bool gelu, int isa) -> Tensor",
        reference=_reference,
        cpu=_cpu,
        cuda=lambda *arguments: _triton(*arguments[:4]),
        fake=lambda x, weight, bias, gelu, isa: x.new_empty(x.shape[0], weight.shape[1]),
    ),
)
_library = register(*OPS)
