"""Files below folders: found once, sorted, split, fingerprinted and read, with what cannot be read noted."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Literal

from bgpt_fast.config import BGPTConfig
from bgpt_fast.data.source import DataError
from bgpt_fast.documents import PatchError
from bgpt_fast.patches import PackedPatches

Split = Literal["train", "eval", "all"]
Paths = Sequence[str | os.PathLike[str]] | str | os.PathLike[str]
_NAMED_SKIPS = 20


@dataclass(frozen=True)
class FileEntry:
    """A regular file: where it is, its path below its root (what the split and the order go by), and its bytes."""

    path: str
    relative: bytes
    size: int

    def num_patches(self, config: BGPTConfig) -> int:
        """Patches of its document: extension, data, end of file; at most the context."""
        return min(2 - -self.size // config.patch_size, config.patch_length)


class Skips:
    """What was left out, by reason, with the first few named."""

    def __init__(self) -> None:
        self._by_name: dict[str, str] = {}
        self._counted: Counter[str] = Counter()
        self._first_names: defaultdict[str, list[str]] = defaultdict(list)

    def note(self, name: str, reason: str) -> None:
        """Something with a name; noted again, it counts once."""
        self._by_name[name] = reason

    def count(self, name: str, reason: str) -> None:
        """One of any number of things: counted each time, and kept by name only among the first of its reason."""
        self._counted[reason] += 1
        if len(self._first_names[reason]) < _NAMED_SKIPS:
            self._first_names[reason].append(name)

    @property
    def by_reason(self) -> dict[str, int]:
        """How many were skipped for each reason."""
        return dict(Counter(self._by_name.values()) + self._counted)

    @property
    def noted(self) -> dict[str, str]:
        """The reason of each thing that has a name."""
        return dict(self._by_name)

    @property
    def named(self) -> list[str]:
        """The first few, as "reason: name": one of each reason before a second of any."""
        first: defaultdict[str, list[str]] = defaultdict(list)
        for name, reason in self._by_name.items():
            if len(first[reason]) < _NAMED_SKIPS:
                first[reason].append(name)
        for reason, names in self._first_names.items():
            first[reason] += names
        rounds = zip_longest(*([f"{reason}: {name!r}" for name in names] for reason, names in first.items()))
        return [line for line in chain(*rounds) if line is not None][:_NAMED_SKIPS]


def as_roots(paths: Paths) -> list[str]:
    """Paths as a list of strings; one path is a list of one."""
    return [os.fspath(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]


def find_files(roots: Sequence[str], skips: Skips) -> list[FileEntry]:
    """All regular files with something in them, sorted by relative path; one that is reached twice counts once.

    Args:
        roots: files and folders; folders are walked, links to folders inside them are not followed.
        skips: gets what is no such file.

    Raises:
        DataError: no such path.
    """
    found: dict[tuple[int, int], FileEntry] = {}
    for root in roots:
        try:
            mode = os.stat(root).st_mode
        except OSError as error:
            raise DataError(f"{root!r}: {error.strerror}; give files and folders that exist") from error
        pairs = _walk(root, skips) if stat.S_ISDIR(mode) else [(root, os.path.basename(root))]
        for path, relative in pairs:
            status = _usable(path, skips)
            if status is not None:
                file = FileEntry(path, os.fsencode(Path(relative).as_posix()), status.st_size)
                found.setdefault((status.st_dev, status.st_ino), file)
    return sorted(found.values(), key=lambda file: (file.relative, file.path))


def _walk(root: str, skips: Skips) -> Iterator[tuple[str, str]]:
    def note(error: OSError) -> None:
        skips.note(str(error.filename), "unreadable folder")

    for folder, folders, names in os.walk(root, onerror=note):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            yield path, os.path.relpath(path, root)


def _usable(path: str, skips: Skips) -> os.stat_result | None:
    try:
        status = os.stat(path)
    except OSError:
        skips.note(path, "vanished")
        return None
    if not stat.S_ISREG(status.st_mode):
        skips.note(path, "not a regular file")
    elif status.st_size == 0:
        skips.note(path, "empty")
    else:
        return status
    return None


def belongs(key: bytes, split: Split, eval_share: float) -> bool:
    """Whether what `key` stands for is in the split: a matter of the key alone, on every machine and rank."""
    if split == "all":
        return True
    return digest_belongs(hashlib.blake2b(key).digest(), split, eval_share)


def content_belongs(file: FileEntry, split: Split, eval_share: float, skips: Skips) -> bool:
    """Whether a file with this content is in the split; the file is read."""
    if split == "all":
        return True
    try:
        with open(file.path, "rb") as stream:
            digest = hashlib.file_digest(stream, "blake2b").digest()
    except OSError:
        skips.note(file.path, "unreadable")
        return False
    return digest_belongs(digest, split, eval_share)


def digest_belongs(digest: bytes, split: Split, eval_share: float) -> bool:
    is_eval = int.from_bytes(digest[:8], "big") < eval_share * 2.0**64
    return is_eval == (split == "eval")


def fingerprint(files: Sequence[FileEntry], *settings: object) -> str:
    """A digest of the files' relative paths and sizes, in order, and of what decides on the documents in them."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(b"%d %d " % (len(file.relative), file.size) + file.relative)
    if settings:
        digest.update(repr(settings).encode())
    return digest.hexdigest()


def read_file(
    file: FileEntry,
    config: BGPTConfig,
    skips: Skips,
    *,
    truncation: Literal["head", "window", "error"],
    seed: int = 0,
    end_of_file: bool = True,
) -> PackedPatches | None:
    """The file's document, of no more patches than the file had when it was found; None, and a note, if it cannot be.

    Args:
        file, config: what to read, and the patch size and context.
        skips: gets the reason if the file is gone, unreadable, or no longer a file.
        truncation, seed, end_of_file: as `PackedPatches.from_files`.
    """
    arguments: dict[str, Any] = {"seed": seed, "end_of_file": end_of_file}
    try:
        document = PackedPatches.from_files([file.path], config, truncation=truncation, **arguments)
        if document.num_patches > file.num_patches(config) - (not end_of_file):
            # The file has grown, but its room was planned: what it was then.
            grown = PackedPatches.from_files([file.path], config, truncation="head")
            ((extension, content),) = grown.to_bytes()
            document = PackedPatches.from_bytes([(extension, content[: file.size])], config, **arguments)
        return document
    except FileNotFoundError:
        skips.note(file.path, "vanished")
    except OSError:
        skips.note(file.path, "unreadable")
    except PatchError:
        skips.note(file.path, "changed while read, or no longer a file")
    return None


def check_split(name: str, split: object, eval_share: float) -> None:
    """Checks the arguments that choose a split; `name` begins the error."""
    if split not in ("train", "eval", "all"):
        raise ValueError(f'{name}: split: expected "train", "eval" or "all", got {split!r}')
    if not 0.0 <= eval_share <= 1.0:
        raise ValueError(f"{name}: eval_share: expected a share from 0 to 1, got {eval_share}")
