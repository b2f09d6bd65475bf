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
from bgpt_fast.documents import FixedWindow, Part, PatchError, Truncation, count_patches, read_part
from bgpt_fast.files import FileContentError, open_regular, read_file
from bgpt_fast.memory import is_shortage
from bgpt_fast.patches import PackedPatches

Split = Literal["train", "eval", "all"]
Paths = Sequence[str | os.PathLike[str]] | str | os.PathLike[str]
MAX_CONTENT_BYTES = 512 << 20
"""Most bytes of a file that is read whole, as of media; more would be a sparse file, or one that no context holds."""
_MAX_EXAMPLES = 20


@dataclass(frozen=True)
class FileEntry:
    """A regular file.

    Args:
        path: its path.
        relative: its path relative to its root; determines split and order.
        size: in bytes.
        modified: what changes when its content does; "" if unknown. Of local files the time of the last change of
            content or attributes in nanoseconds (ctime), which no program sets back, as some do that of modification.
    """

    path: str
    relative: bytes
    size: int
    modified: str = ""

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
    """All non-empty regular files, sorted by relative path; each name is a document, also of one file (hard links).

    Args:
        roots: files and folders; folders are searched recursively without following links to folders.
        skipped: receives everything else, and names that are reached twice, as a file in two of the roots; these are
            listed once, below the first root.

    Raises:
        DataError: a path does not exist.
    """
    entries: dict[str, FileEntry] = {}
    folders: dict[str, str] = {}
    for root in roots:
        try:
            mode = os.stat(root).st_mode
        except (OSError, ValueError) as error:
            problem = getattr(error, "strerror", None) or str(error)
            raise DataError(f"{root!r}: {problem}; give files and folders that exist") from error
        pairs = _walk(root, skipped) if stat.S_ISDIR(mode) else [(root, os.path.basename(root))]
        for path, relative in pairs:
            try:
                status = os.stat(path)
            except OSError as error:
                if is_shortage(error):
                    raise
                is_missing = isinstance(error, FileNotFoundError)
                skipped.add(path, "vanished" if is_missing else "unreadable")
                continue
            if not stat.S_ISREG(status.st_mode):
                skipped.add(path, "not a regular file")
                continue
            folder, name = os.path.split(path)
            if folder not in folders:
                folders[folder] = os.path.realpath(folder)
            key = os.path.join(folders[folder], name)
            if key in entries:
                skipped.count(path, "reached twice, used once")
            elif status.st_size == 0:
                skipped.add(path, "empty")
            else:
                entries[key] = FileEntry(path, os.fsencode(relative), status.st_size, str(status.st_ctime_ns))
    return sorted(entries.values(), key=lambda entry: (entry.relative, entry.path))


def _walk(root: str, skipped: SkipReport) -> Iterator[tuple[str, str]]:
    """Yields (path, path relative to the root) of everything that is not a folder; reports folders that it leaves."""

    def report(error: OSError) -> None:
        if is_shortage(error):
            raise error
        skipped.add(str(error.filename), "unreadable folder")

    for folder, folders, names in os.walk(root, onerror=report):
        folders.sort()
        prefix = os.path.join(folder, "")
        for name in folders:
            if os.path.islink(prefix + name):
                skipped.add(prefix + name, "link to a folder, not followed")
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
        with open_regular(entry.path) as stream:
            digest = hashlib.file_digest(stream, "blake2b").digest()
    except OSError as error:
        if is_shortage(error):
            raise
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


def modification_digest(entries: Sequence[FileEntry]) -> str:
    """A digest of when each file was last changed, in order."""
    return hashlib.blake2b(" ".join(entry.modified for entry in entries).encode(), digest_size=16).hexdigest()


def read_entry(entry: FileEntry, truncation: Truncation | FixedWindow, skipped: SkipReport) -> Part | None:
    """Reads a file, truncated, with at most as many patches as when it was listed; None if it is unreadable.

    Args:
        entry: the file.
        truncation: determines the bytes to read.
        skipped: receives a file that is missing, unreadable, or no longer a regular file.

    Raises:
        MemoryError, OSError: memory or file descriptors ran out.
    """
    try:
        return read_part(entry.path, truncation, max_size=entry.size)
    except FileNotFoundError:
        skipped.add(entry.path, "vanished")
    except (OSError, PatchError) as error:
        if is_shortage(error):
            raise
        # A socket cannot be opened: ENXIO.
        is_unreadable = isinstance(error, OSError) and error.errno != errno.ENXIO
        skipped.add(entry.path, "unreadable" if is_unreadable else "changed while read, or no longer a file")
    return None


def read_content(entry: FileEntry, skipped: SkipReport) -> bytes | None:
    """All bytes of a file; None, and a reason in `skipped`, if it is unreadable or larger than `MAX_CONTENT_BYTES`.

    Raises:
        MemoryError, OSError: memory or file descriptors ran out.
    """
    try:
        return read_file(entry.path, MAX_CONTENT_BYTES)
    except FileContentError:
        skipped.add(entry.path, "too large")
    except OSError as error:
        if is_shortage(error):
            raise
        skipped.add(entry.path, "vanished" if isinstance(error, FileNotFoundError) else "unreadable")
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
