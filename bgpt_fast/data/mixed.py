"""A weighted mixture of sources."""

from __future__ import annotations

import functools
import operator
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from bgpt_fast.checkpoint.task import ModelTask
from bgpt_fast.checks import check_int
from bgpt_fast.data.source import DataError, Source, check_rank
from bgpt_fast.patches import PackedPatches


class MixedSource:
    """Draws each batch from one of several sources, chosen at random with a seed.

    All ranks make the same choices; of each group of `world_size` batches, rank r gets batch r. The others are skipped,
    without reading them if the source has `skip_batch`. So a mixture of one source shards any source over ranks.

    Args:
        sources: each with world_size 1, as the mixture does the sharding.
        weights: each source's share of the batches, at least 0; they need not sum to 1.
        seed: seed of the choices.
        rank, world_size: this process's rank and the number of processes.

    Raises:
        TypeError, ValueError: an invalid argument.
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
        """Skips a batch; advances the position exactly as `next_batch` does."""
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
        """Restores a position from `state_dict`; the weights may differ, and apply from there on.

        Raises:
            DataError: the position belongs to a different number of sources.
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

    @property
    def task(self) -> ModelTask | None:
        """All tasks of the sources, stored with a model's weights; None unless all state theirs."""
        tasks = [getattr(source, "task", None) for source in self.sources]
        return None if None in tasks else functools.reduce(operator.or_, tasks)

    def describe(self) -> dict[str, Any]:
        """The weights, this rank's number of batches from each source, and each source's description."""
        return {
            "kind": "mixed",
            "weights": self.weights,
            "batches": [self._batches[index] for index in range(len(self.sources))],
            "sources": [source.describe() for source in self.sources],
        }

    def _choose(self) -> int:
        # Each choice has its own generator, so the number of choices is the only state.
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
