"""A mixture of sources by weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from bgpt_fast.checks import check_int
from bgpt_fast.data.source import DataError, Source, check_rank
from bgpt_fast.patches import PackedPatches


class MixedSource:
    """Each batch is one of several sources', chosen at random by seed.

    All ranks choose alike; of each group of `world_size` batches, rank r reads the r-th. The others are skipped, and
    not even read if the source has `skip_batch`. So a mixture of one source shards any source over ranks.

    Args:
        sources: each with world_size 1: the mixture does the sharding.
        weights: shares of the batches, at least 0 each; they need not sum to 1.
        seed: of the choices.
        rank, world_size: which of how many processes this is.

    Raises:
        TypeError, ValueError: a wrong argument.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        weights: Sequence[float],
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check_int("MixedSource: seed", seed, 0)
        check_rank("MixedSource", rank, world_size)
        for source in sources:
            if not isinstance(source, Source):
                raise TypeError(f"MixedSource: sources: expected sources of batches, got {type(source).__name__}")
            if getattr(source, "world_size", 1) != 1:
                raise ValueError(
                    "MixedSource: sources: expected each with world_size=1, got "
                    f"{source.world_size}; give rank and world_size to the mixture alone"  # type: ignore[attr-defined]
                )
        values = np.asarray(weights, dtype=np.float64)
        if values.shape != (len(sources),) or not len(sources):
            raise ValueError(
                f"MixedSource: weights: expected one for each of {len(sources)} sources, at least one, got {weights!r}"
            )
        if not np.isfinite(values).all() or (values < 0).any() or values.sum() <= 0:
            raise ValueError(f"MixedSource: weights: expected finite ones of at least 0, not all 0, got {weights!r}")
        self.sources = list(sources)
        self.weights = (values / values.sum()).tolist()
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._num_choices = 0
        self._batches: Counter[int] = Counter()

    def next_batch(self) -> PackedPatches:
        """This rank's next batch."""
        batch = None
        for rank in range(self.world_size):
            chosen = self._choose()
            if rank == self.rank:
                self._batches[chosen] += 1
                batch = self.sources[chosen].next_batch()
            else:
                _skip(self.sources[chosen])
        assert batch is not None
        return batch

    def skip_batch(self) -> None:
        """Passes over a batch: the position changes as `next_batch` changes it."""
        for _ in range(self.world_size):
            _skip(self.sources[self._choose()])

    def state_dict(self) -> dict[str, Any]:
        """The number of choices so far, and the position of each source."""
        return {
            "source": "mixed",
            "drawn": self._num_choices,
            "weights": self.weights,
            "sources": [source.state_dict() for source in self.sources],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position of `state_dict`; the weights may differ, and hold from there on.

        Raises:
            DataError: the position is not one of as many sources.
        """
        if state.get("source") != "mixed" or len(state.get("sources", ())) != len(self.sources):
            raise DataError(
                f"MixedSource: expected a position in {len(self.sources)} mixed sources, got one of "
                f"{state.get('source', 'another source')!r} with {len(state.get('sources', ()))}; train on what the "
                "run was started with, or use another run folder"
            )
        for source, position in zip(self.sources, state["sources"], strict=True):
            source.load_state_dict(position)
        self._num_choices = int(state["drawn"])

    def describe(self) -> dict[str, Any]:
        """The weights, how many batches this rank has of each source, and each source's description."""
        return {
            "kind": "mixed",
            "weights": self.weights,
            "batches": [self._batches[index] for index in range(len(self.sources))],
            "sources": [source.describe() for source in self.sources],
        }

    def _choose(self) -> int:
        # Each choice has its own generator, so that the number of choices is the whole position.
        point = np.random.default_rng([self.seed, self._num_choices]).random()
        self._num_choices += 1
        last = int(np.flatnonzero(self.weights)[-1])
        return min(int(np.searchsorted(np.cumsum(self.weights), point, side="right")), last)


def _skip(source: Source) -> None:
    skip = getattr(source, "skip_batch", None)
    if skip is None:
        source.next_batch()
    else:
        skip()
