"""Files on disk as an endless, seeded, resumable stream of packed batches."""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bgpt_fast.config import BGPTConfig
from bgpt_fast.data.source import DataError
from bgpt_fast.documents import PatchError
from bgpt_fast.patches import PackedPatches

Split = Literal["train", "eval", "all"]
_NAMED_SKIPS = 20


@dataclass(frozen=True)
class _File:
    """A regular file: where it is, its path below its root (what the split and the order go by), and its bytes."""

    path: str
    relative: bytes
    size: int


class FileSource:
    """Whole files packed into batches, in a new seeded order every epoch.

    A file belongs to the evaluation split if a hash of its relative path (or content) says so: the same files on every
    machine and rank, whatever else lies beside them. Over-long files give a seeded window each epoch in training, and
    their head in `one_pass`. What cannot be read is skipped, counted and named in `describe()`.

    Args:
        paths: files and folders; folders are walked, links to folders inside them are not followed. A file that is
            reached twice counts once.
        config: patch size and context.
        patches_per_batch: most patches of a batch; at least the context.
        seed: of the order and of the windows.
        split: "train", "eval", or "all" for both together.
        eval_share: share of the files that is held out; 1.0 with split="eval" for a folder of nothing else.
        split_by: "path": the path below the folder that was given (for a file given itself, its name); "content": the
            bytes, so that copies of a file never end up on both sides, at the price of reading everything once.

    Raises:
        DataError: no such path, no usable file in the split, or (but for "eval") fewer patches than one batch.
        TypeError, ValueError: a wrong argument.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
        config: BGPTConfig,
        patches_per_batch: int,
        *,
        seed: int = 0,
        split: Split = "train",
        eval_share: float = 0.02,
        split_by: Literal["path", "content"] = "path",
    ) -> None:
        if isinstance(paths, str | os.PathLike):
            paths = [paths]
        _check_arguments(config, patches_per_batch, seed, split, eval_share, split_by)
        self.config = config
        self.patches_per_batch = patches_per_batch
        self.seed = seed
        self.split = split
        self.roots = [os.fspath(path) for path in paths]
        self.truncated = 0
        self._skipped: dict[str, str] = {}
        found = self._scan()
        self._files = [file for file in found if self._belongs(file, eval_share, split_by)]
        self._check_amount(len(found), eval_share)
        self._fingerprint = _fingerprint(self._files)
        self._epoch = 0
        self._offset = 0
        self._order = self._permutation()
        self._read_ahead: tuple[int, int, PackedPatches] | None = None
        self._epoch_documents = 0
        self._whole_epoch = True

    def __len__(self) -> int:
        """Files of the split."""
        return len(self._files)

    @property
    def paths(self) -> list[str]:
        """The split's files, sorted by relative path."""
        return [file.path for file in self._files]

    def next_batch(self) -> PackedPatches:
        """The next documents, as many as fit; a batch goes on into the next epoch.

        Raises:
            DataError: not one file of a whole epoch could be read.
        """
        documents: list[PackedPatches] = []
        room = self.patches_per_batch
        while True:
            if self._offset == len(self._order):
                self._next_epoch()
            document = self._document_here()
            if document is not None and document.num_patches > room:
                self._read_ahead = (self._epoch, self._offset, document)
                return PackedPatches.concatenate(documents)
            self._offset += 1
            if document is not None:
                room -= document.num_patches
                self.truncated += document.truncated
                self._epoch_documents += 1
                documents.append(document)

    def one_pass(self) -> Iterator[PackedPatches]:
        """Every file once, in the order of their paths, over-long ones cut to their head; leaves the position alone."""
        documents: list[PackedPatches] = []
        room = self.patches_per_batch
        for file in self._files:
            document = self._read(file, "head", 0)
            if document is None:
                continue
            if document.num_patches > room:
                yield PackedPatches.concatenate(documents)
                documents, room = [], self.patches_per_batch
            room -= document.num_patches
            documents.append(document)
        if documents:
            yield PackedPatches.concatenate(documents)

    def state_dict(self) -> dict[str, Any]:
        """Epoch and offset of the next file, and a fingerprint of the files."""
        return {"epoch": self._epoch, "offset": self._offset, "files": self._fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position; if the files have changed since, to the start of its next epoch, with a warning.

        Raises:
            DataError: the position is not one of files.
        """
        if not {"epoch", "offset", "files"} <= state.keys():
            raise DataError(
                f"FileSource: expected a position in files, got one of {state.get('source', 'another source')!r}; "
                "train on what the run was started with, or use another run folder"
            )
        self._epoch, self._offset = int(state["epoch"]), int(state["offset"])
        self._read_ahead = None
        self._epoch_documents = 0
        self._whole_epoch = self._offset == 0
        if state["files"] != self._fingerprint:
            warnings.warn(
                f"the files below {self.roots} changed since the position was saved: going on at the start of epoch "
                f"{self._epoch + 1}, not bit for bit",
                stacklevel=2,
            )
            self._epoch, self._offset, self._whole_epoch = self._epoch + 1, 0, True
        self._order = self._permutation()

    def describe(self) -> dict[str, Any]:
        """Files, bytes, what was skipped by reason (with the first few named), what was cut, and the position."""
        skipped = list(self._skipped.items())
        return {
            "kind": "files",
            "roots": self.roots,
            "split": self.split,
            "files": len(self._files),
            "bytes": sum(file.size for file in self._files),
            "documents_cut": self.truncated,
            "skipped": dict(Counter(reason for _, reason in skipped)),
            "warnings": [f"{reason}: {path!r}" for path, reason in skipped[:_NAMED_SKIPS]],
            "epoch": self._epoch,
            "offset": self._offset,
        }

    def _next_epoch(self) -> None:
        if self._whole_epoch and self._epoch_documents == 0:
            raise DataError(
                f"none of the {len(self._files)} files below {self.roots} could be read in epoch {self._epoch}: "
                f"{self.describe()['warnings']}"
            )
        self._epoch, self._offset, self._epoch_documents, self._whole_epoch = self._epoch + 1, 0, 0, True
        self._order = self._permutation()

    def _permutation(self) -> np.ndarray:
        return np.random.default_rng([self.seed, self._epoch]).permutation(len(self._files))

    def _document_here(self) -> PackedPatches | None:
        if self._read_ahead is not None and self._read_ahead[:2] == (self._epoch, self._offset):
            document = self._read_ahead[2]
            self._read_ahead = None
            return document
        index = int(self._order[self._offset])
        window_seed = int(np.random.SeedSequence([self.seed, self._epoch, index]).generate_state(1)[0])
        return self._read(self._files[index], "window", window_seed)

    def _read(self, file: _File, overlong: Literal["head", "window"], seed: int) -> PackedPatches | None:
        try:
            return PackedPatches.from_files([file.path], self.config, overlong=overlong, seed=seed)
        except FileNotFoundError:
            self._skipped[file.path] = "vanished"
        except OSError:
            self._skipped[file.path] = "unreadable"
        except PatchError:
            self._skipped[file.path] = "changed while read, or no longer a file"
        return None

    def _scan(self) -> list[_File]:
        found: dict[tuple[int, int], _File] = {}
        for root in self.roots:
            try:
                mode = os.stat(root).st_mode
            except OSError as error:
                raise DataError(f"{root!r}: {error.strerror}; give files and folders that exist") from error
            pairs = self._walk(root) if stat.S_ISDIR(mode) else [(root, os.path.basename(root))]
            for path, relative in pairs:
                status = self._usable(path)
                if status is not None:
                    file = _File(path, os.fsencode(Path(relative).as_posix()), status.st_size)
                    found.setdefault((status.st_dev, status.st_ino), file)
        return sorted(found.values(), key=lambda file: (file.relative, file.path))

    def _walk(self, root: str) -> Iterator[tuple[str, str]]:
        def note(error: OSError) -> None:
            self._skipped[str(error.filename)] = "unreadable folder"

        for folder, folders, names in os.walk(root, onerror=note):
            folders.sort()
            for name in sorted(names):
                path = os.path.join(folder, name)
                yield path, os.path.relpath(path, root)

    def _usable(self, path: str) -> os.stat_result | None:
        """The file's status; None, and a note, for what is not a file with something in it."""
        try:
            status = os.stat(path)
        except OSError:
            self._skipped[path] = "vanished"
            return None
        if not stat.S_ISREG(status.st_mode):
            self._skipped[path] = "not a regular file"
        elif status.st_size == 0:
            self._skipped[path] = "empty"
        else:
            return status
        return None

    def _belongs(self, file: _File, eval_share: float, split_by: str) -> bool:
        if self.split == "all":
            return True
        if split_by == "path":
            digest = hashlib.blake2b(file.relative).digest()
        else:
            try:
                with open(file.path, "rb") as stream:
                    digest = hashlib.file_digest(stream, "blake2b").digest()
            except OSError:
                self._skipped[file.path] = "unreadable"
                return False
        is_eval = int.from_bytes(digest[:8], "big") < eval_share * 2.0**64
        return is_eval == (self.split == "eval")

    def _check_amount(self, found: int, eval_share: float) -> None:
        skipped = dict(Counter(self._skipped.values()))
        if not found:
            raise DataError(f"{self.roots}: expected files to read, found none (skipped: {skipped or 'none'})")
        if not self._files:
            raise DataError(
                f"{self.roots}: none of the {found} files falls into the {self.split} split at "
                f"eval_share={eval_share}; give more files or another share"
            )
        S = self.config.patch_size
        patches = sum(min(2 - -file.size // S, self.config.patch_length) for file in self._files)
        if self.split != "eval" and patches < self.patches_per_batch:
            raise DataError(
                f"{self.roots}: the {self.split} split's {len(self._files)} files hold {patches} patches, fewer than "
                f"one batch of patches_per_batch={self.patches_per_batch}; lower it or give more files"
            )


def _fingerprint(files: Sequence[_File]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(b"%d %d " % (len(file.relative), file.size) + file.relative)
    return digest.hexdigest()


def _check_arguments(
    config: BGPTConfig, patches_per_batch: int, seed: int, split: str, eval_share: float, split_by: str
) -> None:
    if not isinstance(config, BGPTConfig):
        raise TypeError(f"FileSource: config: expected BGPTConfig, got {type(config).__name__}")
    for name, value in (("patches_per_batch", patches_per_batch), ("seed", seed)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"FileSource: {name}: expected an int, got {type(value).__name__}")
    if patches_per_batch < config.patch_length:
        raise ValueError(
            f"FileSource: patches_per_batch: expected at least the context, {config.patch_length}, "
            f"got {patches_per_batch}"
        )
    if seed < 0:
        raise ValueError(f"FileSource: seed: expected at least 0, got {seed}")
    if split not in ("train", "eval", "all"):
        raise ValueError(f'FileSource: split: expected "train", "eval" or "all", got {split!r}')
    if split_by not in ("path", "content"):
        raise ValueError(f'FileSource: split_by: expected "path" or "content", got {split_by!r}')
    if not 0.0 <= eval_share <= 1.0:
        raise ValueError(f"FileSource: eval_share: expected a share from 0 to 1, got {eval_share}")
