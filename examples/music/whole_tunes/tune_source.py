"""Batches of conversion pairs by stages: excerpts of some bars, whole generated tunes, and real training tunes.

Only the target file of a pair is in the loss: how the source goes on cannot be known, and learning to guess it would
take most of a small model's capacity.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tune_pairs import TUNES, Pair, cached_chunk

from bgpt_fast import BGPTConfig
from bgpt_fast.checkpoint.task import ModelTask
from bgpt_fast.data import DataError
from bgpt_fast.documents import Part, count_patches
from bgpt_fast.patches import PackedPatches

DIRECTIONS = (("abc", "mid"), ("mid", "abc"))


class TuneSource:
    """An endless stream of batches; a batch depends on the position alone.

    Args:
        config: of the model; pairs over its context are left out.
        patches_per_batch: at most so many patches in a batch; at least the context.
        stages: each with `batches` (how many; the last one does not end), `documents` (how often each kind comes:
            "real", or a kind of `new_tune`), `backward` (share of the pairs from MIDI to ABC), and perhaps `patches`
            (of a batch, at most; longer pairs are left out).
        real: folder of real training pairs NAME.abc, NAME.mid.
        cache: folder of the generated chunks.
        seed: of everything.
    """

    def __init__(
        self,
        config: BGPTConfig,
        patches_per_batch: int,
        stages: Sequence[dict[str, Any]],
        real: Path,
        cache: Path,
        seed: int,
    ) -> None:
        if patches_per_batch < config.patch_length:
            raise ValueError(f"patches_per_batch: expected at least {config.patch_length}, got {patches_per_batch}")
        self.config = config
        self.patches_per_batch = patches_per_batch
        self.stages = list(stages)
        self.cache = cache
        self.seed = seed
        self.task = ModelTask.of("conversion", extensions=DIRECTIONS[0], conversions=["abc->mid", "mid->abc"])
        self._real = [
            Pair(path.read_bytes(), path.with_suffix(".mid").read_bytes()) for path in sorted(real.glob("*.abc"))
        ]
        if not self._real:
            raise DataError(f"{real}: expected pairs NAME.abc and NAME.mid, got none")
        self._batch = 0
        self._documents: Counter[str] = Counter()
        self._over = 0
        self._chunks: dict[str, tuple[int, list[Pair]]] = {}

    @property
    def stage(self) -> dict[str, Any]:
        """The stage of the next batch."""
        left = self._batch
        for stage in self.stages[:-1]:
            left -= stage["batches"]
            if left < 0:
                return stage
        return self.stages[-1]

    def next_batch(self) -> PackedPatches:
        """The next batch: documents until one does not fit, which then is the first of its kind in the next one."""
        rng = np.random.default_rng([self.seed, self._batch])
        stage = self.stage
        kinds, weights = list(stage["documents"]), np.array(list(stage["documents"].values()), dtype=float)
        documents: list[tuple[tuple[Part, Part], int]] = []
        most = min(stage.get("patches", self.patches_per_batch), self.patches_per_batch)
        free = most
        while True:
            kind = kinds[rng.choice(len(kinds), p=weights / weights.sum())]
            direction = DIRECTIONS[int(rng.random() < stage["backward"])]
            pair = self._pair(kind, self._documents[kind])
            files = dict(zip(DIRECTIONS[0], pair, strict=True))
            source, target = (files[extension] for extension in direction)
            S = self.config.patch_size
            before = count_patches(len(source), S, False)
            length = before + count_patches(len(target), S)
            if length > min(most, self.config.patch_length):
                self._documents[kind] += 1
                self._over += 1
                continue
            if length > free:
                break
            free -= length
            self._documents[kind] += 1
            parts = (Part(direction[0].encode(), source, False), Part(direction[1].encode(), target, True))
            documents.append((parts, before + 1))
        self._batch += 1
        return PackedPatches.concatenate(
            [
                PackedPatches.from_parts([parts], self.config.patch_size, first_target=first)
                for parts, first in documents
            ]
        )

    def _pair(self, kind: str, number: int) -> Pair:
        if kind == "real":
            epoch, place = divmod(number, len(self._real))
            if self._chunks.get(kind, (-1,))[0] != epoch:
                order = np.random.default_rng([self.seed, 1, epoch]).permutation(len(self._real))
                self._chunks[kind] = epoch, [self._real[i] for i in order]
            return self._chunks[kind][1][place]
        index, place = divmod(number, TUNES)
        if self._chunks.get(kind, (-1,))[0] != index:
            self._chunks[kind] = index, cached_chunk(self.cache, self.seed, index, kind)
        pairs = self._chunks[kind][1]
        return pairs[place % len(pairs)]

    def state_dict(self) -> dict[str, Any]:
        """The position, JSON-ready."""
        return {"source": "tunes", "batch": self._batch, "documents": dict(self._documents), "over": self._over}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position of `state_dict`."""
        self._batch = state["batch"]
        self._documents = Counter(state["documents"])
        self._over = state["over"]

    def describe(self) -> dict[str, Any]:
        """Stages and counts, JSON-ready."""
        return {"kind": "tunes", "stages": self.stages, "real": len(self._real), **self.state_dict()}
