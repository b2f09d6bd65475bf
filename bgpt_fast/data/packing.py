"""Packs documents of known lengths into almost full batches, identically on every rank."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Generic, Literal, NamedTuple, TypedDict, TypeVar

import numpy as np

from bgpt_fast.checks import check_int
from bgpt_fast.config import BGPTConfig
from bgpt_fast.data.file_index import (
    FileEntry,
    Paths,
    SkipReport,
    Split,
    as_roots,
    check_split,
    fingerprint,
    modification_digest,
)
from bgpt_fast.data.source import DataError, check_rank
from bgpt_fast.documents import Part, Truncation
from bgpt_fast.patches import PackedPatches

Item = TypeVar("Item")
Batch = TypeVar("Batch")
_SMALLEST_DOCUMENT = 2
_TAIL_DOCUMENTS = 4


def best_fit(lengths: Sequence[int], capacity: int) -> list[int]:
    """The subset of documents with the largest total length that fits `capacity`; prefers early documents.

    Args:
        lengths: number of patches of each document, at least 1.
        capacity: number of patches, at least 0.

    Returns:
        Indices into `lengths`, ascending; empty if none fits.

    Source: subset-sum dynamic programming (Bellman 1957), with the reachable sums as the bits of one integer.
    """
    mask = (1 << capacity + 1) - 1
    reachable = [1]
    for length in lengths:
        if reachable[-1] >> capacity:
            break
        reachable.append((reachable[-1] | reachable[-1] << int(length)) & mask)
    total = reachable[-1].bit_length() - 1
    chosen = []
    for index in reversed(range(len(reachable) - 1)):
        if not reachable[index] >> total & 1:
            chosen.append(index)
            total -= int(lengths[index])
    return chosen[::-1]


@dataclass
class Block(Generic[Item]):
    """Documents in the order in which they are packed; their lengths are known before any is read.

    Args:
        start: the position of the block, JSON-serialisable, with its "epoch".
        items: the keys by which the source reads the documents.
        lengths: number of patches of each document.
        offset: number of documents that have entered the window so far.
        window: the candidates for the next batches, as ascending indices into the block.
    """

    start: dict[str, Any]
    items: Sequence[Item]
    lengths: Sequence[int]
    offset: int = 0
    window: list[int] = field(default_factory=list)


class PlannedDocument(NamedTuple, Generic[Item]):
    """A document planned for a batch, not read yet."""

    epoch: int
    item: Item
    length: int


class SourceOptions(TypedDict, total=False):
    """The keyword arguments shared by all sources of documents; documented in `PackedSource`."""

    seed: int
    split: Split
    eval_share: float
    rank: int
    world_size: int
    look_ahead: int


class PackedSource(ABC, Generic[Item, Batch]):
    """Base class of sources of documents: batches, sharding over ranks, the position, and statistics.

    Documents are packed in the order of their block. Every batch takes the oldest document of a look-ahead window; its
    remainder is filled from the window so that as few patches as possible stay unused. Packing never cuts a document,
    and a block is packed completely before the next one starts, so that an epoch has every document once.

    All ranks plan the same batches; of each group of `world_size` batches, rank r reads batch r. So one batch on each
    of W ranks equals W batches of a single process, the position is the same on all ranks, and it is valid for any
    number of ranks. (A rank that cannot read any document of its batch moves on to its next one, alone.)

    Args:
        paths: files and folders; folders are searched recursively without following links to folders. A file reached
            twice counts once.
        config: determines the patch size and the context length.
        patches_per_batch: maximum number of patches in a batch; at least the context length. If an epoch has fewer,
            it becomes the number of an epoch's patches, with a warning.
        seed: seed of the order, and of the windows that over-long documents are cut to.
        split: "train", "eval", or "all" for both together.
        eval_share: share of the documents in the evaluation split.
        rank, world_size: this process's rank and the number of processes.
        look_ahead: number of documents in the window.

    Raises:
        DataError: a path does not exist, or no usable document.
        TypeError, ValueError: an invalid argument.
    """

    kind = "packed"
    _digest: str
    """A digest of the files' names and sizes, and of the settings that determine the documents."""
    _modified: str
    """A digest of when each file was last changed."""
    _newest: str
    """The file that was changed last."""

    def __init__(
        self,
        paths: Paths,
        config: BGPTConfig,
        patches_per_batch: int,
        *,
        seed: int = 0,
        split: Split = "train",
        eval_share: float = 0.02,
        rank: int = 0,
        world_size: int = 1,
        look_ahead: int = 64,
    ) -> None:
        name = type(self).__name__
        if not isinstance(config, BGPTConfig):
            raise TypeError(f"{name}: config: expected BGPTConfig, got {type(config).__name__}")
        config.check_bytes(f"{name}: config")
        check_int(f"{name}: patches_per_batch", patches_per_batch, 1)
        if patches_per_batch < config.patch_length:
            raise ValueError(
                f"{name}: patches_per_batch: expected at least the context, {config.patch_length}, "
                f"got {patches_per_batch}"
            )
        check_int(f"{name}: seed", seed, 0)
        check_int(f"{name}: look_ahead", look_ahead, 1)
        check_rank(name, rank, world_size)
        check_split(name, split, eval_share)
        self.roots = as_roots(paths)
        self.config = config
        self.patches_per_batch = patches_per_batch
        self.seed = seed
        self.split = split
        self.eval_share = eval_share
        self.rank = rank
        self.world_size = world_size
        self.look_ahead = look_ahead
        self.truncated = 0
        self._skipped = SkipReport()
        self._batches = 0
        self._patches = 0
        self._current: Block[Item] | None = None

    @property
    def fill(self) -> float:
        """Mean share of `patches_per_batch` used by the batches so far; 0 before the first batch."""
        return self._patches / max(self._batches * self.patches_per_batch, 1)

    def next_batch(self) -> Batch:
        """This rank's next batch; continues with the next epoch when one ends.

        Raises:
            DataError: no document of an entire epoch could be read.
        """
        start = self._block().start["epoch"]
        while True:
            items: list[Item] = []
            documents: list[Sequence[Part]] = []
            for rank in range(self.world_size):
                plan = self._plan()
                if rank == self.rank:
                    items, documents = self._read_all(plan, "window")
            if items:
                packed = PackedPatches.from_parts(documents, self.config.patch_size)
                self._batches += 1
                self._patches += packed.num_patches
                self.truncated += packed.truncated
                return self._batch(items, packed)
            if self._block().start["epoch"] > start + 1:
                raise self._nothing_readable()

    def skip_batch(self) -> None:
        """Skips a batch without reading it; advances the position exactly as `next_batch` does."""
        for _ in range(self.world_size):
            self._plan()

    def one_pass(self) -> Iterator[Batch]:
        """One pass over the documents in order, each truncated to its head; does not change the position.

        Rank r gets every `world_size`-th batch starting at batch r: no document is left out, and a rank may get one
        batch less than another.
        """
        for number, plan in enumerate(self._pass_plans()):
            if number % self.world_size == self.rank:
                items, documents = self._read_all(plan, "head")
                if items:
                    yield self._batch(items, PackedPatches.from_parts(documents, self.config.patch_size))

    @abstractmethod
    def evaluation_batches(self, max_patches: int) -> Iterator[Batch]:
        """Batches for evaluations during training, with about `max_patches` patches; does not change the position.

        The same on every rank.
        """

    def state_dict(self) -> dict[str, Any]:
        """The position: epoch, offset and window in its block, and a digest of the files."""
        block = self._block()
        return {
            "source": self.kind,
            **block.start,
            "offset": block.offset,
            "window": list(block.window),
            "files": self._digest,
            "modified": self._modified,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a position; if the files have changed since, warns and goes to the start of its next epoch.

        If only the times of their last changes differ, it warns and goes on at the position: their contents may differ.
        Positions of earlier versions have no times.

        Raises:
            DataError: the position does not belong to this kind of source.
        """
        needed = {*self._start(0), "offset", "window", "files"}
        if state.get("source") != self.kind or not needed <= state.keys():
            raise DataError(
                f"{type(self).__name__}: expected a position in {self.kind}, got one of "
                f"{state.get('source', 'another source')!r}; train on what the run was started with, or use another "
                "run folder"
            )
        if state["files"] != self._digest:
            epoch = int(state["epoch"]) + 1
            warnings.warn(
                f"the files below {self.roots}, or what is read of them, changed since the position was saved: going "
                f"on at the start of epoch {epoch}, not bit for bit",
                stacklevel=2,
            )
            self._current = self._open(self._start(epoch))
            return
        if state.get("modified", self._modified) != self._modified:
            warnings.warn(
                f"files below {self.roots} were changed since the position was saved, last {self._newest!r}: going on "
                "at the same place, but bit for bit only if that was a copy, a new name or a new permission, with the "
                "same contents",
                stacklevel=2,
            )
        block = self._open({name: int(state[name]) for name in self._start(0)})
        block.offset = int(state["offset"])
        block.window = [int(offset) for offset in state["window"]]
        if not all(0 <= offset < block.offset <= len(block.items) for offset in block.window):
            raise DataError(
                f"{type(self).__name__}: expected a position among the {len(block.items)} documents of "
                f"{block.start}, got offset {block.offset} and window {block.window}; the checkpoint is damaged"
            )
        self._current = block

    def describe(self) -> dict[str, Any]:
        """The files, counts of skipped (by reason, the first few by name) and cut documents, the position, and `fill`.

        The statistics cover this rank since it was started.
        """
        block = self._block()
        return {
            "kind": self.kind,
            "documents_cut": self.truncated,
            "skipped": self._skipped.by_reason,
            "warnings": self._skipped.examples,
            "epoch": block.start["epoch"],
            "offset": block.offset,
            "rank": self.rank,
            "world_size": self.world_size,
            "batches": self._batches,
            "patches": self._patches,
            "fill": self.fill,
            "roots": self.roots,
            "split": self.split,
        }

    def _identify(self, entries: Sequence[FileEntry], *settings: object) -> None:
        """Stores what tells a position's files from others; `settings` also determine the documents."""
        self._digest = fingerprint(entries, *settings)
        self._modified = modification_digest(entries)
        self._newest = max(entries, key=lambda entry: (len(entry.modified), entry.modified)).path

    def _limit_batches(self, patches: int) -> None:
        """Shrinks batches to the number of patches of an epoch if there are fewer, and says so."""
        if self.split != "eval" and patches < self.patches_per_batch:
            warnings.warn(
                f"{self.roots}: the {self.split} split holds {patches:,} patches, so batches shrink to that from "
                f"{self.patches_per_batch:,}",
                stacklevel=4,
            )
            self.patches_per_batch = patches

    @abstractmethod
    def _start(self, epoch: int) -> dict[str, Any]:
        """The position of an epoch's first block; all values are ints."""

    @abstractmethod
    def _open(self, start: dict[str, Any]) -> Block[Item]:
        """The block at a position."""

    @abstractmethod
    def _after(self, block: Block[Item]) -> Block[Item]:
        """The next block."""

    @abstractmethod
    def _read(self, item: Item, truncation: Truncation) -> Sequence[Part] | None:
        """The parts of an item's document, with at most the planned patches; None, and reported, if unreadable."""

    @abstractmethod
    def _window_key(self, item: Item) -> list[int]:
        """What seeds the window of an over-long item, besides seed and epoch; empty if it fits the context."""

    @abstractmethod
    def _in_order(self) -> Iterator[tuple[Item, int]]:
        """All items with their lengths, in the order of `one_pass`."""

    @abstractmethod
    def _nothing_readable(self) -> DataError:
        """The error for an epoch in which no document could be read."""

    def _batch(self, items: Sequence[Item], packed: PackedPatches) -> Batch:
        """Makes a batch from the packed documents of `items` (at least one); subclasses may add labels."""
        return packed  # type: ignore[return-value]

    def _block(self) -> Block[Item]:
        if self._current is None:
            self._current = self._open(self._start(0))
        return self._current

    def _read_all(
        self, plan: Sequence[PlannedDocument[Item]], mode: Literal["head", "window"]
    ) -> tuple[list[Item], list[Sequence[Part]]]:
        """The readable ones of the planned items, and the parts of their documents."""
        items: list[Item] = []
        documents: list[Sequence[Part]] = []
        head = Truncation(self.config)
        for epoch, item, _ in plan:
            truncation = head
            if mode == "window" and (key := self._window_key(item)):
                seed = int(np.random.SeedSequence([self.seed, epoch, *key]).generate_state(1)[0])
                truncation = Truncation(self.config, "window", seed)
            files = self._read(item, truncation)
            if files is not None:
                items.append(item)
                documents.append(files)
        return items, documents

    def _plan(self) -> list[PlannedDocument[Item]]:
        """Takes the documents of the next batch out of the block, and advances the position."""
        plan: list[PlannedDocument[Item]] = []
        remaining = self.patches_per_batch
        # While the batch is far from full, take documents in order; search the best fit only for the last few.
        tail = _TAIL_DOCUMENTS * self.config.patch_length
        while remaining >= _SMALLEST_DOCUMENT:
            block = self._block()
            self._fill_window(block)
            if not block.window:
                self._current = self._after(block)
                continue
            chosen: list[int] = []
            for offset in chain(block.window, range(block.offset, len(block.items))):
                length = block.lengths[offset]
                if (plan or chosen) and remaining - length < tail:
                    break
                chosen.append(offset)
                remaining -= length
            block.offset += max(len(chosen) - len(block.window), 0)
            del block.window[: len(chosen)]
            self._fill_window(block)
            last = best_fit([block.lengths[offset] for offset in block.window], remaining)
            chosen += [block.window[index] for index in last]
            for index in reversed(last):
                remaining -= block.lengths[block.window.pop(index)]
            epoch, items, lengths = block.start["epoch"], block.items, block.lengths
            plan += [PlannedDocument(epoch, items[offset], lengths[offset]) for offset in chosen]
            if block.window:
                break
        return plan

    def _fill_window(self, block: Block[Item]) -> None:
        count = min(self.look_ahead - len(block.window), len(block.items) - block.offset)
        block.window += range(block.offset, block.offset + count)
        block.offset += count

    def _pass_plans(self, documents: Iterable[tuple[Item, int]] | None = None) -> Iterator[list[PlannedDocument[Item]]]:
        """Batches of documents, each with its length, in order; None means all."""
        plan: list[PlannedDocument[Item]] = []
        remaining = self.patches_per_batch
        for item, length in self._in_order() if documents is None else documents:
            if length > remaining:
                yield plan
                plan, remaining = [], self.patches_per_batch
            plan.append(PlannedDocument(0, item, length))
            remaining -= length
        if plan:
            yield plan
