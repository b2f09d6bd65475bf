"""Parquet and Arrow files row by row, from any row on (needs pyarrow)."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from bgpt_fast.data.found import Skips
from bgpt_fast.data.source import DataError

_ENDINGS = (".parquet", ".arrow", ".feather", ".ipc")
_ROWS_AT_ONCE = 256


class Columns(NamedTuple):
    """Where a row's content and extension are: a column's name each, or one extension of all rows."""

    content: str
    extension_column: str | None
    extension: str

    @property
    def names(self) -> list[str]:
        """The columns to read."""
        return [self.content] + ([self.extension_column] if self.extension_column is not None else [])


def check_pyarrow() -> None:
    """Raises ImportError, saying what to install, unless pyarrow is there."""
    if importlib.util.find_spec("pyarrow") is None:
        raise ImportError("ArrowSource: expected pyarrow, which is not installed: pip install 'bgpt-fast[data]'")


def is_arrow_file(path: str) -> bool:
    """Whether a path is named like a Parquet or Arrow file."""
    return path.lower().endswith(_ENDINGS)


def arrow_schema_error(path: str, columns: Columns) -> str:
    """Why a file cannot be read; "" if it can.

    Raises:
        DataError: it can, but a column is missing or of a type that is neither bytes nor text.
    """
    import pyarrow as pa

    try:
        schema = _schema(path)
    except OSError:
        return "unreadable"
    except pa.ArrowException:
        return "damaged, or not a Parquet or Arrow file"
    for name in columns.names:
        if name not in schema.names:
            raise DataError(f"{path!r}: expected a column {name!r}, got {schema.names}; name one of these")
        kind = schema.field(name).type
        if not _is_bytes_or_text(kind.value_type if pa.types.is_dictionary(kind) else kind):
            raise DataError(f"{path!r}: column {name!r}: expected bytes or text, got {kind}; name another column")
    return ""


def read_rows(path: str, columns: Columns, first_row: int, skips: Skips) -> Iterator[tuple[int, str, bytes]]:
    """(row, extension, content) from `first_row` on; null and empty ones are counted in `skips`, as is damage."""
    import pyarrow as pa

    try:
        for start, table in _tables(path, columns.names, first_row):
            contents = _values(table, columns.content)
            extensions = (
                [columns.extension.encode()] * len(contents)
                if columns.extension_column is None
                else _values(table, columns.extension_column)
            )
            for row, content, extension in zip(range(start, start + len(contents)), contents, extensions, strict=True):
                if row < first_row:
                    continue
                if content is None or extension is None:
                    skips.count(f"{path}, row {row}", "null")
                elif not content:
                    skips.count(f"{path}, row {row}", "empty")
                else:
                    yield row, extension.decode("utf-8", "surrogateescape").removeprefix("."), content
    except FileNotFoundError:
        skips.note(path, "vanished")
    except OSError:
        skips.note(path, "unreadable, or damaged in the middle")
    except pa.ArrowException:
        skips.note(path, "damaged in the middle")


def _schema(path: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if _is_parquet(path):
        return pq.read_schema(path)
    with pa.OSFile(path) as stream:
        return _ipc_reader(stream).schema


def _tables(path: str, names: list[str], first_row: int) -> Iterator[tuple[int, Any]]:
    """(number of its first row, rows) in pieces; those wholly before `first_row` may be left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if _is_parquet(path):
        with pq.ParquetFile(path, pre_buffer=False) as file:
            start = 0
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                if start + size > first_row:
                    row = start
                    for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=names):
                        yield row, batch
                        row += batch.num_rows
                start += size
        return
    with pa.OSFile(path) as stream:
        start = 0
        for batch in _record_batches(_ipc_reader(stream)):
            for offset in range(max(first_row - start, 0), batch.num_rows, _ROWS_AT_ONCE):
                yield start + offset, batch.slice(offset, _ROWS_AT_ONCE)
            start += batch.num_rows


def _is_parquet(path: str) -> bool:
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        return file.read(4) == b"PAR1"


def _ipc_reader(stream: Any) -> Any:
    """A reader of the file format, or else of the streaming format."""
    import pyarrow as pa

    try:
        return pa.ipc.open_file(stream)
    except pa.ArrowInvalid:
        stream.seek(0)
        return pa.ipc.open_stream(stream)


def _record_batches(reader: Any) -> Iterator[Any]:
    if hasattr(reader, "num_record_batches"):
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)
    else:
        yield from reader


def _values(table: Any, name: str) -> list[bytes | None]:
    import pyarrow as pa

    values = table.column(table.schema.get_field_index(name))
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    # As bytes: text of a damaged or careless file need not be UTF-8.
    return values.cast(pa.large_binary()).to_pylist()


def _is_bytes_or_text(kind: Any) -> bool:
    import pyarrow as pa

    kinds = (pa.binary(), pa.large_binary(), pa.string(), pa.large_string())
    return kind in kinds or pa.types.is_fixed_size_binary(kind)
