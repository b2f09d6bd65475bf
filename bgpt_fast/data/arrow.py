"""Rows of Parquet and Arrow files, local or remote, as documents, streamed in bounded memory."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from bgpt_fast.config import BGPTConfig
from bgpt_fast.data.arrow_files import (
    Columns,
    arrow_schema_error,
    check_pyarrow,
    find_remote,
    is_arrow_file,
    is_remote,
    read_rows,
)
from bgpt_fast.data.file_index import (
    FileEntry,
    Paths,
    Split,
    as_roots,
    check_split,
    digest_belongs,
    find_files,
    fingerprint,
)
from bgpt_fast.data.packing import Block, PackedSource
from bgpt_fast.data.source import DataError, check_int
from bgpt_fast.patches import PackedPatches


class _Row(NamedTuple):
    file: int
    row: int
    extension: str
    content: bytes


@dataclass
class _Buffer(Block[_Row]):
    """The rows of a shuffle buffer, and the place of the next one."""

    end: dict[str, Any] = field(default_factory=dict)


class ArrowSource(PackedSource[_Row, PackedPatches]):
    """Rows of Parquet and Arrow files, packed into batches in a seeded order, without end.

    Every epoch takes the files in a new order and shuffles their rows a buffer at a time, so that memory holds a buffer
    and a record batch, whatever the files' sizes. Every rank reads all rows (and packs its share). A row belongs to the
    evaluation split if a hash of its content says so. Over-long rows give a seeded window each epoch, and their head in
    `one_pass`. Null and empty rows are counted and skipped, as are files that cannot be read.

    Args:
        paths: files and folders; in folders, files named .parquet, .arrow, .feather or .ipc are taken. Arrow files may
            be of the file format or the streaming format, which Hugging Face datasets are cached in. URLs such as
            hf://datasets/owner/name/ are read as they are needed, by fsspec.
        column: the column with the contents, bytes or text (taken as UTF-8).
        config: patch size and context.
        patches_per_batch: most patches of a batch; at least the context.
        extension: of all rows; or, with `extension_column`, not used.
        extension_column: a text column with each row's extension.
        seed: of the order and of the windows.
        split: "train", "eval", or "all" for both together.
        eval_share: share of the rows that is held out.
        buffer_rows, buffer_bytes: the shuffle buffer is full when it has either.
        rank, world_size: which of how many processes this is; see `PackedSource`.
        look_ahead: documents among which the best fit for a batch's last room is looked for.

    Raises:
        DataError: no such path, no such file, a column missing or of another type, no row in the split, or (but for
            "eval") fewer patches than one batch.
        ImportError: pyarrow is not installed.
        TypeError, ValueError: a wrong argument.
    """

    kind = "arrow"

    def __init__(
        self,
        paths: Paths,
        column: str,
        config: BGPTConfig,
        patches_per_batch: int,
        *,
        extension: str = "txt",
        extension_column: str | None = None,
        seed: int = 0,
        split: Split = "train",
        eval_share: float = 0.02,
        buffer_rows: int = 8192,
        buffer_bytes: int = 64 << 20,
        rank: int = 0,
        world_size: int = 1,
        look_ahead: int = 64,
    ) -> None:
        check_pyarrow()
        super().__init__(config, patches_per_batch, seed, rank, world_size, look_ahead)
        check_split(type(self).__name__, split, eval_share)
        for name, value in (("buffer_rows", buffer_rows), ("buffer_bytes", buffer_bytes)):
            check_int(f"{type(self).__name__}: {name}", value, 1)
        self.roots = as_roots(paths)
        self.split = split
        self.eval_share = eval_share
        self.columns = Columns(column, extension_column, extension)
        self.buffer_rows = buffer_rows
        self.buffer_bytes = buffer_bytes
        self._files = self._usable_files()
        # Which rows a buffer holds, and in what places, hangs on these as well.
        chosen = (tuple(self.columns), split, eval_share, buffer_rows, buffer_bytes)
        self._digest = fingerprint(self._files, *chosen)
        self._live: tuple[dict[str, Any], Iterator[tuple[int, _Row]]] | None = None
        first = self._open(self._start(0))
        self._here = first
        patches = sum(first.lengths)
        if split != "eval" and first.end["epoch"] == 1 and patches < patches_per_batch:
            raise DataError(
                f"{self.roots}: the {split} split's {len(first.items)} rows hold {patches} patches, fewer than one "
                f"batch of patches_per_batch={patches_per_batch} (skipped: {self._skips.by_reason or 'none'}); lower "
                "it or give more rows"
            )

    @property
    def paths(self) -> list[str]:
        """The files, sorted by relative path."""
        return [file.path for file in self._files]

    def describe(self) -> dict[str, Any]:
        """What was found, skipped (rows each time they were met), cut and read so far, the position and the fill."""
        return {
            **super().describe(),
            "roots": self.roots,
            "split": self.split,
            "columns": self.columns._asdict(),
            "files": len(self._files),
            "bytes": sum(file.size for file in self._files),
        }

    def __getstate__(self) -> dict[str, Any]:
        # Open files do not travel; what was read next is found again by its place.
        return {**self.__dict__, "_live": None}

    def _usable_files(self) -> list[FileEntry]:
        files = []
        local = find_files([root for root in self.roots if not is_remote(root)], self._skips)
        remote = [file for root in self.roots if is_remote(root) for file in find_remote(root)]
        for file in local + remote:
            if file.path not in self.roots and not is_arrow_file(file.path):
                self._skips.note(file.path, "not a Parquet or Arrow file")
                continue
            damage = arrow_schema_error(file.path, self.columns)
            if damage:
                self._skips.note(file.path, damage)
            else:
                files.append(file)
        if not files:
            raise DataError(
                f"{self.roots}: expected Parquet or Arrow files, found none that can be read (skipped: "
                f"{self._skips.by_reason or 'none'}; {self._skips.named})"
            )
        return files

    def _start(self, epoch: int) -> dict[str, Any]:
        return {"epoch": epoch, "file": 0, "row": 0}

    def _open(self, place: dict[str, Any]) -> _Buffer:
        # Taken away first: a stream that fails is over, and may not be gone on with as if its end had come.
        live, self._live = self._live, None
        if live is not None and live[0] == place:
            stream = live[1]
        else:
            order = np.random.default_rng([self.seed, place["epoch"]]).permutation(len(self._files)).tolist()
            stream = self._stream(order, place["file"], place["row"])
        rows: list[_Row] = []
        size = 0
        end = self._start(place["epoch"] + 1)
        for done, row in stream:
            rows.append(row)
            size += len(row.content)
            if len(rows) == self.buffer_rows or size >= self.buffer_bytes:
                end = {"epoch": place["epoch"], "file": done, "row": row.row + 1}
                break
        if not rows and place == self._start(place["epoch"]):
            raise self._nothing_readable()
        self._live = (end, stream) if end["epoch"] == place["epoch"] else None
        shuffle = np.random.default_rng([self.seed, *place.values()]).permutation(len(rows))
        items = [rows[index] for index in shuffle]
        return _Buffer(dict(place), items, [self._length(row) for row in items], end=end)

    def _after(self, block: Block[_Row]) -> _Buffer:
        assert isinstance(block, _Buffer)
        return self._open(block.end)

    def _length(self, row: _Row) -> int:
        return min(2 - -len(row.content) // self.config.patch_size, self.config.patch_length)

    def _stream(self, order: Sequence[int], done: int, first_row: int) -> Iterator[tuple[int, _Row]]:
        """The split's rows, from the `first_row` of `order[done]` on, each with its file's place in `order`."""
        for place in range(done, len(order)):
            index = order[place]
            path = self._files[index].path
            for row, extension, content in read_rows(path, self.columns, first_row, self._skips):
                if self._is_ours(content):
                    yield place, _Row(index, row, extension, content)
            first_row = 0

    def _is_ours(self, content: bytes) -> bool:
        if self.split == "all":
            return True
        return digest_belongs(hashlib.blake2b(content).digest(), self.split, self.eval_share)

    def _in_order(self) -> Iterator[tuple[_Row, int]]:
        for index, file in enumerate(self._files):
            for row, extension, content in read_rows(file.path, self.columns, 0, self._skips):
                if self._is_ours(content):
                    found = _Row(index, row, extension, content)
                    yield found, self._length(found)

    def _read(self, epoch: int, item: _Row, truncation: Literal["head", "window"]) -> PackedPatches | None:
        key = [self.seed, epoch, item.file, item.row]
        seed = int(np.random.SeedSequence(key).generate_state(1)[0]) if truncation == "window" else 0
        return PackedPatches.from_bytes([(item.extension, item.content)], self.config, truncation=truncation, seed=seed)

    def _assemble(self, documents: Sequence[tuple[_Row, PackedPatches]]) -> PackedPatches:
        return PackedPatches.concatenate([document for _, document in documents])

    def _fingerprint(self) -> str:
        return self._digest

    def _warn_changed(self, epoch: int) -> None:
        warnings.warn(
            f"the files below {self.roots}, or what is taken of them, changed since the position was saved: going on "
            f"at the start of epoch {epoch}, not bit for bit",
            stacklevel=3,
        )

    def _nothing_readable(self) -> DataError:
        return DataError(
            f"{self.roots}: no row of a whole epoch of {len(self._files)} files is in the {self.split} split and can "
            f"be read (skipped: {self._skips.by_reason or 'none'}); give more rows or another eval_share="
            f"{self.eval_share}"
        )
