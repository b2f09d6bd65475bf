"""Files: atomic writes (a temporary name, flushed to disk, then renamed), and reads of regular files up to a limit."""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import errno
import json
import math
import os
import secrets
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

_CURRENT_FOLDER, _RENAME_EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of linux/fcntl.h and linux/fs.h."""
PathLike = str | os.PathLike[str]
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class FileContentError(ValueError):
    """A file is too large, not UTF-8, or not of the format that it should have; the message begins with its path."""


@contextlib.contextmanager
def atomic_write(path: PathLike) -> Iterator[IO[bytes]]:
    """Opens a binary file that replaces `path` only when the block ends without an exception.

    The order is write, fsync, rename, fsync of the folder, so that a crash at any time leaves either the complete old
    file or the complete new one. Missing parent folders are created.

    Raises:
        OSError: the file could not be written; names `path`; an existing file there is unchanged.
    """
    target = Path(path)
    with naming(target):
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


@contextlib.contextmanager
def naming(path: PathLike) -> Iterator[None]:
    """Adds `path` to an OSError of the block that names no file, as those of writing to an open file do."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


def exchange(one: PathLike, other: PathLike) -> None:
    """Exchanges two files or folders in one step, so that each name always has one of them (Linux's renameat2).

    Raises:
        OSError: it is impossible; ENOSYS, EINVAL or ENOTSUP where the system or file system has no such step.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), os.fspath(one))
    if renameat2(_CURRENT_FOLDER, os.fsencode(one), _CURRENT_FOLDER, os.fsencode(other), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fspath(one), None, os.fspath(other))


def fsync_folder(folder: PathLike) -> None:
    """Makes renamed and new entries of `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with naming(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: PathLike, value: Any) -> None:
    """Writes `value` as indented JSON, atomically.

    Raises:
        ValueError: a number in it is NaN or infinite, which JSON does not have; names its place.
        OSError: as `atomic_write`.
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        place = _non_finite(value, "")
        if place is None:
            raise
        raise ValueError(f"{os.fspath(path)}: {place}; JSON has no such number, so nothing was written") from error
    with atomic_write(path) as file:
        # Paths that are not valid UTF-8 contain lone surrogates, which must be escaped.
        file.write(text.encode("utf-8", "backslashreplace"))


def open_regular(path: PathLike) -> BufferedReader:
    """Opens a regular file for reading; never waits for the writer of a FIFO.

    Raises:
        OSError: it cannot be opened, or is a folder, FIFO, socket or device; names `path`.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "expected a file, got a folder", os.fspath(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "expected a regular file, got a FIFO, socket or device", os.fspath(path))
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_file(path: PathLike, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
        FileContentError: it is larger; read no further than that.
        OSError: as `open_regular`, or it cannot be read.
    """
    with naming(path), open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        # Not most + 1 bytes at once, for which memory is reserved before the file's true size counts.
        content = file.read(size + 1) if size <= most else b""
        if len(content) > size:  # it has grown
            content += file.read(most + 1 - len(content))
    if max(size, len(content)) > most:
        raise FileContentError(f"{os.fspath(path)}: expected at most {most:,} bytes, got {max(size, len(content)):,}")
    return content


def read_text(path: PathLike, most: int) -> str:
    """The text of a regular file, by `decode_text`; arguments and errors as `read_file` and `decode_text`."""
    return decode_text(read_file(path, most), os.fspath(path))


def decode_text(content: bytes, name: str) -> str:
    """Text in UTF-8, or in the encoding of its byte-order mark (UTF-16, UTF-32), which is removed.

    Raises:
        FileContentError: other bytes; begins with `name`.
    """
    encoding = next((encoding for mark, encoding in _MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise FileContentError(
            f"{name}: expected text in {encoding.upper()}, got the byte 0x{content[error.start]:02x} in line {line}; "
            "save it as UTF-8"
        ) from error


def _non_finite(value: Any, place: str) -> str | None:
    """The place and value of the first number that is not finite, as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{place.lstrip('.') or 'the value'}: expected a finite number, got {value}"
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return next((text for key, one in items if (text := _non_finite(one, f"{place}.{key}")) is not None), None)
