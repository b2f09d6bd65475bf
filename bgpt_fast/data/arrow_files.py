"""Reads Parquet and Arrow files row by row, starting at any row; local, or streamed from a URL. Needs pyarrow."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from bgpt_fast.data.file_index import FileEntry, SkipReport
from bgpt_fast.data.source import DataError

_ENDINGS = (".parquet", ".arrow", ".feather", ".ipc")
_ROWS_AT_ONCE = 256


class Columns(NamedTuple):
    """The content column and the extension column, or one extension for all rows."""

    content: str
    extension_column: str | None
    extension: str

    @property
    def names(self) -> list[str]:
        """The columns to read."""
        return [self.content] + ([self.extension_column] if self.extension_column is not None else [])


def check_pyarrow() -> None:
    """Raises ImportError with install instructions unless pyarrow is installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise ImportError("ArrowSource: expected pyarrow, which is not installed: pip install 'bgpt-fast[data]'")


def is_arrow_file(path: str) -> bool:
    """Whether a path has the file extension of a Parquet or Arrow file."""
    return path.lower().endswith(_ENDINGS)


def is_remote(path: str) -> bool:
    """Whether a path is a URL that fsspec handles, such as hf://datasets/owner/name/train.parquet or s3://…."""
    return "://" in path


def find_remote(root: str) -> list[FileEntry]:
    """The Parquet and Arrow files at or below a URL, sorted by name.

    Raises:
        DataError: the URL does not exist or cannot be reached, or the package for it is not installed.
    """
    import fsspec

    try:
        system, base = fsspec.core.url_to_fs(root)
        details = system.find(base, detail=True) or {base: system.info(base)}
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise DataError(f"{root!r}: {type(error).__name__}: {error}; give a URL that fsspec can open") from error
    files = []
    for name, about in sorted(details.items()):
        if is_arrow_file(name) and about.get("size"):
            relative = name.removeprefix(base).lstrip("/") or name.rsplit("/", 1)[-1]
            files.append(FileEntry(system.unstrip_protocol(name), relative.encode(), int(about["size"])))
    return files


def arrow_schema_error(path: str, columns: Columns) -> str:
    """The reason why a file cannot be read; "" if it can.

    Raises:
        DataError: the file is readable, but a column is missing or is neither bytes nor text.
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


def read_rows(path: str, columns: Columns, first_row: int, skipped: SkipReport) -> Iterator[tuple[int, str, bytes]]:
    """Yields (row, extension, content) from `first_row` on; null and empty rows and damage are counted in `skipped`."""
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
                    skipped.count(f"{path}, row {row}", "null")
                elif not content:
                    skipped.count(f"{path}, row {row}", "empty")
                else:
                    yield row, extension.decode("utf-8", "surrogateescape").removeprefix("."), content
    except FileNotFoundError:
        skipped.add(path, "vanished")
    except OSError as error:
        if is_remote(path):
            # Not skipped like a damaged file: a restarted run then loses no data.
            raise DataError(f"{path!r}: {error}; the connection is gone: start the run again to go on") from error
        skipped.add(path, "unreadable, or damaged in the middle")
    except pa.ArrowException:
        skipped.add(path, "damaged in the middle")


def _schema(path: str) -> Any:
    import pyarrow.parquet as pq

    with _open(path) as stream:
        return pq.read_schema(stream) if _is_parquet(stream) else _ipc_reader(stream).schema


def _tables(path: str, names: list[str], first_row: int) -> Iterator[tuple[int, Any]]:
    """Yields batches as (index of the first row, rows); batches entirely before `first_row` may be omitted."""
    import pyarrow.parquet as pq

    with _open(path) as stream:
        start = 0
        if _is_parquet(stream):
            file = pq.ParquetFile(stream, pre_buffer=False)
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                if start + size > first_row:
                    row = start
                    for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=names):
                        yield row, batch
                        row += batch.num_rows
                start += size
            return
        for batch in _record_batches(_ipc_reader(stream)):
            for offset in range(max(first_row - start, 0), batch.num_rows, _ROWS_AT_ONCE):
                yield start + offset, batch.slice(offset, _ROWS_AT_ONCE)
            start += batch.num_rows


def _open(path: str) -> Any:
    """A seekable pyarrow file, local or remote."""
    import pyarrow as pa

    if is_remote(path):
        import fsspec

        return pa.PythonFile(fsspec.open(path, "rb").open(), mode="r")
    # Opening a FIFO would block.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)):
        return pa.OSFile(path)


def _is_parquet(stream: Any) -> bool:
    start = stream.read(4)
    stream.seek(0)
    return start == b"PAR1"


def _ipc_reader(stream: Any) -> Any:
    """A reader for the Arrow file format or, failing that, the streaming format."""
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
    # As bytes: text columns may contain invalid UTF-8.
    return values.cast(pa.large_binary()).to_pylist()


def _is_bytes_or_text(kind: Any) -> bool:
    import pyarrow as pa

    kinds = (pa.binary(), pa.large_binary(), pa.string(), pa.large_string())
    return kind in kinds or pa.types.is_fixed_size_binary(kind)
