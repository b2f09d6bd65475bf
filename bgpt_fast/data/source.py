"""What a trainer draws its batches from."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from bgpt_fast.patches import PackedPatches


class DataError(ValueError):
    """The data cannot be trained on; says what was found and what to do."""


@runtime_checkable
class Source(Protocol):
    """An endless stream of batches with a position that can be saved.

    The batches after `load_state_dict(state)` are those that followed `state_dict()`, bit for bit.
    """

    def next_batch(self) -> PackedPatches:
        """The next batch, on the CPU."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The position, JSON-ready."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position of `state_dict`."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the source holds and what it had to skip, JSON-ready, for logs."""
        ...
