"""DTensors: tensors sharded over ranks.

`torch.distributed.tensor` takes a second to import and most runs do not need it, so it is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_dtensor(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor is a DTensor."""
    return hasattr(tensor, "full_tensor")


def with_layout_of(tensor: Tensor, target: Tensor) -> Tensor:
    """Moves a tensor that every rank has in full to the device of `target`, and shards it like `target`."""
    local = tensor.to(target.device)
    if not is_dtensor(target):
        return local
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(local, target.device_mesh, target.placements, src_data_rank=None)
