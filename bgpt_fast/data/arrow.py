"""Streams rows of local or remote Parquet and Arrow files as documents, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Unpack

import numpy as np

from bgpt_fast.checkpoint.task import ModelTask
from bgpt_fast.checks import check_int
from bgpt_fast.config import BGPTConfig
from bgpt_fast.data.arrow_files import (
    NO_ARROW_FILE,
    Columns,
    arrow_schema_error,
    check_pyarrow,
    find_remote,
    is_arrow_file,
    is_remote,
    read_rows,
)
from bgpt_fast.data.file_index import FileEntry, Paths, find_files, is_in_split
from bgpt_fast.data.packing import Block, PackedSource, SourceOptions
from bgpt_fast.data.source import DataError, EmptySplitError
from bgpt_fast.documents import Part, Truncation, count_patches
from bgpt_fast.patches import PackedPatches


class _Row(NamedTuple):
    file: int
    row: int
    extension: str
    content: bytes


@dataclass
class _Buffer(Block[_Row]):
    """The rows of a shuffle buffer, and the position of the next buffer."""

    end: dict[str, Any] = field(default_factory=dict)


class ArrowSource(PackedSource[_Row, PackedPatches]):
    """An endless stream of batches packed from the rows of Parquet and Arrow files, in a seeded order.

    Every epoch visits the files in a new order and shuffles their rows one buffer at a time, so that memory holds one
    buffer and one record batch, whatever the file sizes. Every rank reads all rows (and packs its share). A hash of a
    row's content assigns it to a split. A row longer than the context is cut to a seeded window, a new one each epoch;
    `one_pass` cuts it to its head. Null and empty rows and unreadable files are skipped and counted.

    Args:
        paths: files and folders; in folders, files named .parquet, .arrow, .feather or .ipc are read. Arrow files may
            use the file format or the streaming format (that of the Hugging Face datasets cache). URLs such as
            hf://datasets/owner/name/ are streamed by fsspec.
        column: the column with the contents: bytes, text (as UTF-8), lists of uint8, or an extension type of these,
            plain or in a dictionary or runs. "a.b" is the field b inside of the struct a. A file without the column,
            or with it of another type or twice, is skipped and counted with the reason.
        config, patches_per_batch, options: as `PackedSource`.
        extension: the extension of all rows; unused with `extension_column`.
        extension_column: a text column with each row's extension.
        buffer_rows, buffer_bytes: limits of the shuffle buffer, which is full when it reaches either.

    Raises:
        DataError: a path does not exist, no Parquet or Arrow file with the columns, or no row in the
            split.
        ImportError: pyarrow is not installed.
        TypeError, ValueError: an invalid argument.
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
        buffer_rows: int = 8192,
        buffer_bytes: int = 64 << 20,
        **options: Unpack[SourceOptions],
    ) -> None:
        check_pyarrow()
        super().__init__(paths, config, patches_per_batch, **options)
        for name, value in (("buffer_rows", buffer_rows), ("buffer_bytes", buffer_bytes)):
            check_int(f"{type(self).__name__}: {name}", value, 1)
        self.columns = Columns(column, extension_column, extension)
        self.buffer_rows = buffer_rows
        self.buffer_bytes = buffer_bytes
        self._files = self._usable_files()
        # These settings also determine the rows of a buffer and their order.
        settings = (tuple(self.columns), self.split, self.eval_share, buffer_rows, buffer_bytes)
        self._identify(self._files, *settings)
        self._live: tuple[dict[str, Any], Iterator[tuple[int, _Row]]] | None = None
        first = self._open(self._start(0))
        self._current = first
        if first.end["epoch"] == 1:
            self._limit_batches(sum(first.lengths))

    @property
    def paths(self) -> list[str]:
        """The files, sorted by relative path."""
        return [file.path for file in self._files]

    @property
    def task(self) -> ModelTask:
        """What a model learns from the rows, stored with its weights; extensions in a column are not known."""
        is_fixed = self.columns.extension_column is None
        return ModelTask.of("generation", extensions=[self.columns.extension] if is_fixed else ())

    def describe(self) -> dict[str, Any]:
        """As `PackedSource.describe`, with the columns and the files; a skipped row counts each time it is read."""
        return {
            **super().describe(),
            "columns": self.columns._asdict(),
            "files": len(self._files),
            "bytes": sum(file.size for file in self._files),
        }

    def evaluation_batches(self, max_patches: int) -> Iterator[PackedPatches]:
        """As `PackedSource.evaluation_batches`: rows in the shuffled order of an epoch, over-long ones cut to a window.

        So of rows that fit into one buffer a random sample; of more, one of the first buffers.
        """
        patches = 0
        for plan in self._pass_plans(self._first_epoch()):
            _, documents = self._read_all(plan, "window")
            packed = PackedPatches.from_parts(documents, self.config.patch_size)
            yield packed
            patches += packed.num_patches
            if patches >= max_patches:
                return

    def _first_epoch(self) -> Iterator[tuple[_Row, int]]:
        block = self._block()
        if block.start != self._start(0):
            block = self._open(self._start(0))
        while block.start["epoch"] == 0:
            yield from zip(block.items, block.lengths, strict=True)
            block = self._after(block)

    def __getstate__(self) -> dict[str, Any]:
        # Open files cannot be pickled; the copy reopens the stream at its position.
        return {**self.__dict__, "_live": None}

    def _usable_files(self) -> list[FileEntry]:
        files = []
        local = find_files([root for root in self.roots if not is_remote(root)], self._skipped)
        remote = [file for root in self.roots if is_remote(root) for file in find_remote(root, self._skipped)]
        for file in local + remote:
            if file.path not in self.roots and not is_arrow_file(file.path):
                self._skipped.add(file.path, NO_ARROW_FILE)
                continue
            damage = arrow_schema_error(file.path, self.columns)
            if damage:
                self._skipped.add(file.path, damage)
            else:
                files.append(file)
        if not files:
            raise DataError(
                f"{self.roots}: expected Parquet or Arrow files, found none that can be read (skipped: "
                f"{self._skipped.by_reason or 'none'}; {self._skipped.examples})"
            )
        return files

    def _start(self, epoch: int) -> dict[str, Any]:
        return {"epoch": epoch, "file": 0, "row": 0}

    def _open(self, start: dict[str, Any]) -> _Buffer:
        # Reset first: a generator that raised is exhausted, which must not be mistaken for the end of the file.
        live, self._live = self._live, None
        if live is not None and live[0] == start:
            stream = live[1]
        else:
            order = np.random.default_rng([self.seed, start["epoch"]]).permutation(len(self._files)).tolist()
            stream = self._stream(order, start["file"], start["row"])
        rows: list[_Row] = []
        size = 0
        end = self._start(start["epoch"] + 1)
        for number, row in stream:
            rows.append(row)
            size += len(row.content)
            if len(rows) == self.buffer_rows or size >= self.buffer_bytes:
                end = {"epoch": start["epoch"], "file": number, "row": row.row + 1}
                break
        if not rows and start == self._start(start["epoch"]):
            raise self._nothing_readable()
        self._live = (end, stream) if end["epoch"] == start["epoch"] else None
        shuffle = np.random.default_rng([self.seed, *start.values()]).permutation(len(rows))
        items = [rows[index] for index in shuffle]
        return _Buffer(dict(start), items, [self._length(row) for row in items], end=end)

    def _after(self, block: Block[_Row]) -> _Buffer:
        assert isinstance(block, _Buffer)
        return self._open(block.end)

    def _length(self, row: _Row) -> int:
        return min(count_patches(len(row.content), self.config.patch_size), self.config.patch_length)

    def _stream(self, order: Sequence[int], first_file: int = 0, first_row: int = 0) -> Iterator[tuple[int, _Row]]:
        """The split's rows from `first_row` of file `order[first_file]` on, each with its file's index in `order`."""
        for number in range(first_file, len(order)):
            file = order[number]
            for row, extension, content in read_rows(self._files[file].path, self.columns, first_row, self._skipped):
                if is_in_split(content, self.split, self.eval_share):
                    yield number, _Row(file, row, extension, content)
            first_row = 0

    def _in_order(self) -> Iterator[tuple[_Row, int]]:
        for _, row in self._stream(range(len(self._files))):
            yield row, self._length(row)

    def _window_key(self, item: _Row) -> list[int]:
        return [item.file, item.row] if self._length(item) == self.config.patch_length else []

    def _read(self, item: _Row, truncation: Truncation) -> Sequence[Part] | None:
        return (truncation.part("ArrowSource", item.extension, item.content),)

    def _nothing_readable(self) -> DataError:
        return EmptySplitError(
            f"{self.roots}: no row of a whole epoch of {len(self._files)} files is in the {self.split} split and can "
            f"be read (skipped: {self._skipped.by_reason or 'none'}; {self._skipped.examples}); "
            f"give more rows or another share than {self.eval_share:g} for evaluation (eval_share, --eval-share)"
        )
