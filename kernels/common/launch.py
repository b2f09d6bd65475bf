"""What every Triton launch shares: the caller's device, and a list of what dispatch may compile."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Makes the tensor's GPU the current one, where Triton launches; on the CPU (Triton's interpreter) does nothing."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


@dataclass(frozen=True)
class CompileCase:
    """One compilation of a Triton kernel that dispatch can choose, to be proved without a GPU.

    Args:
        name: of the case, unique in its room, such as "byte_attention_fwd bf16 d64".
        kernel: the `@triton.jit` function.
        types: of each argument that is no constexpr, as Triton writes them: "*bf16", "*fp32", "*i16", "i32", "fp32".
        constexprs: the values of the others.
        options: num_warps, num_stages: as the launch passes them.
        unaligned: arguments that are not always multiples of 16 (pointers: not always 16-byte aligned).
        expects: pieces of PTX that must be there, such as "mma.sync" or "ld.global.v4"; alternatives are joined by "|".
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constexprs: Mapping[str, Any]
    options: Mapping[str, int] = field(default_factory=dict)
    unaligned: frozenset[str] = frozenset()
    expects: tuple[str, ...] = ()
