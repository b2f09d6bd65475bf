"""invariant_linear: y = x W + bias, where a row of y depends on that row of x alone, to the last bit.

Shape letters: M rows, K inputs, N outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bgpt_fast import _C
from bgpt_fast.kernels.common.checks import check_tensor
from bgpt_fast.kernels.invariant_linear.reference import invariant_linear_reference

_DTYPES = (torch.float32, torch.bfloat16)

_library = torch.library.Library("bgpt_fast", "FRAGMENT")
_library.define("invariant_linear(Tensor x, Tensor weight, Tensor? bias, bool gelu, int isa) -> Tensor")


def invariant_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False, isa: int = 2
) -> Tensor:
    """A linear layer for inference whose rounding does not depend on what shares the call.

    On the CPU each output element is its bias plus, one after the other, the sums of blocks of 256 inputs, each a chain
    of fused multiply-adds in ascending order. So its bits depend on its row of `x`, its column of `weight` and its bias
    only: not on M, the row's place, the number of threads (`torch.get_num_threads()`) or the instruction set. On an
    NVIDIA GPU a Triton kernel (not yet run on a GPU) with fixed tiles serves, in which a row's bits depend neither on M
    nor on its place, but are its own, and may be others where `weight` lies otherwise in memory. On other devices the
    library's matrix product serves, which promises none of that. Sums are float32; of bfloat16 the result is rounded
    once.

    Args:
        x: float32 or bfloat16 [M, K].
        weight: of x's dtype [K, N], as GPT-2's Conv1D stores it, or the transpose of [N, K]. On the CPU fastest when
            contiguous and float32.
        bias: of x's dtype or float32 [N], or None.
        gelu: apply the tanh GELU to y.
        isa: the widest instruction set to use, 0 portable, 1 AVX2, 2 AVX-512; the processor's own if that is less.

    Returns:
        [M, N] in x's dtype.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or device, or an argument that asks for a gradient.
    """
    check_tensor("invariant_linear", "x", x, dtypes=_DTYPES, shape=("M", "K"))
    check_tensor("invariant_linear", "weight", weight, dtypes=(x.dtype,), shape=(x.shape[1], "N"), device=x.device)
    if bias is not None:
        allowed = (torch.float32,) if x.dtype == torch.float32 else (x.dtype, torch.float32)
        check_tensor("invariant_linear", "bias", bias, dtypes=allowed, shape=(weight.shape[1],), device=x.device)
    if isa not in (0, 1, 2):
        raise ValueError(f"invariant_linear: isa: expected 0 (portable), 1 (AVX2) or 2 (AVX-512), got {isa!r}")
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        raise ValueError(
            "invariant_linear: expected arguments without gradient, got requires_grad=True; it is for inference: "
            "call it under torch.no_grad()"
        )
    return torch.ops.bgpt_fast.invariant_linear(x, weight, bias, gelu, isa)


def _default(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, isa: int) -> Tensor:
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


def _cuda(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, isa: int) -> Tensor:
    from bgpt_fast.kernels.invariant_linear.triton_kernels import invariant_linear_forward

    return invariant_linear_forward(x, weight, bias, gelu)


_library.impl("invariant_linear", _default, "CompositeExplicitAutograd")
_library.impl("invariant_linear", _cpu, "CPU")
_library.impl("invariant_linear", _cuda, "CUDA")
torch.library.register_fake(
    "bgpt_fast::invariant_linear", lambda x, weight, bias, gelu, isa: x.new_empty(x.shape[0], weight.shape[1])
)
