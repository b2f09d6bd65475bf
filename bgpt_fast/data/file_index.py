"""Lists, sorts, splits and fingerprints the files below folders, and reports those that cannot be read."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Literal

from bgpt_fast.config import BGPTConfig
from bgpt_fast.data.source import DataError
from bgpt_fast.documents import Part, PatchError, Truncation, count_patches, read_part
from bgpt_fast.patches import PackedPatches

Split = Literal["train", "eval", "all"]
Paths = Sequence[str | os.PathLike[str]] | str | os.PathLike[str]
_MAX_EXAMPLES = 20


@dataclass(frozen=True)
class FileEntry:
    """A regular file: its path, its path relative to its root (determines split and order), and its size in bytes."""

    path: str
    relative: bytes
    size: int

    def num_patches(self, config: BGPTConfig) -> int:
        """Patches of the file's document (extension, data, end of file), at most the context length."""
        return min(count_patches(self.size, config.patch_size), config.patch_length)


class SkipReport:
    """Counts of skipped items by reason, with the names of the first few."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self._counts: Counter[str] = Counter()
        self._first_names: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, name: str, reason: str) -> None:
        """Adds an item by name; an item added twice counts once."""
        self._reasons[name] = reason

    def count(self, name: str, reason: str) -> None:
        """Adds an item without deduplication; stores only the first few names per reason, so memory is bounded."""
        self._counts[reason] += 1
        if len(self._first_names[reason]) < _MAX_EXAMPLES:
            self._first_names[reason].append(name)

    @property
    def by_reason(self) -> dict[str, int]:
        """The number of skipped items by reason."""
        return dict(Counter(self._reasons.values()) + self._counts)

    @property
    def reasons(self) -> dict[str, str]:
        """The reason for each item added by `add`."""
        return dict(self._reasons)

    @property
    def examples(self) -> list[str]:
        """The first few as "reason: name", one for each reason before a second one for any."""
        first: defaultdict[str, list[str]] = defaultdict(list)
        for name, reason in self._reasons.items():
            if len(first[reason]) < _MAX_EXAMPLES:
                first[reason].append(name)
        for reason, names in self._first_names.items():
            first[reason] += names
        in_turn = zip_longest(*([f"{reason}: {name!r}" for name in names] for reason, names in first.items()))
        return [line for line in chain(*in_turn) if line is not None][:_MAX_EXAMPLES]


def as_roots(paths: Paths) -> list[str]:
    """Paths as a list of strings; a single path becomes a list of one."""
    return [os.fspath(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]


def find_files(roots: Sequence[str], skipped: SkipReport) -> list[FileEntry]:
    """All non-empty regular files, sorted by relative path; a file reached twice is listed once.

    Args:
        roots: files and folders; folders are searched recursively without following links to folders.
        skipped: receives everything that is not a non-empty regular file.

    Raises:
        DataError: a path does not exist.
    """
    entries: dict[tuple[int, int], FileEntry] = {}
    for root in roots:
        try:
            mode = os.stat(root).st_mode
        except OSError as error:
            raise DataError(f"{root!r}: {error.strerror}; give files and folders that exist") from error
        pairs = _walk(root, skipped) if stat.S_ISDIR(mode) else [(root, os.path.basename(root))]
        for path, relative in pairs:
            try:
                status = os.stat(path)
            except OSError:
                skipped.add(path, "vanished")
                continue
            if not stat.S_ISREG(status.st_mode):
                skipped.add(path, "not a regular file")
            elif status.st_size == 0:
                skipped.add(path, "empty")
            elif (status.st_dev, status.st_ino) not in entries:
                entry = FileEntry(path, os.fsencode(relative), status.st_size)
                entries[status.st_dev, status.st_ino] = entry
    return sorted(entries.values(), key=lambda entry: (entry.relative, entry.path))


def _walk(root: str, skipped: SkipReport) -> Iterator[tuple[str, str]]:
    """Yields (path, path relative to the root) of everything that is not a folder."""

    def report(error: OSError) -> None:
        skipped.add(str(error.filename), "unreadable folder")

    for folder, folders, names in os.walk(root, onerror=report):
        folders.sort()
        prefix = os.path.join(folder, "")
        relative_prefix = "" if folder == root else os.path.join(os.path.relpath(folder, root), "")
        for name in sorted(names):
            yield prefix + name, relative_prefix + name


def is_in_split(key: bytes, split: Split, eval_share: float) -> bool:
    """Whether the document with this key is in the split; depends only on the key, so all machines and ranks agree."""
    return split == "all" or digest_is_in_split(hashlib.blake2b(key).digest(), split, eval_share)


def content_is_in_split(entry: FileEntry, split: Split, eval_share: float, skipped: SkipReport) -> bool:
    """Whether a file is in the split, decided by its content; reads the file."""
    if split == "all":
        return True
    try:
        with open(entry.path, "rb") as stream:
            digest = hashlib.file_digest(stream, "blake2b").digest()
    except OSError:
        skipped.add(entry.path, "unreadable")
        return False
    return digest_is_in_split(digest, split, eval_share)


def digest_is_in_split(digest: bytes, split: Split, eval_share: float) -> bool:
    """Whether the document with this blake2b digest is in the split."""
    is_eval = int.from_bytes(digest[:8], "big") < eval_share * 2.0**64
    return is_eval == (split == "eval")


def fingerprint(entries: Sequence[FileEntry], *settings: object) -> str:
    """A digest of the files' relative paths and sizes, in order, and of the settings that determine the documents."""
    digest = hashlib.blake2b(digest_size=16)
    for entry in entries:
        digest.update(b"%d %d " % (len(entry.relative), entry.size) + entry.relative)
    if settings:
        digest.update(repr(settings).encode())
    return digest.hexdigest()


def read_entry(entry: FileEntry, truncation: Truncation, skipped: SkipReport) -> Part | None:
    """Reads a file, truncated, with at most as many patches as when it was listed; None if it is unreadable.

    Args:
        entry: the file.
        truncation: determines the bytes to read.
        skipped: receives a file that is missing, unreadable, or no longer a regular file.
    """
    try:
        return read_part(entry.path, truncation, max_size=entry.size)
    except FileNotFoundError:
        skipped.add(entry.path, "vanished")
    except (OSError, PatchError) as error:
        # A socket cannot be opened: ENXIO.
        is_unreadable = isinstance(error, OSError) and error.errno != errno.ENXIO
        skipped.add(entry.path, "unreadable" if is_unreadable else "changed while read, or no longer a file")
    return None


def read_document(entry: FileEntry, config: BGPTConfig, skipped: SkipReport) -> PackedPatches | None:
    """Packs a single file, truncated to the context; an unreadable file is added to `skipped` and gives None."""
    part = read_entry(entry, Truncation(config), skipped)
    return None if part is None else PackedPatches.from_parts([[part]], config.patch_size)


def check_split(name: str, split: object, eval_share: float) -> None:
    """Checks the arguments that choose a split; errors begin with `name`."""
    if split not in ("train", "eval", "all"):
        raise ValueError(f'{name}: split: expected "train", "eval" or "all", got {split!r}')
    if not 0.0 <= eval_share <= 1.0:
        raise ValueError(f"{name}: eval_share: expected a share from 0 to 1, got {eval_share}")
