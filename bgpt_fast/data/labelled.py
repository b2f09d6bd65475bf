"""Labelled files for classification: `LABEL_anything.ext` is of the class `LABEL.ext`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from bgpt_fast.config import BGPTConfig
from bgpt_fast.data.file_index import FileEntry, Paths, Split
from bgpt_fast.data.files import SplitBy, WholeFileSource
from bgpt_fast.data.source import DataError
from bgpt_fast.documents import extension_of
from bgpt_fast.patches import PackedPatches


@dataclass(frozen=True, eq=False)
class LabelledBatch:
    """Documents and their classes.

    Args:
        batch: B documents.
        labels: int64 [B], device of `batch`: the index of each document's class.
    """

    batch: PackedPatches
    labels: Tensor

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> LabelledBatch:
        """The same on `device`; with `non_blocking`, pinned tensors are copied while the CPU goes on."""
        return LabelledBatch(
            self.batch.to(device, non_blocking=non_blocking), self.labels.to(device, non_blocking=non_blocking)
        )

    def pin_memory(self) -> LabelledBatch:
        """The same in page-locked memory (needs CUDA)."""
        return LabelledBatch(self.batch.pin_memory(), self.labels.pin_memory())


def label_of(path: str | bytes | os.PathLike[str]) -> str | None:
    """The class of a file: "LABEL.ext" of "…/LABEL_anything.ext"; None of a name without a label before a "_"."""
    name = os.path.basename(os.fsdecode(path))
    label, separator, _ = name.partition("_")
    return f"{label}.{extension_of(name)}" if label and separator else None


class LabelledSource(WholeFileSource[LabelledBatch]):
    """Labelled files packed into batches, in a new seeded order every epoch.

    Splits, over-long and unreadable files are as in `FileSource`. One label map serves training and evaluation: it is
    made of all files found, whichever their split, or given, as a checkpoint holds it.

    Args:
        paths: files and folders; folders are walked, links to folders inside them are not followed.
        config: patch size and context.
        patches_per_batch: most patches of a batch; at least the context.
        labels: class name → index, 0…n − 1 each once; None numbers the sorted classes of all files found.
        unknown: whether a file without a label, or with one that `labels` lacks, is counted and left out ("skip") or
            raises ("error").
        seed: of the order and of the windows.
        split: "train", "eval", or "all" for both together.
        eval_share: share of the files that is held out.
        split_by: "path" or "content"; as `FileSource`.
        rank, world_size: which of how many processes this is; see `PackedSource`.
        look_ahead: documents among which the best fit for a batch's last room is looked for.

    Raises:
        DataError: no such path, no labelled file in the split, an unknown label with unknown="error", or (but for
            "eval") fewer patches than one batch.
        TypeError, ValueError: a wrong argument.
    """

    kind = "labelled"

    def __init__(
        self,
        paths: Paths,
        config: BGPTConfig,
        patches_per_batch: int,
        *,
        labels: Mapping[str, int] | None = None,
        unknown: Literal["skip", "error"] = "skip",
        seed: int = 0,
        split: Split = "train",
        eval_share: float = 0.02,
        split_by: SplitBy = "path",
        rank: int = 0,
        world_size: int = 1,
        look_ahead: int = 64,
    ) -> None:
        if unknown not in ("skip", "error"):
            raise ValueError(f'{type(self).__name__}: unknown: expected "skip" or "error", got {unknown!r}')
        self._given = None if labels is None else _checked_labels(labels)
        self._unknown = unknown
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

    def describe(self) -> dict[str, Any]:
        """As `FileSource.describe`, with the label map and how many files each class has in the split."""
        counts = torch.bincount(torch.tensor(self._classes), minlength=len(self.labels)).tolist()
        return {
            **super().describe(),
            "labels": self.labels,
            "documents_by_class": dict(zip(self.labels, counts, strict=True)),
        }

    def _choose(self, found: list[FileEntry]) -> list[int]:
        named = [(file, label_of(file.relative)) for file in found]
        given = self._given
        self.labels = given or {
            label: index for index, label in enumerate(sorted({label for _, label in named if label is not None}))
        }
        labelled = []
        for file, label in named:
            if label is None or label not in self.labels:
                self._leave_out(file, label)
            else:
                labelled.append(file)
        lengths = super()._choose(labelled)
        self._classes = [self.labels[str(label_of(file.relative))] for file in self._files]
        return lengths

    def _leave_out(self, file: FileEntry, label: str | None) -> None:
        if self._unknown == "error":
            what = "a name like LABEL_anything.ext" if label is None else f"one of the classes {list(self.labels)}"
            got = "no label" if label is None else repr(label)
            raise DataError(
                f'{file.path!r}: expected {what}, got {got}; rename the file, take it away, or give unknown="skip"'
            )
        self._skips.note(file.path, "no label" if label is None else "unknown label")

    def _assemble(self, documents: Sequence[tuple[int, PackedPatches]]) -> LabelledBatch:
        labels = torch.tensor([self._classes[item] for item, _ in documents], dtype=torch.int64)
        return LabelledBatch(PackedPatches.concatenate([document for _, document in documents]), labels)


def _checked_labels(labels: Mapping[str, int]) -> dict[str, int]:
    if not isinstance(labels, Mapping):
        raise TypeError(f"LabelledSource: labels: expected a dict, got {type(labels).__name__}")
    ordered = dict(sorted(labels.items(), key=lambda entry: entry[1]))
    if not ordered or list(ordered.values()) != list(range(len(ordered))):
        raise ValueError(
            f"LabelledSource: labels: expected class names with the indices 0…n − 1, each once, got {labels!r:.200}"
        )
    return ordered
