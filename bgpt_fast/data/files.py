"""Files on disk as an endless, seeded, resumable stream of packed batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Literal

from bgpt_fast.config import BGPTConfig
from bgpt_fast.data.epochs import EpochSource
from bgpt_fast.data.file_index import FileEntry, Paths, Split, belongs, content_belongs, read_file
from bgpt_fast.data.packing import Batch
from bgpt_fast.patches import PackedPatches

SplitBy = Literal["path", "content"]


class WholeFileSource(EpochSource[Batch], Generic[Batch]):
    """Documents that are one file each; over-long ones give a seeded window in training and their head in a pass.

    Args:
        paths, config, patches_per_batch: as `EpochSource`.
        split_by: what decides on a file's split: its relative path or its content.
        fields: the other arguments of `EpochSource`.
    """

    def __init__(
        self, paths: Paths, config: BGPTConfig, patches_per_batch: int, *, split_by: SplitBy, **fields: Any
    ) -> None:
        if split_by not in ("path", "content"):
            raise ValueError(f'{type(self).__name__}: split_by: expected "path" or "content", got {split_by!r}')
        self._split_by = split_by
        self._files: list[FileEntry] = []
        super().__init__(paths, config, patches_per_batch, **fields)

    @property
    def paths(self) -> list[str]:
        """The split's files, sorted by relative path."""
        return [file.path for file in self._files]

    def _choose(self, found: list[FileEntry]) -> list[int]:
        self._files = [file for file in found if self._is_ours(file)]
        return [file.num_patches(self.config) for file in self._files]

    def _is_ours(self, file: FileEntry) -> bool:
        if self._split_by == "path":
            return belongs(file.relative, self.split, self.eval_share)
        return content_belongs(file, self.split, self.eval_share, self._skips)

    def _used(self) -> list[FileEntry]:
        return self._files

    def _read(self, epoch: int, item: int, truncation: Literal["head", "window"]) -> PackedPatches | None:
        seed = self._window_seed(epoch, item) if truncation == "window" else 0
        return read_file(self._files[item], self.config, self._skips, truncation=truncation, seed=seed)


class FileSource(WholeFileSource[PackedPatches]):
    """Whole files packed into batches, in a new seeded order every epoch.

    A file belongs to the evaluation split if a hash of its relative path (or content) says so: the same files on every
    machine and rank, whatever else lies beside them. Over-long files give a seeded window each epoch in training, and
    their head in `one_pass`. What cannot be read is skipped, counted and named in `describe()`. A file that has grown
    since it was found is taken as long as it was then, in whole patches.

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
        rank, world_size: which of how many processes this is; see `PackedSource`.
        look_ahead: documents among which the best fit for a batch's last room is looked for.

    Raises:
        DataError: no such path, no usable file in the split, or (but for "eval") fewer patches than one batch.
        TypeError, ValueError: a wrong argument.
    """

    kind = "files"

    def __init__(
        self,
        paths: Paths,
        config: BGPTConfig,
        patches_per_batch: int,
        *,
        seed: int = 0,
        split: Split = "train",
        eval_share: float = 0.02,
        split_by: SplitBy = "path",
        rank: int = 0,
        world_size: int = 1,
        look_ahead: int = 64,
    ) -> None:
        super().__init__(
            paths,
            config,
            patches_per_batch,
            seed=seed,
            split=split,
            eval_share=eval_share,
            split_by=split_by,
            rank=rank,
            world_size=world_size,
            look_ahead=look_ahead,
        )

    def _assemble(self, documents: Sequence[tuple[int, PackedPatches]]) -> PackedPatches:
        return PackedPatches.concatenate([document for _, document in documents])
