"""Documents before they are packed: extensions, contents from memory or files, and what is kept of over-long ones.

Shape letters: S bytes a patch.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Sequence
from typing import Literal, NamedTuple

from bgpt_fast.config import BGPTConfig

TruncationMode = Literal["head", "window", "error"]
PathLike = str | bytes | os.PathLike[str] | os.PathLike[bytes]


class PatchError(ValueError):
    """A document or file that cannot become patches, or patches that are no document."""


def extension_of(path: PathLike) -> str:
    """A path's extension without its dot, as `os.path.splitext` sees it.

    "" for names without a dot, for dotfiles (".bashrc") and for a dot in a folder's name alone ("a.b/file"). Bytes of
    the name that are not valid in the file system's encoding come as surrogate escapes.
    """
    return os.path.splitext(os.fsdecode(path))[1][1:]


class ByteRange(NamedTuple):
    """The bytes [start, stop) of a content that are kept, and whether the end-of-file patch follows them."""

    start: int
    stop: int
    ends: bool


class Part(NamedTuple):
    """A document as it will be packed; `size` is the content's size before it was cut."""

    extension: bytes
    content: bytes | memoryview
    size: int
    ends: bool


class Truncation(NamedTuple):
    """What is kept of over-long documents, and how documents end."""

    config: BGPTConfig
    mode: TruncationMode
    seed: int
    end_of_file: bool

    def fit(self, size: int, index: int, label: str) -> ByteRange:
        """The part that is kept of the `index`-th document, whose content has `size` bytes."""
        S, room = self.config.patch_size, self.config.patch_length - 1
        patches = -(-size // S) + self.end_of_file
        if patches <= room:
            return ByteRange(0, size, self.end_of_file)
        if self.mode == "error":
            raise PatchError(
                f"{label}: expected at most {room + 1} patches of {S} bytes, got {patches + 1} ({size} bytes); use "
                'truncation="head" or "window", or a longer context'
            )
        first = 0
        if self.mode == "window":
            last = patches - room
            draw = random.Random(f"{self.seed} {index}")
            choice = draw.randrange(3 if last > 1 else 2)
            first = (0, last, draw.randrange(1, max(last, 2)))[choice]
        stop = first + room
        return ByteRange(first * S, min(stop * S, size), self.end_of_file and stop == patches)


def read_part(path: PathLike, index: int, rule: Truncation) -> Part:
    """Reads what `rule` keeps of a regular file, and never waits for a FIFO's or a device's other side."""
    label = f"from_files: {os.fsdecode(path)!r}"
    extension = encode_extension(label, extension_of(path), rule.config)
    _check_regular(label, os.stat(path))
    # What was checked may be swapped for a FIFO before it is opened: hence O_NONBLOCK, and the check again.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        _check_regular(label, status)
        kept = rule.fit(status.st_size, index, label)
        content = b""
        while len(content) < kept.stop - kept.start:
            start = kept.start + len(content)
            more = os.pread(descriptor, kept.stop - start, start)
            if not more:
                raise PatchError(
                    f"{label}: expected {status.st_size} bytes, got at most {start}: the file shrank while it was read"
                    "; read files that nobody writes"
                )
            content += more
        if not status.st_size and os.pread(descriptor, 1, 0):
            raise PatchError(f"{label}: expected a file that knows its size, got 0 bytes of one that has more; copy it")
        return Part(extension, content, status.st_size, kept.ends)
    finally:
        os.close(descriptor)


def _check_regular(label: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a FIFO, socket or device"
        raise PatchError(f"{label}: expected a regular file, got {kind}; list regular files only")


def encode_extension(label: str, extension: object, config: BGPTConfig) -> bytes:
    if not isinstance(extension, str):
        raise TypeError(f"{label}: extension: expected a str, got {type(extension).__name__}")
    try:
        return extension.encode("utf-8", "surrogateescape")[: config.patch_size]
    except UnicodeEncodeError:
        raise ValueError(f"{label}: extension: expected text that UTF-8 can encode, got {extension!r:.80}") from None


def byte_view(label: str, content: object) -> memoryview:
    if not isinstance(content, bytes | bytearray | memoryview):
        raise TypeError(f"{label}: content: expected bytes, a bytearray or a memoryview, got {type(content).__name__}")
    view = memoryview(content)
    if not view.c_contiguous:
        raise ValueError(f"{label}: content: expected a contiguous memoryview, got strides {view.strides}")
    return view.cast("B") if view.nbytes else memoryview(b"")


def check_truncation(
    name: str, items: object, config: BGPTConfig, truncation: TruncationMode, seed: int, end_of_file: bool
) -> Truncation:
    """Checks the arguments that `from_bytes` and `from_files` share."""
    function = name.split(":")[0]
    if isinstance(items, str | bytes | os.PathLike) or not isinstance(items, Sequence):
        raise TypeError(f"{name}: expected a sequence such as a list, got {type(items).__name__}")
    if not isinstance(config, BGPTConfig):
        raise TypeError(f"{function}: config: expected a BGPTConfig, got {type(config).__name__}")
    if truncation not in ("head", "window", "error"):
        raise ValueError(f'{function}: truncation: expected "head", "window" or "error", got {truncation!r}')
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"{function}: seed: expected an int, got {type(seed).__name__}")
    return Truncation(config, truncation, seed, bool(end_of_file))


def check_int(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"PackedPatches: {name}: expected an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"PackedPatches: {name}: expected at least {least}, got {value}")
