"""The interface of a source of training batches."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, runtime_checkable

from bgpt_fast.checks import check_int
from bgpt_fast.patches import PackedPatches

Batch = TypeVar("Batch", covariant=True)


class DataError(ValueError):
    """The data cannot be trained on; says what there is and what to do."""


@runtime_checkable
class BatchSource(Protocol[Batch]):
    """An endless stream of batches of any kind with a position that can be saved.

    The batches after `load_state_dict(state)` are those that followed `state_dict()`, bit for bit.
    """

    def next_batch(self) -> Batch:
        """The next batch, on the CPU."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The position, JSON-ready."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position of `state_dict`."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the source has and what it skipped, JSON-ready, for logs."""
        ...


@runtime_checkable
class Source(BatchSource[PackedPatches], Protocol):
    """An endless stream of `PackedPatches` with a position that can be saved."""


def check_rank(name: str, rank: int, world_size: int) -> None:
    """Raises unless `rank` is one of `world_size` ranks; `name` begins the error."""
    check_int(f"{name}: world_size", world_size, 1)
    check_int(f"{name}: rank", rank, 0)
    if rank >= world_size:
        raise ValueError(f"{name}: rank: expected one of 0…{world_size - 1}, got {rank}")
