"""What all Triton kernels share: launching on the caller's device, and the list of what dispatch may compile."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Makes the tensor's GPU the current one, on which Triton launches; does nothing for CPU tensors (interpreter)."""
    if not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(tensor.device)


# Not Triton's functions, which are made for constants of kernels and take as long as a launch.
def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The least power of two that is at least n, which is at least 1."""
    return 1 << (n - 1).bit_length()


def with_row_stride(x: Tensor) -> tuple[Tensor, int]:
    """A matrix with contiguous rows, copied where they are not, and the distance between its rows."""
    x = x if x.stride(1) == 1 else x.contiguous()
    return x, x.stride(0)


DTYPE_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
"""Triton's names of the kernels' dtypes."""
TENSOR_CORES = "mma.sync|wgmma|tcgen05.mma"
WIDE_LOADS = r"ld\.global\S*\.v4|ld\.global\S*\.v2\.b64"
"""PTX that a `CompileCase` may expect: matrix products on tensor cores, loads of 16 bytes."""


@dataclass(frozen=True)
class CompileCase:
    """One compilation of a Triton kernel that dispatch can choose, which is checked without a GPU.

    Args:
        name: of the case, unique in its op, such as "byte_attention_fwd bf16 d64".
        kernel: the `@triton.jit` function.
        types: of each argument that is no constexpr, as Triton writes them: "*bf16", "*fp32", "*i16", "i32", "fp32".
        constexprs: the values of the others.
        options: num_warps, num_stages, as the launch passes them.
        unaligned: arguments that are not always multiples of 16 (pointers: not always 16-byte aligned).
        expects: regular expressions for instructions that the PTX must have, such as "mma.sync" or "ld.global.v4".
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constexprs: Mapping[str, Any]
    options: Mapping[str, int] = field(default_factory=dict)
    unaligned: frozenset[str] = frozenset()
    expects: tuple[str, ...] = ()
