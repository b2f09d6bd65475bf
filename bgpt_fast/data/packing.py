"""Documents of known lengths into batches with almost no room left over, the same way on every rank."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from bgpt_fast.config import BGPTConfig
from bgpt_fast.data.file_index import Skips
from bgpt_fast.data.source import DataError, check_int, check_rank
from bgpt_fast.patches import PackedPatches

Item = TypeVar("Item")
Batch = TypeVar("Batch")
_SMALLEST_DOCUMENT = 2
_TAIL_DOCUMENTS = 4


def best_fit(lengths: Sequence[int], room: int) -> list[int]:
    """The documents that together fill `room` best: exactly the largest sum that fits, made of early ones.

    Args:
        lengths: patches of each document, at least 1.
        room: patches, at least 0.

    Returns:
        Indices into `lengths`, rising; empty if none fits.

    Source: the subset-sum dynamic programme (Bellman 1957), its reachable sums as the bits of one integer.
    """
    mask = (1 << room + 1) - 1
    reachable = [1]
    for length in lengths:
        if reachable[-1] >> room:
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
    """Documents in the order in which they are packed; how long each is was known before any was read.

    Args:
        place: where the block is, JSON-ready, with its "epoch".
        items: what the source reads each document by.
        lengths: patches of each.
        offset: how many have been looked at.
        window: offsets of those that have been looked at and are in no batch yet, rising.
    """

    place: dict[str, Any]
    items: Sequence[Item]
    lengths: Sequence[int]
    offset: int = 0
    window: list[int] = field(default_factory=list)


class Planned(NamedTuple, Generic[Item]):
    """A document's place in a batch, before it is read."""

    epoch: int
    item: Item
    length: int


class PackedSource(ABC, Generic[Item, Batch]):
    """What all sources share that pack documents: batches, ranks, the position, and figures.

    Documents come in the order of their block. The oldest one is in every batch, and the last room of a batch is filled
    from a window of the next documents so that as little as possible stays empty. No document is cut for it, and a
    block is packed to its end before the next one is begun, so that an epoch has every document once.

    All ranks plan the same batches; of each round of `world_size` batches, rank r reads the r-th. So W ranks get in one
    round what one process gets in W batches, the position is the same on all ranks, and it holds for any number of
    ranks. (Where a rank cannot read a single document of its batch, it alone goes on to its next.)

    Args:
        config: patch size and context.
        patches_per_batch: most patches of a batch; at least the context.
        seed: of order and windows.
        rank, world_size: which of how many processes this is.
        look_ahead: documents in the window.
    """

    kind = "packed"

    def __init__(
        self, config: BGPTConfig, patches_per_batch: int, seed: int, rank: int, world_size: int, look_ahead: int
    ) -> None:
        name = type(self).__name__
        if not isinstance(config, BGPTConfig):
            raise TypeError(f"{name}: config: expected BGPTConfig, got {type(config).__name__}")
        check_int(f"{name}: patches_per_batch", patches_per_batch, 1)
        if patches_per_batch < config.patch_length:
            raise ValueError(
                f"{name}: patches_per_batch: expected at least the context, {config.patch_length}, "
                f"got {patches_per_batch}"
            )
        check_int(f"{name}: seed", seed, 0)
        check_int(f"{name}: look_ahead", look_ahead, 1)
        check_rank(name, rank, world_size)
        self.config = config
        self.patches_per_batch = patches_per_batch
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.look_ahead = look_ahead
        self.truncated = 0
        self._skips = Skips()
        self._batches = 0
        self._patches = 0
        self._here: Block[Item] | None = None

    @property
    def fill(self) -> float:
        """Share of the room of the batches handed out so far that holds patches; 0 before the first."""
        return self._patches / max(self._batches * self.patches_per_batch, 1)

    def next_batch(self) -> Batch:
        """This rank's next batch, which goes on into the next epoch where one ends.

        Raises:
            DataError: not one document of a whole epoch could be read.
        """
        start = self._block().place["epoch"]
        while True:
            documents: list[tuple[Item, PackedPatches]] = []
            for rank in range(self.world_size):
                plan = self._plan()
                if rank == self.rank:
                    documents = self._read_all(plan, "window")
            if documents:
                self._batches += 1
                self._patches += sum(document.num_patches for _, document in documents)
                self.truncated += sum(document.truncated for _, document in documents)
                return self._assemble(documents)
            if self._block().place["epoch"] > start + 1:
                raise self._nothing_readable()

    def skip_batch(self) -> None:
        """Goes past a batch without reading it: what `next_batch` does to the position."""
        for _ in range(self.world_size):
            self._plan()

    def one_pass(self) -> Iterator[Batch]:
        """This rank's share of every document once, in order, over-long ones cut to their head; moves no position.

        Of the batches, rank r gets every `world_size`-th from the r-th on: nothing is left out, and a rank may get one
        batch less than another.
        """
        for number, plan in enumerate(self._pass_plans()):
            if number % self.world_size == self.rank:
                documents = self._read_all(plan, "head")
                if documents:
                    yield self._assemble(documents)

    def state_dict(self) -> dict[str, Any]:
        """The position: epoch, offset of the next document to look at, those in the window, and what was read from."""
        block = self._block()
        return {
            "source": self.kind,
            **block.place,
            "offset": block.offset,
            "window": list(block.window),
            "files": self._fingerprint(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position; if the files have changed since, to the start of its next epoch, with a warning.

        Raises:
            DataError: the position is not one of such a source.
        """
        needed = {*self._start(0), "offset", "window", "files"}
        if state.get("source") != self.kind or not needed <= state.keys():
            raise DataError(
                f"{type(self).__name__}: expected a position in {self.kind}, got one of "
                f"{state.get('source', 'another source')!r}; train on what the run was started with, or use another "
                "run folder"
            )
        if state["files"] != self._fingerprint():
            self._warn_changed(int(state["epoch"]) + 1)
            self._here = self._open(self._start(int(state["epoch"]) + 1))
            return
        block = self._open({name: int(state[name]) for name in self._start(0)})
        block.offset = int(state["offset"])
        block.window = [int(offset) for offset in state["window"]]
        if not all(0 <= offset < block.offset <= len(block.items) for offset in block.window):
            raise DataError(
                f"{type(self).__name__}: expected a position among the {len(block.items)} documents of "
                f"{block.place}, got offset {block.offset} and window {block.window}; the checkpoint is damaged"
            )
        self._here = block

    def describe(self) -> dict[str, Any]:
        """What there is, what was skipped by reason (with the first few named), what was cut, the position, the fill.

        The figures are those of this rank since it was started.
        """
        block = self._block()
        return {
            "kind": self.kind,
            "documents_cut": self.truncated,
            "skipped": self._skips.by_reason,
            "warnings": self._skips.named,
            "epoch": block.place["epoch"],
            "offset": block.offset,
            "rank": self.rank,
            "world_size": self.world_size,
            "batches": self._batches,
            "patches": self._patches,
            "fill": self.fill,
        }

    @abstractmethod
    def _start(self, epoch: int) -> dict[str, Any]:
        """The place of an epoch's first block, all values ints."""

    @abstractmethod
    def _open(self, place: dict[str, Any]) -> Block[Item]:
        """The block at a place."""

    @abstractmethod
    def _after(self, block: Block[Item]) -> Block[Item]:
        """The next block."""

    @abstractmethod
    def _read(self, epoch: int, item: Item, truncation: Literal["head", "window"]) -> PackedPatches | None:
        """An item's document, of no more patches than planned; None, and a note, if it cannot be read."""

    @abstractmethod
    def _assemble(self, documents: Sequence[tuple[Item, PackedPatches]]) -> Batch:
        """A batch of one document or more."""

    @abstractmethod
    def _in_order(self) -> Iterator[tuple[Item, int]]:
        """All items with their lengths in the order of a pass."""

    @abstractmethod
    def _fingerprint(self) -> str:
        """A digest of what is read from."""

    @abstractmethod
    def _warn_changed(self, epoch: int) -> None:
        """Says that what is read from has changed, and that the source goes on at the start of `epoch`."""

    @abstractmethod
    def _nothing_readable(self) -> DataError:
        """The error for an epoch of which nothing could be read."""

    def _block(self) -> Block[Item]:
        if self._here is None:
            self._here = self._open(self._start(0))
        return self._here

    def _read_all(
        self, plan: Sequence[Planned[Item]], truncation: Literal["head", "window"]
    ) -> list[tuple[Item, PackedPatches]]:
        read = ((item, self._read(epoch, item, truncation)) for epoch, item, _ in plan)
        return [(item, document) for item, document in read if document is not None]

    def _plan(self) -> list[Planned[Item]]:
        """Takes the next batch's documents off the order."""
        planned: list[Planned[Item]] = []
        room = self.patches_per_batch
        # Far from full, any document will do; the best fit is looked for among the last few.
        tail = _TAIL_DOCUMENTS * self.config.patch_length
        while room >= _SMALLEST_DOCUMENT:
            block = self._block()
            self._fill_window(block)
            if not block.window:
                self._here = self._after(block)
                continue
            while block.window and (not planned or room - int(block.lengths[block.window[0]]) >= tail):
                room -= self._take(block, [0], planned)
                self._fill_window(block)
            room -= self._take(block, best_fit([int(block.lengths[i]) for i in block.window], room), planned)
            if block.window:
                break
        return planned

    def _fill_window(self, block: Block[Item]) -> None:
        more = min(self.look_ahead - len(block.window), len(block.items) - block.offset)
        block.window += range(block.offset, block.offset + more)
        block.offset += more

    def _take(self, block: Block[Item], chosen: Sequence[int], planned: list[Planned[Item]]) -> int:
        """Moves documents from the window into the plan; returns their patches."""
        taken = [
            Planned(block.place["epoch"], block.items[i], int(block.lengths[i]))
            for i in (block.window[place] for place in chosen)
        ]
        for place in reversed(chosen):
            del block.window[place]
        planned += taken
        return sum(document.length for document in taken)

    def _pass_plans(self) -> Iterator[list[Planned[Item]]]:
        planned: list[Planned[Item]] = []
        room = self.patches_per_batch
        for item, length in self._in_order():
            if length > room:
                yield planned
                planned, room = [], self.patches_per_batch
            planned.append(Planned(0, item, length))
            room -= length
        if planned:
            yield planned
