"""Batches of tunes for the Trainer.

Shape letters: P patches, S characters a patch.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from bgpt_fast.checks import check_int
from bgpt_fast.config import BGPTConfig
from bgpt_fast.data.source import DataError, check_rank
from bgpt_fast.models.notagen.tunes import Patch, check_alphabet, tune_patches
from bgpt_fast.patches import PackedPatches


def pack_tunes(tunes: Sequence[Sequence[Patch]]) -> PackedPatches:
    """A batch of tunes as `tune_patches` returns them: on the CPU; all patches but each tune's first are targets.

    Raises:
        ValueError: no tunes, or one without a patch.
    """
    if not tunes or not all(tunes):
        raise ValueError(f"pack_tunes: tunes: expected tunes of at least one patch, got {[*map(len, tunes)]}")
    ends = np.cumsum([0, *map(len, tunes)])
    patches = torch.tensor([patch for tune in tunes for patch in tune], dtype=torch.int16, device="cpu")
    return PackedPatches(patches, torch.tensor(ends, dtype=torch.int32, device="cpu"))


class TuneSource:
    """An endless stream of batches of tunes, in a new order each epoch; a `Source` for the `Trainer`.

    Args:
        tunes: texts in ABC notation, as `tune_patches` takes them.
        config: with NotaGen's alphabet.
        patches_per_batch: at most, and at least `config.patch_length`.
        stream: as `tune_patches`. What is kept of a tune longer than the context is chosen anew each epoch.
        seed: of order and choice.
        rank, world_size: this process's rank and the number of processes; each gets every `world_size`-th batch.

    Raises:
        DataError: no tunes.
        TuneError: as `tune_patches`; the message names the tune.
        TypeError, ValueError: a wrong argument.
    """

    kind = "tunes"

    def __init__(
        self,
        tunes: Sequence[str],
        config: BGPTConfig,
        patches_per_batch: int,
        *,
        stream: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check_alphabet("TuneSource: config", config)
        check_int("TuneSource: patches_per_batch", patches_per_batch, config.patch_length)
        check_int("TuneSource: seed", seed, 0)
        check_rank("TuneSource", rank, world_size)
        self.tunes, self.config, self.patches_per_batch = [*tunes], config, patches_per_batch
        self.stream, self.seed, self.rank, self.world_size = stream, seed, rank, world_size
        if not self.tunes:
            raise DataError("TuneSource: tunes: expected at least one text, got none")
        for index, text in enumerate(self.tunes):
            try:
                tune_patches(text, config, stream=stream)
            except ValueError as error:
                raise type(error)(f"TuneSource: tunes[{index}]: {error}") from error
        self._digest = hashlib.sha256("\0".join([*self.tunes, str(stream)]).encode()).hexdigest()
        self._epoch = self._offset = 0

    def next_batch(self) -> PackedPatches:
        """This rank's next batch; continues with the next epoch when one ends."""
        batches = [self._next() for _ in range(self.world_size)]
        return pack_tunes(batches[self.rank])

    def _next(self) -> list[list[Patch]]:
        order = np.random.default_rng([self.seed, self._epoch]).permutation(len(self.tunes))
        batch: list[list[Patch]] = []
        total = 0
        for index in order[self._offset :].tolist():
            window = random.Random(f"{self.seed} {self._epoch} {index}")
            patches = tune_patches(self.tunes[index], self.config, stream=self.stream, window=window)
            if batch and total + len(patches) > self.patches_per_batch:
                return batch
            batch.append(patches)
            total += len(patches)
            self._offset += 1
        self._epoch, self._offset = self._epoch + 1, 0
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The position, and a digest of the tunes."""
        return {"source": self.kind, "epoch": self._epoch, "offset": self._offset, "tunes": self._digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a position.

        Raises:
            DataError: the position is one of another source or of other tunes.
        """
        if state.get("source") != self.kind or state.get("tunes") != self._digest:
            raise DataError(
                f"TuneSource: expected a position in these {len(self.tunes)} tunes, got one of "
                f"{state.get('source', 'another source')!r} with other content; train on what the run was started "
                "with, or use another run folder"
            )
        self._epoch, self._offset = int(state["epoch"]), int(state["offset"])

    def describe(self) -> dict[str, Any]:
        """The number of tunes and the position."""
        return {
            "kind": self.kind,
            "tunes": len(self.tunes),
            "stream": self.stream,
            "epoch": self._epoch,
            "offset": self._offset,
            "rank": self.rank,
            "world_size": self.world_size,
        }
