"""Atomic file writes: to a temporary name, flushed to disk, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Opens a binary file that replaces `path` only when the block ends without an exception.

    The order is write, fsync, rename, fsync of the folder, so that a crash at any time leaves either the complete old
    file or the complete new one. Missing parent folders are created.

    Raises:
        OSError: the file could not be written; an existing file at `path` is unchanged.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile, whose files are readable only by their owner: here the umask applies.
    temporary = target.parent / f".{target.name[:64]}.{secrets.token_hex(8)}.part"
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    fsync_folder(target.parent)


def fsync_folder(folder: str | os.PathLike[str]) -> None:
    """Makes renamed and new entries of `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as indented JSON, atomically; non-finite numbers are refused with ValueError."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_write(path) as file:
        # Paths that are not valid UTF-8 contain lone surrogates, which must be escaped.
        file.write(text.encode("utf-8", "backslashreplace"))
