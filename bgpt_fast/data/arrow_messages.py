"""How much an Arrow file's compressed messages unpack to, read from their metadata before anything is unpacked.

An Arrow stream is a sequence of messages: 0xFFFFFFFF, the length of the metadata, the metadata (a FlatBuffer), the
body. The file format is the same after 8 bytes, with a footer. Each buffer of a compressed body begins with its
unpacked length (https://arrow.apache.org/docs/format/Columnar.html, "Serialization and Interprocess Communication").
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

_CONTINUATION = 0xFFFFFFFF
_DICTIONARY, _RECORD_BATCH = 2, 3
_MAX_METADATA_BYTES = 1 << 24


def unpacked_sizes(stream: Any) -> Iterator[tuple[int, int]]:
    """Yields (bytes in the file, bytes unpacked) of each compressed record batch or dictionary; ends at damage.

    Args:
        stream: a seekable file; its position is restored at the end.
    """
    start = stream.tell()
    try:
        yield from _messages(stream, 8 if stream.read(6) == b"ARROW1" else 0)
    except (struct.error, IndexError, ValueError, OverflowError, OSError):
        pass  # reading the messages themselves will say what is wrong
    finally:
        stream.seek(start)


def _messages(stream: Any, position: int) -> Iterator[tuple[int, int]]:
    while True:
        stream.seek(position)
        head = stream.read(8)
        mark, length = struct.unpack("<Ii", head)
        if mark == _CONTINUATION:
            position += 8
        else:  # the format before 0.15
            length, position = mark, position + 4
            stream.seek(position)
        if not 0 < length <= _MAX_METADATA_BYTES:
            return
        metadata = stream.read(length)
        body = position + length
        kind, batch, size = _parse_message(metadata)
        if kind in (_DICTIONARY, _RECORD_BATCH) and _field(metadata, batch, 3) is not None:
            yield size, sum(_unpacked(stream, body, *buffer) for buffer in _buffers(metadata, batch))
        if size < 0:
            return
        position = body + size


def _parse_message(data: bytes) -> tuple[int, int, int]:
    """The message's kind, the offset of its record batch in the metadata, and the size of its body."""
    root = _follow(data, 0)
    kind, header, size = _field(data, root, 1), _field(data, root, 2), _field(data, root, 3)
    if kind is None or header is None:
        raise ValueError("no header")
    batch = _follow(data, header)
    if data[kind] == _DICTIONARY:
        inner = _field(data, batch, 1)
        if inner is None:
            raise ValueError("no data")
        batch = _follow(data, inner)
    return data[kind], batch, 0 if size is None else struct.unpack_from("<q", data, size)[0]


def _buffers(data: bytes, batch: int) -> Iterator[tuple[int, int]]:
    """(offset in the body, bytes) of each buffer of a record batch."""
    field = _field(data, batch, 2)
    if field is not None:
        vector = _follow(data, field)
        (count,) = struct.unpack_from("<I", data, vector)
        for index in range(count):
            yield struct.unpack_from("<qq", data, vector + 4 + 16 * index)


def _unpacked(stream: Any, body: int, offset: int, size: int) -> int:
    if size < 8:
        return 0
    stream.seek(body + offset)
    (unpacked,) = struct.unpack("<q", stream.read(8))
    return size - 8 if unpacked < 0 else unpacked  # −1: not compressed


def _follow(data: bytes, position: int) -> int:
    """Where the offset at `position` points."""
    return position + int(struct.unpack_from("<I", data, position)[0])


def _field(data: bytes, table: int, number: int) -> int | None:
    """The position of a FlatBuffer table's field; None if it is absent."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    (size,) = struct.unpack_from("<H", data, vtable)
    if 4 + 2 * number >= size:
        return None
    (offset,) = struct.unpack_from("<H", data, vtable + 4 + 2 * number)
    return table + offset if offset else None
