"""Argument checks of the ops' Python doors: each names the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_tensor(
    op: str,
    name: str,
    value: object,
    *,
    dtypes: Sequence[torch.dtype] | None = None,
    shape: Sequence[int | str] | None = None,
    device: torch.device | None = None,
) -> None:
    """Checks a tensor argument; in `shape` an int must match and a letter stands for any size.

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
        fits = value.dim() == len(shape) and all(
            isinstance(want, str) or want == got for want, got in zip(shape, value.shape, strict=True)
        )
        if not fits:
            expected = "[" + ", ".join(str(size) for size in shape) + "]"
            raise ValueError(f"{op}: {name}: expected shape {expected}, got {list(value.shape)}")
    if device is not None and value.device != device:
        raise ValueError(f"{op}: {name}: expected device {device} like the other arguments, got {value.device}")
