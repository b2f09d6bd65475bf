"""Reads Parquet and Arrow files row by row, starting at any row; local, or streamed from a URL. Needs pyarrow."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from bgpt_fast.data.arrow_messages import unpacked_sizes
from bgpt_fast.data.file_index import FileEntry, SkipReport
from bgpt_fast.data.source import DataError
from bgpt_fast.memory import OutOfMemoryError, is_shortage

Cell = Callable[[int], bytes | None]
NO_ARROW_FILE = "not a Parquet or Arrow file"
_ENDINGS = (".parquet", ".arrow", ".feather", ".ipc")
_MODIFIED = ("mtime", "LastModified", "last_modified", "updated", "modified", "etag", "ETag", "blob_id")
"""Names, in different file systems, of what changes when a remote file does."""
_ROWS_AT_ONCE = 256
_MAX_DECODED_BYTES = 64 << 20
_MAX_UNPACKED_BYTES = 512 << 20
"""Of a row, or of columns and record batches that are repetition above all; files with more are refused."""
_MAX_RATIO = 100
"""Columns that are packed better than by this are repetition above all."""


class ColumnError(ValueError):
    """A file has no column that can be read by the name; the message says why, without the file's name."""


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
        raise ImportError(
            "ArrowSource: expected pyarrow, which is not installed: pip install '.[data]' in the repository"
        )


def is_arrow_file(path: str) -> bool:
    """Whether a path has the file extension of a Parquet or Arrow file."""
    return path.lower().endswith(_ENDINGS)


def is_remote(path: str) -> bool:
    """Whether a path is a URL that fsspec handles, such as hf://datasets/owner/name/train.parquet or s3://…."""
    return "://" in path


def find_remote(root: str, skipped: SkipReport) -> list[FileEntry]:
    """The non-empty Parquet and Arrow files at or below a URL, sorted by name; others are added to `skipped`.

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
        path = system.unstrip_protocol(name)
        if not is_arrow_file(name):
            skipped.add(path, NO_ARROW_FILE)
        elif not about.get("size"):
            skipped.add(path, "empty")
        else:
            relative = name.removeprefix(base).lstrip("/") or name.rsplit("/", 1)[-1]
            modified = next((str(about[key]) for key in _MODIFIED if about.get(key)), "")
            files.append(FileEntry(path, relative.encode(), int(about["size"]), modified))
    return files


def arrow_schema_error(path: str, columns: Columns) -> str:
    """The reason why a file cannot be read; "" if it can.

    Raises:
        MemoryError, OSError: memory or file descriptors ran out.
    """
    import pyarrow as pa

    try:
        schema = _schema(path)
        for name in columns.names:
            _find_column(schema, name)
    except ColumnError as error:
        return str(error)
    except (OSError, pa.ArrowException) as error:
        if is_shortage(error):
            raise
        return "unreadable" if isinstance(error, OSError) else "damaged, or not a Parquet or Arrow file"
    return ""


def read_rows(path: str, columns: Columns, first_row: int, skipped: SkipReport) -> Iterator[tuple[int, str, bytes]]:
    """Yields (row, extension, content) from `first_row` on; null and empty rows and damage are counted in `skipped`.

    Raises:
        OutOfMemoryError: the rows that are decoded at once do not fit memory; names the file and the sizes.
        OSError: file descriptors ran out.
        DataError: the connection to a remote file is gone.
    """
    import pyarrow as pa

    try:
        for start, table in _tables(path, columns.names, first_row):
            content_of = _cells(table, columns.content)
            extension_of = columns.extension_column and _cells(table, columns.extension_column)
            for index in range(max(first_row - start, 0), table.num_rows):
                row, content = start + index, content_of(index)
                extension = extension_of(index) if extension_of else columns.extension.encode()
                if content is None or extension is None:
                    skipped.count(f"{path}, row {row}", "null")
                elif not content:
                    skipped.count(f"{path}, row {row}", "empty")
                else:
                    yield row, extension.decode("utf-8", "surrogateescape").removeprefix("."), content
    except FileNotFoundError:
        skipped.add(path, "vanished")
    except MemoryError as error:
        size = "" if is_remote(path) else f", a file of {os.path.getsize(path):,} bytes"
        advice = "write it anew with smaller row groups or record batches"
        raise OutOfMemoryError(f"rows of {path!r}{size}", str(error) or "an allocation failed", (), advice) from error
    except OSError as error:
        if is_shortage(error):
            raise
        if is_remote(path):
            # Not skipped like a damaged file: a restarted run then loses no data.
            raise DataError(f"{path!r}: {error}; the connection is gone: start the run again to go on") from error
        skipped.add(path, "unreadable, or damaged in the middle")
    except ColumnError as error:
        skipped.add(path, str(error))
    except pa.ArrowNotImplementedError:
        skipped.add(path, "of an encoding that pyarrow cannot read")
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
                    at_once = _rows_at_once(stream, file.metadata.row_group(group), names)
                    for batch in file.iter_batches(at_once, row_groups=[group], columns=names):
                        yield row, batch
                        row += batch.num_rows
                start += size
            return
        if not is_remote(path):
            for packed, unpacked in unpacked_sizes(stream):
                if unpacked > _MAX_UNPACKED_BYTES and unpacked > _MAX_RATIO * packed:
                    raise _too_much(unpacked, packed, "record batch")
        for batch in _record_batches(_ipc_reader(stream)):
            for offset in range(max(first_row - start, 0), batch.num_rows, _ROWS_AT_ONCE):
                yield start + offset, batch.slice(offset, _ROWS_AT_ONCE)
            start += batch.num_rows


def _rows_at_once(stream: Any, group: Any, names: list[str]) -> int:
    """How many rows of a Parquet row group to decode at once, so that they take about `_MAX_DECODED_BYTES` at most.

    A column's rows take at most the size of its pages, except where a row is an index of a dictionary or a prefix of
    its neighbour: these may be as large as the dictionary or all pages each.

    Raises:
        ColumnError: a row or page can be larger than that by far, as in a file that was made to fill the memory.
    """
    rows = _ROWS_AT_ONCE
    for number in range(group.num_columns):
        chunk = group.column(number)
        path = chunk.path_in_schema
        if not any(path == name or path.startswith(f"{name}.") for name in names) or not chunk.num_values:
            continue
        unpacked, packed = chunk.total_uncompressed_size, max(chunk.total_compressed_size, 1)
        repeated = unpacked if "DELTA_BYTE_ARRAY" in chunk.encodings else _dictionary_size(stream, chunk)
        if repeated:
            rows = min(rows, max(_MAX_DECODED_BYTES // repeated, 1))
        if unpacked > _MAX_DECODED_BYTES:
            # The mean size of a row says little about the largest one where repetition packs so well.
            is_packed = unpacked > _MAX_RATIO * packed
            mean = unpacked // chunk.num_values + 1
            rows = 1 if is_packed else min(rows, max(_MAX_DECODED_BYTES // (4 * mean), 1))
            if mean > _MAX_UNPACKED_BYTES or (is_packed and unpacked > _MAX_UNPACKED_BYTES):
                raise _too_much(unpacked, packed, "row group")
    return rows


def _too_much(unpacked: int, packed: int, unit: str) -> ColumnError:
    return ColumnError(f"unpacks to {unpacked:,} bytes a {unit}, {unpacked // max(packed, 1):,} times its size")


def _dictionary_size(stream: Any, chunk: Any) -> int:
    """Uncompressed bytes of a column chunk's dictionary; 0 if it has none.

    A page begins with a Thrift struct in the compact protocol, whose first two fields are the page's type and its
    uncompressed size (https://parquet.apache.org/docs/file-format/data-pages/).
    """
    offset = chunk.dictionary_page_offset
    if offset is None:
        return 0
    position = stream.tell()
    stream.seek(offset)
    header = stream.read(16)
    stream.seek(position)
    try:
        kind, end = _varint(header, 1)
        size, _ = _varint(header, end + 1)
    except IndexError:
        return 0  # cut off: reading the page will say so
    is_dictionary = header[0] == header[end] == 0x15 and kind >> 1 == 2
    return size >> 1 if is_dictionary else 0


def _varint(data: bytes, start: int) -> tuple[int, int]:
    """The unsigned LEB128 number at `start`, and the index after it."""
    value = shift = 0
    while True:
        byte = data[start]
        value |= (byte & 0x7F) << shift
        start, shift = start + 1, shift + 7
        if byte < 0x80:
            return value, start


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


def _find_column(schema: Any, name: str) -> list[int]:
    """The indices that lead to a column, or to a field inside of structs ("image.bytes"), from the schema on.

    Raises:
        ColumnError: there is none or more than one of that name, or it is neither bytes nor text.
    """
    import pyarrow as pa

    path: list[int] = []
    fields, rest, kind = schema, name, None
    while kind is None:
        # A name may contain dots itself: the longest that exists is meant.
        ends = [len(rest), *(at for at in reversed(range(len(rest) - 1)) if rest[at] == ".")]
        end = next((end for end in ends if fields.get_all_field_indices(rest[:end])), None)
        if end is None:
            raise ColumnError(f"expected a column {name!r}, got {[field.name for field in fields]!s:.200}")
        indices = fields.get_all_field_indices(rest[:end])
        if len(indices) > 1:
            raise ColumnError(f"expected one column {name!r}, got {len(indices)} of that name")
        path += indices
        field, rest = fields.field(indices[0]), rest[end + 1 :]
        if rest and pa.types.is_struct(field.type):
            fields = field.type
        elif rest:
            raise ColumnError(f"expected a column {name!r}, got a {field.name!r} of {field.type!s:.80}")
        else:
            kind = field.type
    if not _is_bytes_or_text(kind):
        inside = f"; name a field of it, as {name}.{kind.field(0).name}" if pa.types.is_struct(kind) else ""
        raise ColumnError(f"column {name!r}: expected bytes or text, got {kind!s:.80}{inside}")
    return path


def _cells(table: Any, name: str) -> Cell:
    """The values of a column, by row."""
    import pyarrow.compute as pc

    first, *inside = _find_column(table.schema, name)
    column = table.column(first)
    return _cell(pc.struct_field(column, inside) if inside else column)


def _cell(values: Any) -> Cell:
    """Returns a function from the index of a value to its bytes, None for null.

    Each value is made when it is asked for, as dictionaries, views and runs hold a value of many rows once.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = values.type
    if isinstance(kind, pa.BaseExtensionType):
        return _cell(values.storage)
    if pa.types.is_null(kind):
        return lambda index: None
    if pa.types.is_dictionary(kind):
        words, indices = _cell(values.dictionary), values.indices.to_pylist()
        return lambda index: None if indices[index] is None else words(indices[index])
    if pa.types.is_run_end_encoded(kind):
        return lambda index: _cell(pc.run_end_decode(values.slice(index, 1)))(0)
    if _is_list_of_bytes(kind):
        values.validate(full=True)
        return lambda index: _bytes_of(values[index])
    # Text as bytes, without a copy: it may contain invalid UTF-8.
    for is_text, as_bytes in (
        (pa.types.is_string, pa.binary),
        (pa.types.is_large_string, pa.large_binary),
        (pa.types.is_string_view, pa.binary_view),
    ):
        if is_text(kind):
            values = values.cast(as_bytes())
    # Offsets of a damaged file end the process where they are read, if they are not checked.
    values.validate(full=True)
    return lambda index: values[index].as_py()


def _bytes_of(row: Any) -> bytes | None:
    if not row.is_valid or row.values.null_count:
        return None
    return row.values.to_numpy().tobytes()


def _is_list_of_bytes(kind: Any) -> bool:
    import pyarrow as pa

    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and kind.value_type == pa.uint8()


def _is_bytes_or_text(kind: Any) -> bool:
    """Whether the values of a type are bytes: plain, or inside of a dictionary, runs, or an extension type."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        return _is_bytes_or_text(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _is_bytes_or_text(kind.value_type)
    plain = (pa.null(), pa.binary(), pa.large_binary(), pa.binary_view(), pa.string(), pa.large_string())
    return kind in (*plain, pa.string_view()) or pa.types.is_fixed_size_binary(kind) or _is_list_of_bytes(kind)
