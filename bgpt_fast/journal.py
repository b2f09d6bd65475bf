"""Journals: files with a line of options and a JSON record for each file or source, read again by the next run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

from bgpt_fast.files import FileContentError, open_regular
from bgpt_fast.parsing import parse_json

Record = dict[str, Any]
Fields = Mapping[str, type | tuple[type, ...]]


def content_digest(content: bytes) -> str:
    """Returns the hex digest that identifies a content."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def file_digest(file: BufferedReader) -> str:
    """Returns `content_digest` of an open file, which is not read into memory at once."""
    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def has_digest(path: str | os.PathLike[str], digest: str) -> bool:
    """Whether a file is there and has this content (`content_digest`); "" accepts every content."""
    try:
        with open_regular(path) as file:
            return not digest or file_digest(file) == digest
    except OSError:
        return False


def parse_journal(content: bytes, name: str, fields: Fields) -> tuple[Any, list[Record]]:
    """Returns the first line of a journal, None if it has none, and its records.

    A last line without a line end, which a crash leaves, is ignored.

    Args:
        content: the journal.
        name: its path, for errors.
        fields: the fields that each record must have, with their types.

    Raises:
        FileContentError: a line is not JSON, or not a record with these fields; names the line.
    """
    lines = content.split(b"\n")[:-1]
    values = [parse_json(line, f"{name}, line {number}") for number, line in enumerate(lines, 1)]
    for number, record in enumerate(values[1:], 2):
        _check_record(record, f"{name}, line {number}", fields)
    return (values[0] if values else None), values[1:]


def read_bytes(path: Path) -> bytes:
    """Returns the content of a regular file; b"" if it does not exist."""
    try:
        with open_regular(path) as file:
            return file.read()
    except FileNotFoundError:
        return b""


def _check_record(record: Any, name: str, fields: Fields) -> None:
    advice = "remove the line, or choose another --output"
    if not isinstance(record, dict):
        raise FileContentError(f"{name}: expected a record, got {str(record)[:80]!r}; {advice}")
    for field, kinds in fields.items():
        value = record.get(field)
        if not isinstance(value, kinds) or isinstance(value, bool) != (kinds is bool):
            kind = type(value).__name__ if field in record else "none"
            raise FileContentError(f"{name}: expected a record with {field!r}, got {kind} in it; {advice}")
