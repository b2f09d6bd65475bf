"""Endless, seeded, resumable streams of packed batches from files on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, Literal, Unpack

from bgpt_fast.checkpoint.task import ModelTask
from bgpt_fast.config import BGPTConfig
from bgpt_fast.data.epochs import EpochSource
from bgpt_fast.data.evaluation_windows import evaluation_windows
from bgpt_fast.data.file_index import FileEntry, Paths, content_is_in_split, is_in_split, read_entry
from bgpt_fast.data.packing import Batch, SourceOptions
from bgpt_fast.documents import Part, Truncation, count_patches, extension_of
from bgpt_fast.patches import PackedPatches

SplitBy = Literal["path", "content"]


class FileOptions(SourceOptions, total=False):
    """The keyword arguments shared by sources of single files; documented in `WholeFileSource`."""

    split_by: SplitBy


class WholeFileSource(EpochSource[Batch], Generic[Batch]):
    """A source whose documents are single files.

    A hash of its relative path (or content) assigns a file to a split: the same on every machine and rank, whatever
    other files exist. A file longer than the context is cut to a seeded window, a new one each epoch; `one_pass` cuts
    it to its head. Unreadable files are skipped, counted and named in `describe()`. A file that has grown since it was
    listed is cut to its size at that time, if it would otherwise have more patches.

    Args:
        paths, config, patches_per_batch, options: as `PackedSource`; use eval_share=1.0 with split="eval" for folders
            that contain only evaluation files.
        split_by: what assigns a file to a split. "path": its path relative to its root (its name if it is itself a
            root); "content": its bytes, so that copies of a file are never in both splits; reads every file once.

    Raises:
        DataError: a path does not exist, or no usable file in the split.
        TypeError, ValueError: an invalid argument.
    """

    _task = "generation"

    def __init__(
        self,
        paths: Paths,
        config: BGPTConfig,
        patches_per_batch: int,
        *,
        split_by: SplitBy = "path",
        **options: Unpack[SourceOptions],
    ) -> None:
        if split_by not in ("path", "content"):
            raise ValueError(f'{type(self).__name__}: split_by: expected "path" or "content", got {split_by!r}')
        self._split_by = split_by
        self._files: list[FileEntry] = []
        super().__init__(paths, config, patches_per_batch, **options)

    @property
    def paths(self) -> list[str]:
        """The split's files, sorted by relative path."""
        return [file.path for file in self._files]

    @property
    def task(self) -> ModelTask:
        """What a model learns from the files, stored with its weights."""
        return ModelTask.of(self._task, extensions=(extension_of(file.path) for file in self._files))

    def _choose(self, entries: list[FileEntry]) -> list[int]:
        self._files = [entry for entry in entries if self._is_in_split(entry)]
        return [file.num_patches(self.config) for file in self._files]

    def _is_in_split(self, entry: FileEntry) -> bool:
        if self._split_by == "path":
            return is_in_split(entry.relative, self.split, self.eval_share)
        return content_is_in_split(entry, self.split, self.eval_share, self._skipped)

    def _longest(self) -> tuple[int, int]:
        lengths = [count_patches(file.size, self.config.patch_size) for file in self._files]
        return max(lengths), sum(length > self.config.patch_length for length in lengths)

    def _entries(self) -> list[FileEntry]:
        return self._files

    def _read(self, item: int, truncation: Truncation) -> Sequence[Part] | None:
        part = read_entry(self._files[item], truncation, self._skipped)
        return None if part is None else (part,)


class FileSource(WholeFileSource[PackedPatches]):
    """Files packed into batches, in a new seeded order every epoch; arguments as `WholeFileSource`."""

    kind = "files"

    def evaluation_batches(self, max_patches: int) -> Iterator[PackedPatches]:
        """As `PackedSource.evaluation_batches`: windows of every file (`evaluation_windows`)."""
        sizes = [file.size for file in self._files]
        group: list[Sequence[Part]] = []
        patches = 0
        for index, window in evaluation_windows(sizes, self.config, max_patches, self.seed):
            if group and patches + window.patches > self.patches_per_batch:
                yield PackedPatches.from_parts(group, self.config.patch_size)
                group, patches = [], 0
            part = read_entry(self._files[index], window, self._skipped)
            if part is not None:
                group.append((part,))
                patches += window.patches
        if group:
            yield PackedPatches.from_parts(group, self.config.patch_size)
