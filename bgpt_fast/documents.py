"""Documents before packing: their layout in patches, reading their files, and truncation.

A document is one or more concatenated files, each `[extension patch][data patches, the last padded with 256]`, followed
by one `[end-of-file patch of S 256s]` (arXiv 2402.19155, section 3.1). A conversion pair has two files.
Shape letters: B documents, F files per document, P patches, S bytes per patch.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from bgpt_fast.config import BGPTConfig

TruncationMode = Literal["head", "window", "error"]
PathLike = str | bytes | os.PathLike[str] | os.PathLike[bytes]
MAX_PATCHES = 2**31 - 1
"""Maximum number of patches in a batch, as offsets are int32."""


class PatchError(ValueError):
    """A document or file that cannot be converted to patches, or patches that do not form a document."""


@overload
def count_patches(size: int, patch_size: int, end_of_file: bool = True) -> int: ...
@overload
def count_patches(size: Tensor, patch_size: int, end_of_file: bool | Tensor = True) -> Tensor: ...
def count_patches(size: Any, patch_size: int, end_of_file: Any = True) -> Any:
    """The number of patches of a file of `size` bytes: extension, data and, with `end_of_file`, end-of-file patch."""
    return 1 + -(-size // patch_size) + end_of_file


class Layout(NamedTuple):
    """The positions of a batch's documents among its patches, and which patches are in the loss.

    Args:
        cu_seqlens: int32 [B + 1]: document b has the patches `cu_seqlens[b]` … `cu_seqlens[b + 1] - 1`.
        max_seqlen: number of patches of the longest document.
        targets: bool [P], the patches in the loss; None means all but each document's first.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    targets: Tensor | None

    @property
    def num_patches(self) -> int:
        """P; synchronises with a GPU."""
        return int(self.cu_seqlens[-1])


def document_layout(
    sizes: Tensor, patch_size: int, *, end_of_file: bool | Tensor = True, first_target: int | Tensor = 1
) -> Layout:
    """The layout of concatenated documents; the only place where batch layouts are computed.

    Args:
        sizes: int64 [B] or [B, F], size in bytes of each document or of each of its files; on any device.
        patch_size: S.
        end_of_file: whether an end-of-file patch follows; one value for all, or bool of the shape of `sizes`.
        first_target: index of the first patch in the loss within its document, counted from the extension patch (0);
            all later patches are in the loss too. One value for all, or int64 [B].

    Returns:
        The layout, on the device of `sizes`; synchronises with it.

    Raises:
        ValueError: more than 2³¹ − 1 patches.
    """
    lengths = count_patches(sizes, patch_size, end_of_file)
    if lengths.dim() == 2:
        lengths = lengths.sum(1)
    ends = lengths.cumsum(0)
    P = int(ends[-1]) if len(ends) else 0
    check_patch_count(P)
    cu_seqlens = torch.zeros(len(sizes) + 1, dtype=torch.int32, device=sizes.device)
    cu_seqlens[1:] = ends
    targets = None
    if isinstance(first_target, Tensor) or first_target != 1:
        document, position = patch_positions(cu_seqlens, P)
        targets = position >= (first_target[document] if isinstance(first_target, Tensor) else first_target)
    return Layout(cu_seqlens, int(lengths.max()) if len(lengths) else 0, targets)


def patch_positions(cu_seqlens: Tensor, P: int) -> tuple[Tensor, Tensor]:
    """For each patch the index of its document, and its index within it (0: the extension patch); int64 [P] each."""
    patches = torch.arange(P, dtype=cu_seqlens.dtype, device=cu_seqlens.device)
    document = torch.searchsorted(cu_seqlens, patches, right=True) - 1
    return document, (patches - cu_seqlens[document]).long()


def extension_of(path: PathLike) -> str:
    """A path's extension without its dot, as `os.path.splitext` splits it.

    "" for names without a dot, for dotfiles (".bashrc") and if only a folder's name has a dot ("a.b/file"). Bytes of
    the name that are invalid in the file system's encoding are returned as surrogate escapes.
    """
    return os.path.splitext(os.fsdecode(path))[1][1:]


class ByteRange(NamedTuple):
    """The byte range [start, stop) of a file's content, and whether the end-of-file patch follows it."""

    start: int
    stop: int
    has_end: bool
    is_cut: bool


class Part(NamedTuple):
    """A file of a document, ready for packing.

    Args:
        extension: at most S bytes.
        content: the bytes after truncation.
        has_end: whether the end-of-file patch follows.
        is_cut: whether truncation removed bytes or the end-of-file patch.
        cut_bytes: number of bytes that truncation removed.
    """

    extension: bytes
    content: bytes | memoryview
    has_end: bool
    is_cut: bool = False
    cut_bytes: int = 0


class Truncation(NamedTuple):
    """How documents longer than the context are cut, and whether documents end with the end-of-file patch."""

    config: BGPTConfig
    mode: TruncationMode = "head"
    seed: int = 0
    end_of_file: bool = True

    def fit(self, size: int, index: int, name: str) -> ByteRange:
        """The byte range to keep of document number `index`, of `size` bytes; `name` is used in errors.

        Raises:
            PatchError: the mode is "error" and the document is longer than the context.
        """
        S, L = self.config.patch_size, self.config.patch_length
        patches = count_patches(size, S, self.end_of_file)
        if patches <= L:
            return ByteRange(0, size, self.end_of_file, False)
        if self.mode == "error":
            raise PatchError(
                f"{name}: expected at most {L} patches of {S} bytes, got {patches} ({size} bytes); use "
                'truncation="head" or "window", or a longer context'
            )
        first = 0
        if self.mode == "window":
            last = patches - L
            random_numbers = random.Random(f"{self.seed} {index}")
            choice = random_numbers.randrange(3 if last > 1 else 2)
            first = (0, last, random_numbers.randrange(1, max(last, 2)))[choice]
        stop = first + L - 1
        return ByteRange(first * S, min(stop * S, size), self.end_of_file and stop == patches - 1, True)

    def part(self, name: str, extension: object, content: object, index: int = 0) -> Part:
        """Truncates a file that is in memory; arguments as for `fit`.

        Raises:
            TypeError, ValueError: the extension is not text or the content is not contiguous bytes.
            PatchError: as for `fit`.
        """
        encoded = encode_extension(name, extension, self.config)
        view = byte_view(name, content)
        start, stop, has_end, is_cut = self.fit(len(view), index, name)
        return Part(encoded, view[start:stop], has_end, is_cut, len(view) - (stop - start))


class FixedWindow(NamedTuple):
    """A window of a file, to be read as a document: the extension patch, and patches from `first` on.

    Args:
        config: determines the patch size.
        first: index of the first data patch of the window, from 0.
        patches: maximum number of patches, extension patch included; the end-of-file patch counts if it is reached.
        end_of_file: as in `Truncation`.
    """

    config: BGPTConfig
    first: int
    patches: int
    end_of_file: bool = True

    def fit(self, size: int, index: int, name: str) -> ByteRange:
        """The byte range of the window in a file of `size` bytes; the other arguments are those of `Truncation.fit`."""
        S = self.config.patch_size
        start, stop = min(self.first * S, size), min((self.first + self.patches - 1) * S, size)
        has_end = self.end_of_file and self.first + self.patches > count_patches(size, S) - 1
        return ByteRange(start, stop, has_end, start > 0 or not has_end)


def read_part(
    path: PathLike, truncation: Truncation | FixedWindow, index: int = 0, max_size: int | None = None
) -> Part:
    """Reads the part of a regular file that truncation keeps; never blocks on a FIFO or device.

    Args:
        path: the file.
        truncation: determines the bytes to read.
        index: index of the document, for the windows of `truncation`.
        max_size: the file's size when it was listed as a regular file; if it has since grown and would need more
            patches, only this many bytes are read. None: not listed before, so the file type is checked before opening.

    Raises:
        OSError: the file is missing or cannot be read.
        PatchError: not a regular file, shrank while it was read, or longer than the context in the mode "error".
    """
    text = os.fsdecode(path)
    name = f"from_files: {text!r}"
    if max_size is None:
        _check_regular(name, os.stat(path))
    # The file may be replaced by a FIFO before it is opened: hence O_NONBLOCK, and a second check after opening.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        _check_regular(name, status)
        size = status.st_size
        start, stop, has_end, is_cut = truncation.fit(size, index, name)
        if max_size is not None and size > max_size:
            S, L = truncation.config.patch_size, truncation.config.patch_length
            max_patches = min(count_patches(max_size, S), L) - (not truncation.end_of_file)
            if count_patches(stop - start, S, has_end) > max_patches:
                size = max_size
                start, stop, has_end, is_cut = truncation.fit(size, index, name)
        content = os.pread(descriptor, stop - start, start)
        while len(content) < stop - start:
            more = os.pread(descriptor, stop - start - len(content), start + len(content))
            if not more:
                raise PatchError(
                    f"{name}: expected {size} bytes, got at most {start + len(content)}: the file shrank while "
                    "it was read; read files that nobody writes"
                )
            content += more
        if not status.st_size and os.pread(descriptor, 1, 0):
            raise PatchError(f"{name}: expected a file that knows its size, got 0 bytes of one that has more; copy it")
    finally:
        os.close(descriptor)
    extension = encode_extension(name, extension_of(text), truncation.config)
    return Part(extension, content, has_end, is_cut, size - len(content))


def _check_regular(name: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a FIFO, socket or device"
        raise PatchError(f"{name}: expected a regular file, got {kind}; list regular files only")


def encode_extension(name: str, extension: object, config: BGPTConfig) -> bytes:
    """The first S bytes of an extension in UTF-8; surrogate escapes become the original bytes."""
    if not isinstance(extension, str):
        raise TypeError(f"{name}: extension: expected a str, got {type(extension).__name__}")
    try:
        return extension.encode("utf-8", "surrogateescape")[: config.patch_size]
    except UnicodeEncodeError:
        raise ValueError(f"{name}: extension: expected text that UTF-8 can encode, got {extension!r:.80}") from None


def byte_view(name: str, content: object) -> memoryview:
    """A contiguous memoryview of a bytes, bytearray or memoryview object."""
    if not isinstance(content, bytes | bytearray | memoryview):
        raise TypeError(f"{name}: content: expected bytes, a bytearray or a memoryview, got {type(content).__name__}")
    view = memoryview(content)
    if not view.c_contiguous:
        raise ValueError(f"{name}: content: expected a contiguous memoryview, got strides {view.strides}")
    return view.cast("B") if view.nbytes else memoryview(b"")


def check_truncation(
    name: str, items: object, config: BGPTConfig, mode: TruncationMode, seed: int, end_of_file: bool
) -> Truncation:
    """Checks the arguments shared by `from_bytes` and `from_files`."""
    function = name.split(":")[0]
    if isinstance(items, str | bytes | os.PathLike) or not isinstance(items, Sequence):
        raise TypeError(f"{name}: expected a sequence such as a list, got {type(items).__name__}")
    if not isinstance(config, BGPTConfig):
        raise TypeError(f"{function}: config: expected a BGPTConfig, got {type(config).__name__}")
    config.check_bytes(function)
    if mode not in ("head", "window", "error"):
        raise ValueError(f'{function}: truncation: expected "head", "window" or "error", got {mode!r}')
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"{function}: seed: expected an int, got {type(seed).__name__}")
    return Truncation(config, mode, seed, bool(end_of_file))


def check_patch_count(P: int) -> None:
    """Raises ValueError if a batch cannot hold `P` patches."""
    if P > MAX_PATCHES:
        raise ValueError(f"PackedPatches: expected at most {MAX_PATCHES} patches in one batch, got {P}; split it")
