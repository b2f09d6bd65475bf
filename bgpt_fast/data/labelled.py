"""Labelled files for classification: the class of `LABEL_anything.ext` is `LABEL.ext`."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from bgpt_fast.config import BGPTConfig
from bgpt_fast.data.file_index import FileEntry, Paths
from bgpt_fast.data.files import FileOptions, WholeFileSource
from bgpt_fast.data.source import DataError
from bgpt_fast.documents import extension_of
from bgpt_fast.patches import PackedPatches


@dataclass(frozen=True, eq=False)
class LabelledBatch:
    """Documents and their classes.

    Args:
        batch: B documents.
        labels: int64 [B], on the device of `batch`: the class index of each document.
    """

    batch: PackedPatches
    labels: Tensor

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> LabelledBatch:
        """The same batch on `device`; with `non_blocking`, pinned tensors are copied asynchronously."""
        return LabelledBatch(
            self.batch.to(device, non_blocking=non_blocking), self.labels.to(device, non_blocking=non_blocking)
        )

    def pin_memory(self) -> LabelledBatch:
        """The same batch in page-locked memory (needs CUDA); a batch on a GPU is returned as it is."""
        labels = self.labels.pin_memory() if self.labels.device.type == "cpu" else self.labels
        return LabelledBatch(self.batch.pin_memory(), labels)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """As `Tensor.record_stream`."""
        self.batch.record_stream(stream)
        self.labels.record_stream(stream)


def label_of(path: str | bytes | os.PathLike[str]) -> str | None:
    """The class of a file: "LABEL.ext" for "…/LABEL_anything.ext"; None for a name without a label before a "_".

    In Unicode's composed form (NFC), so that a name from a system that separates marks from letters is the same class.
    """
    name = unicodedata.normalize("NFC", os.path.basename(os.fsdecode(path)))
    label, separator, _ = name.partition("_")
    return f"{label}.{extension_of(name)}" if label and separator else None


class LabelledSource(WholeFileSource[LabelledBatch]):
    """Labelled files packed into batches, in a new seeded order every epoch.

    Training and evaluation share one label map: by default the one built from the files of both splits; or `labels`,
    such as a checkpoint's.

    Args:
        paths, config, patches_per_batch, options: as `WholeFileSource`.
        labels: class name → index; each of 0…n − 1 exactly once; names are composed (NFC), as by `label_of`. None
            numbers the sorted classes of all files.
        unknown: whether a file without a label, or with one missing from `labels`, is skipped and counted ("skip") or
            raises ("error").

    Raises:
        DataError: a path does not exist, no labelled file in the split, or an unknown label with unknown="error".
        TypeError, ValueError: an invalid argument.
    """

    kind = "labelled"
    _task = "classification"

    def __init__(
        self,
        paths: Paths,
        config: BGPTConfig,
        patches_per_batch: int,
        *,
        labels: Mapping[str, int] | None = None,
        unknown: Literal["skip", "error"] = "skip",
        **options: Unpack[FileOptions],
    ) -> None:
        if unknown not in ("skip", "error"):
            raise ValueError(f'{type(self).__name__}: unknown: expected "skip" or "error", got {unknown!r}')
        self.labels = {} if labels is None else _checked_labels(labels)
        self._unknown = unknown
        super().__init__(paths, config, patches_per_batch, **options)

    def describe(self) -> dict[str, Any]:
        """As `FileSource.describe`, with the label map and the number of files per class in the split."""
        counts = torch.bincount(torch.tensor(self._classes, device="cpu"), minlength=len(self.labels)).tolist()
        return {
            **super().describe(),
            "labels": self.labels,
            "documents_by_class": dict(zip(self.labels, counts, strict=True)),
        }

    def _choose(self, entries: list[FileEntry]) -> list[int]:
        labels = [label_of(entry.relative) for entry in entries]
        if not self.labels:
            self.labels = {name: index for index, name in enumerate(sorted({name for name in labels if name}))}
        labelled = []
        for entry, label in zip(entries, labels, strict=True):
            if label is None or label not in self.labels:
                self._skip(entry, label)
            else:
                labelled.append(entry)
        lengths = super()._choose(labelled)
        self._classes = [self.labels[str(label_of(file.relative))] for file in self._files]
        return lengths

    def _nothing_chosen(self, files: int) -> DataError:
        reasons = self._skipped.by_reason
        if reasons.get("no label", 0) + reasons.get("unknown label", 0) < files:
            return super()._nothing_chosen(files)
        classes = f" of one of the classes {list(self.labels)}" if self.labels else ""
        return DataError(
            f"{self.roots}: expected files named LABEL_anything.ext{classes}, got none among {files} files (skipped: "
            f"{reasons}); rename them, or train without --task classification"
        )

    def _skip(self, entry: FileEntry, label: str | None) -> None:
        if self._unknown == "error":
            what = "a name like LABEL_anything.ext" if label is None else f"one of the classes {list(self.labels)}"
            got = "no label" if label is None else repr(label)
            raise DataError(
                f'{entry.path!r}: expected {what}, got {got}; rename the file, remove it, or give unknown="skip"'
            )
        self._skipped.add(entry.path, "no label" if label is None else "unknown label")

    def _batch(self, items: Sequence[int], packed: PackedPatches) -> LabelledBatch:
        return LabelledBatch(
            packed, torch.tensor([self._classes[item] for item in items], dtype=torch.int64, device="cpu")
        )


def _checked_labels(labels: Mapping[str, int]) -> dict[str, int]:
    if not isinstance(labels, Mapping):
        raise TypeError(f"LabelledSource: labels: expected a dict, got {type(labels).__name__}")
    composed = {unicodedata.normalize("NFC", str(name)): index for name, index in labels.items()}
    ordered = dict(sorted(composed.items(), key=lambda entry: entry[1]))
    if not ordered or list(ordered.values()) != list(range(len(ordered))):
        raise ValueError(
            f"LabelledSource: labels: expected class names with the indices 0…n − 1, each once, got {labels!r:.200}"
        )
    return ordered
