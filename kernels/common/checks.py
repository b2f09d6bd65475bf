"""Argument checks of the ops' public functions: each error names the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def or_float32(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """The dtypes of parameters beside activations of `dtype`: the same one, or float32 beside half precision."""
    return (dtype, torch.float32) if dtype in (torch.bfloat16, torch.float16) else (dtype,)


def check_tensor(
    op: str,
    name: str,
    value: object,
    *,
    dtypes: Sequence[torch.dtype] | None = None,
    shape: Sequence[int | str] | None = None,
    device: torch.device | None = None,
    nonempty: str = "",
) -> None:
    """Checks a tensor argument.

    Args:
        op: the function's name, for the error.
        name: the argument's, likewise.
        value: the argument.
        dtypes: those allowed.
        shape: each size as a number, or as a letter that stands for any size.
        device: the one expected.
        nonempty: the letters of the sizes after the first, where those must be at least 1.

    Raises:
        TypeError: not a tensor, or a dtype that is not among `dtypes`.
        ValueError: another rank, size or device.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name}: expected a torch.Tensor, got {type(value).__name__}")
    if dtypes is not None and value.dtype not in dtypes:
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{op}: {name}: expected dtype {expected}, got {str(value.dtype).removeprefix('torch.')}")
    if shape is not None:
        sizes = value.shape
        fits = len(sizes) == len(shape)
        for want, size in zip(shape, sizes, strict=False):
            fits = fits and (want == size or isinstance(want, str))
        if not fits:
            expected = "[" + ", ".join(str(size) for size in shape) + "]"
            raise ValueError(f"{op}: {name}: expected shape {expected}, got {list(value.shape)}")
    if nonempty and 0 in value.shape[1:]:
        raise ValueError(f"{op}: {name}: expected {nonempty} of at least 1, got {list(value.shape)}")
    if device is not None and value.device != device:
        raise ValueError(f"{op}: {name}: expected device {device} like the other arguments, got {value.device}")


def check_inference(op: str, isa: int, *tensors: Tensor | None) -> None:
    """Checks an op that has no gradient and takes an instruction set.

    Raises:
        ValueError: another instruction set than 0, 1 or 2, or a tensor that requires a gradient while they are enabled.
    """
    if isa not in (0, 1, 2):
        raise ValueError(f"{op}: isa: expected 0 (portable), 1 (AVX2) or 2 (AVX-512), got {isa!r}")
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        raise ValueError(
            f"{op}: expected arguments without gradient, got requires_grad=True; it is for inference: call it under "
            "torch.no_grad()"
        )
