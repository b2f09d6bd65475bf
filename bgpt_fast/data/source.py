"""The interface of a source of training batches."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, runtime_checkable

from bgpt_fast.checks import check_int
from bgpt_fast.patches import PackedPatches

Batch = TypeVar("Batch", covariant=True)


class DataError(ValueError):
    """The data cannot be used for training; the message says what was found and what to do."""


class EmptySplitError(DataError):
    """There are documents, but none in the split."""


@runtime_checkable
class BatchSource(Protocol[Batch]):
    """An endless stream of batches of any type with a position that can be saved.

    After `load_state_dict(state)`, the batches are bit-identical to those that followed `state = state_dict()`.
    """

    def next_batch(self) -> Batch:
        """The next batch, on the CPU."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The position, JSON-serialisable."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a position returned by `state_dict`."""
        ...

    def describe(self) -> dict[str, Any]:
        """The source's content and what it skipped, JSON-serialisable, for logs."""
        ...


@runtime_checkable
class Source(BatchSource[PackedPatches], Protocol):
    """An endless stream of `PackedPatches` with a position that can be saved."""


def check_rank(name: str, rank: int, world_size: int) -> None:
    """Raises unless 0 ≤ `rank` < `world_size`; the error begins with `name`."""
    check_int(f"{name}: world_size", world_size, 1)
    check_int(f"{name}: rank", rank, 0)
    if rank >= world_size:
        raise ValueError(f"{name}: rank: expected one of 0…{world_size - 1}, got {rank}")
