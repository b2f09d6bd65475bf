"""Files on disk as an endless, seeded, resumable stream of packed batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Literal, Unpack

from bgpt_fast.config import BGPTConfig
from bgpt_fast.data.epochs import EpochSource
from bgpt_fast.data.file_index import FileEntry, Paths, content_is_in_split, is_in_split, read_entry
from bgpt_fast.data.packing import Batch, SourceOptions
from bgpt_fast.documents import Part, Truncation
from bgpt_fast.patches import PackedPatches

SplitBy = Literal["path", "content"]


class FileOptions(SourceOptions, total=False):
    """The keyword arguments that sources of single files share; `WholeFileSource` describes them."""

    split_by: SplitBy


class WholeFileSource(EpochSource[Batch], Generic[Batch]):
    """Documents of one file each.

    A file is in the evaluation split if a hash of its relative path (or content) says so: the same files on every
    machine and rank, whatever other files there are. Of files over the context a batch has a seeded window, another
    each epoch, and `one_pass` their head. What cannot be read is skipped, counted and named in `describe()`. A file
    that has grown since it was listed is cut to the size that it had then, if it would have more patches.

    Args:
        paths, config, patches_per_batch, options: as `PackedSource`; eval_share=1.0 with split="eval" for folders of
            evaluation files alone.
        split_by: "path": the path below its root (of a root that is a file, its name) decides on a file's split;
            "content": its bytes, so that copies of a file are never in both splits; reads every file once.

    Raises:
        DataError: no such path, no usable file in the split, or (but for "eval") fewer patches than one batch.
        TypeError, ValueError: a wrong argument.
    """

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

    def _choose(self, entries: list[FileEntry]) -> list[int]:
        self._files = [entry for entry in entries if self._is_in_split(entry)]
        return [file.num_patches(self.config) for file in self._files]

    def _is_in_split(self, entry: FileEntry) -> bool:
        if self._split_by == "path":
            return is_in_split(entry.relative, self.split, self.eval_share)
        return content_is_in_split(entry, self.split, self.eval_share, self._skipped)

    def _entries(self) -> list[FileEntry]:
        return self._files

    def _read(self, item: int, truncation: Truncation) -> Sequence[Part] | None:
        part = read_entry(self._files[item], truncation, self._skipped)
        return None if part is None else (part,)


class FileSource(WholeFileSource[PackedPatches]):
    """Whole files packed into batches, in a new seeded order every epoch; arguments as `WholeFileSource`."""

    kind = "files"
