"""Sources that yield a fixed list of documents once per epoch, in a new seeded order."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Generic, Unpack

import numpy as np

from bgpt_fast.config import BGPTConfig
from bgpt_fast.data.file_index import FileEntry, Paths, find_files
from bgpt_fast.data.packing import Batch, Block, PackedSource, SourceOptions
from bgpt_fast.data.source import DataError, EmptySplitError
from bgpt_fast.patches import PackedPatches

_TRIAL_BATCHES = 1000


class EpochSource(PackedSource[int, Batch], Generic[Batch]):
    """Documents from files on disk; each epoch is one block with all of them, in a seeded order.

    A subclass chooses its documents in `_choose` and reads them by index.

    Args:
        paths, config, patches_per_batch, options: as `PackedSource`.
    """

    def __init__(
        self, paths: Paths, config: BGPTConfig, patches_per_batch: int, **options: Unpack[SourceOptions]
    ) -> None:
        super().__init__(paths, config, patches_per_batch, **options)
        entries = find_files(self.roots, self._skipped)
        if not entries:
            raise DataError(
                f"{self.roots}: expected files to read, found none (skipped: {self._skipped.by_reason or 'none'})"
            )
        self._lengths = np.array(self._choose(entries), dtype=np.int64)
        self._check_amount(len(entries))
        self._identify(self._entries())

    def __len__(self) -> int:
        """Documents per epoch, summed over ranks."""
        return len(self._lengths)

    @property
    def total_patches(self) -> int:
        """Patches per epoch, summed over ranks."""
        return int(self._lengths.sum())

    @property
    def epoch_batches(self) -> float:
        """Batches per epoch, summed over ranks, taking into account that batches are not quite full.

        Estimated from up to a thousand batches of the first epoch, which are planned but not read.
        """
        trial = copy.copy(self)
        trial._current = trial._open(trial._start(0))
        batches = patches = 0
        while batches < _TRIAL_BATCHES and trial._block().start["epoch"] == 0:
            patches += sum(document.length for document in trial._plan())
            batches += 1
        return batches * self.total_patches / patches

    def evaluation_batches(self, max_patches: int) -> Iterator[Batch]:
        """As `PackedSource.evaluation_batches`: whole documents, or their heads; all, or a random sample that fits."""
        chosen = np.arange(len(self._lengths))
        if self.total_patches > max_patches:
            order = np.random.default_rng([self.seed, max_patches]).permutation(chosen)
            fitting = int(np.searchsorted(self._lengths[order].cumsum(), max_patches, side="right"))
            chosen = np.sort(order[: max(fitting, 1)])
        for plan in self._pass_plans((index, int(self._lengths[index])) for index in chosen.tolist()):
            items, documents = self._read_all(plan, "head")
            if items:
                yield self._batch(items, PackedPatches.from_parts(documents, self.config.patch_size))

    def describe(self) -> dict[str, Any]:
        """As `PackedSource.describe`, with the number of documents and files, the files' size in bytes, the number of
        documents over the context, and the patches of the longest document, skipped ones included."""
        entries = self._entries()
        longest, over = self._longest()
        sizes = {"longest": longest, "over_context": over}
        amounts = {"documents": len(self), "files": len(entries), "bytes": sum(entry.size for entry in entries)}
        return {**super().describe(), **amounts, **sizes}

    @abstractmethod
    def _choose(self, entries: list[FileEntry]) -> list[int]:
        """Selects and stores the documents of the split; returns the number of patches of each."""

    @abstractmethod
    def _longest(self) -> tuple[int, int]:
        """The number of patches of the longest document, and the number of documents over the context."""

    @abstractmethod
    def _entries(self) -> list[FileEntry]:
        """The files of the split."""

    def _start(self, epoch: int) -> dict[str, Any]:
        return {"epoch": epoch}

    def _open(self, start: dict[str, Any]) -> Block[int]:
        order = np.random.default_rng([self.seed, start["epoch"]]).permutation(len(self._lengths))
        return Block(start, order.tolist(), self._lengths[order].tolist())

    def _after(self, block: Block[int]) -> Block[int]:
        return self._open(self._start(block.start["epoch"] + 1))

    def _in_order(self) -> Iterator[tuple[int, int]]:
        return enumerate(self._lengths.tolist())

    def _window_key(self, item: int) -> list[int]:
        return [item] if self._lengths[item] >= self.config.patch_length else []

    def _nothing_readable(self) -> DataError:
        return DataError(
            f"none of the {len(self._entries())} files below {self.roots} could be read in a whole epoch: "
            f"{self._skipped.examples}"
        )

    def _check_amount(self, files: int) -> None:
        if not len(self._lengths):
            raise self._nothing_chosen(files)
        self._limit_batches(self.total_patches)

    def _nothing_chosen(self, files: int) -> DataError:
        """The error if none of a number of files gives a document of the split; it names the cause."""
        return EmptySplitError(
            f"{self.roots}: none of the {files} files falls into the {self.split} split at "
            f"a share of {self.eval_share:g} for evaluation (skipped: {self._skipped.by_reason or 'none'}); give more "
            "files, or another share (eval_share, --eval-share)"
        )
