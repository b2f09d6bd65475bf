"""A list of documents, each once in every epoch, in a new seeded order."""

from __future__ import annotations

import copy
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Generic

import numpy as np

from bgpt_fast.config import BGPTConfig
from bgpt_fast.data.file_index import FileEntry, Paths, Split, as_roots, check_split, find_files, fingerprint
from bgpt_fast.data.packing import Batch, Block, PackedSource
from bgpt_fast.data.source import DataError

_TRIAL_BATCHES = 1000


class EpochSource(PackedSource[int, Batch], Generic[Batch]):
    """Documents made of files on disk; an epoch is one block of all of them, in a seeded order.

    A subclass finds its documents in `_choose` and reads them by their number.

    Args:
        paths: files and folders; folders are walked, links to folders inside them are not followed. A file that is
            reached twice counts once.
        config: patch size and context.
        patches_per_batch: most patches of a batch; at least the context.
        seed: of the order and of the windows.
        split: "train", "eval", or "all" for both together.
        eval_share: share of the files that is held out.
        rank, world_size: which of how many processes this is; see `PackedSource`.
        look_ahead: documents among which the best fit for a batch's last room is looked for.
    """

    def __init__(
        self,
        paths: Paths,
        config: BGPTConfig,
        patches_per_batch: int,
        *,
        seed: int,
        split: Split,
        eval_share: float,
        rank: int,
        world_size: int,
        look_ahead: int,
    ) -> None:
        super().__init__(config, patches_per_batch, seed, rank, world_size, look_ahead)
        check_split(type(self).__name__, split, eval_share)
        self.split = split
        self.eval_share = eval_share
        self.roots = as_roots(paths)
        found = find_files(self.roots, self._skips)
        if not found:
            raise DataError(
                f"{self.roots}: expected files to read, found none (skipped: {self._skips.by_reason or 'none'})"
            )
        self._lengths = np.array(self._choose(found), dtype=np.int64)
        self._check_amount(len(found))
        self._digest = fingerprint(self._used())

    def __len__(self) -> int:
        """Documents of an epoch, on all ranks together."""
        return len(self._lengths)

    @property
    def total_patches(self) -> int:
        """Patches of an epoch, on all ranks together."""
        return int(self._lengths.sum())

    @property
    def epoch_batches(self) -> float:
        """Batches of an epoch, on all ranks together; room that stays empty makes them more than its patches would.

        Told by as many as a thousand of the first epoch's, which are planned and not read.
        """
        trial = copy.copy(self)
        trial._here = trial._open(trial._start(0))
        batches = patches = 0
        while batches < _TRIAL_BATCHES and trial._block().place["epoch"] == 0:
            patches += sum(document.length for document in trial._plan())
            batches += 1
        return batches * self.total_patches / patches

    def describe(self) -> dict[str, Any]:
        """What was found, skipped (with the first few named), cut and read so far, the position and the fill."""
        used = self._used()
        return {
            **super().describe(),
            "roots": self.roots,
            "split": self.split,
            "files": len(used),
            "bytes": sum(file.size for file in used),
        }

    @abstractmethod
    def _choose(self, found: list[FileEntry]) -> list[int]:
        """Keeps the split's documents among the files found; returns the patches of each."""

    @abstractmethod
    def _used(self) -> list[FileEntry]:
        """The files of the split."""

    def _start(self, epoch: int) -> dict[str, Any]:
        return {"epoch": epoch}

    def _open(self, place: dict[str, Any]) -> Block[int]:
        order = np.random.default_rng([self.seed, place["epoch"]]).permutation(len(self._lengths))
        return Block(place, order, self._lengths[order])  # type: ignore[arg-type]

    def _after(self, block: Block[int]) -> Block[int]:
        return self._open(self._start(block.place["epoch"] + 1))

    def _in_order(self) -> Iterator[tuple[int, int]]:
        return enumerate(self._lengths.tolist())

    def _fingerprint(self) -> str:
        return self._digest

    def _window_seed(self, epoch: int, index: int) -> int:
        return int(np.random.SeedSequence([self.seed, epoch, int(index)]).generate_state(1)[0])

    def _warn_changed(self, epoch: int) -> None:
        warnings.warn(
            f"the files below {self.roots}, or what is taken of them, changed since the position was saved: going on "
            f"at the start of epoch {epoch}, not bit for bit",
            stacklevel=3,
        )

    def _nothing_readable(self) -> DataError:
        return DataError(
            f"none of the {len(self._used())} files below {self.roots} could be read in a whole epoch: "
            f"{self._skips.named}"
        )

    def _check_amount(self, found: int) -> None:
        if not len(self._lengths):
            raise DataError(
                f"{self.roots}: none of the {found} files falls into the {self.split} split at "
                f"eval_share={self.eval_share} (skipped: {self._skips.by_reason or 'none'}); give more files or "
                "another share"
            )
        patches = int(self._lengths.sum())
        if self.split != "eval" and patches < self.patches_per_batch:
            raise DataError(
                f"{self.roots}: the {self.split} split's {len(self._lengths)} documents hold {patches} patches, fewer "
                f"than one batch of patches_per_batch={self.patches_per_batch}; lower it or give more files"
            )
