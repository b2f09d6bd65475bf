"""Products of matrices on a CPU, in the library that is fastest for them.

torch's float32 products on x86 processors are MKL's, which uses AVX-512 on Intel's processors alone: on an AMD one
(Zen 5) it reaches half the rate. There they are C++ (csrc/matrix_product); all other products are torch's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bgpt_fast import _C

_BEST_ISA = 2  # the widest instruction set to use, where the processor has it
_IS_CPP = _C.best_isa() == _BEST_ISA and not _C.is_intel()


def takes_cpp(a: Tensor) -> bool:
    """Whether products of `a` on this processor are C++."""
    return _IS_CPP and a.dtype == torch.float32 and a.device.type == "cpu"


def cpu_product(a: Tensor, b: Tensor, bias: Tensor | None = None, *, out: Tensor | None = None) -> Tensor:
    """a b + bias for the ops' implementations on the CPU, without a gradient: [M, K], [K, N] and [N] → [M, N].

    The result is `out`, which is contiguous, or a new tensor.
    """
    if takes_cpp(a):
        return cpp_product(a, b, bias, _BEST_ISA, out=out)
    return torch.mm(a, b, out=out) if bias is None else torch.addmm(bias, a, b, out=out)


def cpp_product(a: Tensor, b: Tensor, bias: Tensor | None, isa: int, *, out: Tensor | None = None) -> Tensor:
    """The same in C++ with an instruction set (0 portable, 1 AVX2, 2 AVX-512), float32 on a CPU, any strides.

    The order in which a sum is added depends on K alone: not on M, N, strides or the number of threads.
    """
    a, b = _with_unit_stride(a), _with_unit_stride(b)
    bias = None if bias is None else bias.contiguous()
    y = a.new_empty(a.shape[0], b.shape[1]) if out is None else out
    left, right = (a.data_ptr(), a.stride(0), a.stride(1)), (b.data_ptr(), b.stride(0), b.stride(1))
    addresses = 0 if bias is None else bias.data_ptr(), y.data_ptr()
    (M, N), K = y.shape, a.shape[1]
    _C.matrix_product(*left, *right, *addresses, M, N, K, torch.get_num_threads(), isa)
    return y


def _with_unit_stride(x: Tensor) -> Tensor:
    return x if 1 in x.stride() and 0 not in x.stride() else x.contiguous()
