"""Evaluation on files: bits and accuracy by file, extension, patch and byte position, and errors by decoder."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray

from bgpt_fast.checks import check_int
from bgpt_fast.config import BGPTConfig
from bgpt_fast.data.file_index import FileEntry, Paths, SkipReport, as_roots, find_files, read_document, read_entry
from bgpt_fast.data.source import DataError
from bgpt_fast.documents import FixedWindow, count_patches, extension_of
from bgpt_fast.memory import named_out_of_memory
from bgpt_fast.metrics import ByteScores, Interval, bootstrap_interval
from bgpt_fast.model import BGPT
from bgpt_fast.patches import PackedPatches
from bgpt_fast.tasks.baselines import Compressors
from bgpt_fast.tasks.batch_scores import DecoderErrors, ScoreSums

Progress = Callable[[int, int, int], None]


@dataclass(frozen=True)
class FileScore:
    """The scores of one file.

    Args:
        path: path of the file.
        extension: the one in the document's extension patch.
        scores: scores of all target patches, including the end-of-file patch.
        cut_bytes: number of bytes beyond the context, which are truncated.
        compressed: compressed size of the bytes within the context, by baseline.
    """

    path: str
    extension: str
    scores: ByteScores
    cut_bytes: int
    compressed: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        size = 8 / max(self.scores.bytes, 1)
        baselines = {f"{name}_bits_per_byte": count * size for name, count in self.compressed.items()}
        return {"path": self.path, **self.scores.figures(), "cut_bytes": self.cut_bytes, **baselines}


@dataclass(frozen=True)
class FileReport:
    """The result of `evaluate_files`.

    Args:
        files: the files, by relative path.
        total: scores of all files.
        by_extension: scores of each extension.
        by_patch: scores of the n-th data patch of all files, n from 1; without end-of-file patches.
        by_byte: scores of the s-th byte of all data patches, s from 1 to S.
        end_of_file: scores of the end-of-file patches.
        decoders: see `DecoderErrors`.
        intervals: of the total's "bits_per_byte", "bits_per_position" and "accuracy", by bootstrap over files.
        baselines: bits per byte of each compressor: "gzip", "xz" and, if zstandard is installed, "zstd" on separate
            files, "..._solid" on all files in one stream.
        documents_cut: number of files longer than the context, counting their end-of-file patch; see
            `FileScore.cut_bytes`.
        skipped: number of skipped files by reason; `warnings` names the first ones.
        seconds: time in the model.
        patches_per_second: patches scored per second of that time.
    """

    files: tuple[FileScore, ...]
    total: ByteScores
    by_extension: dict[str, ByteScores]
    by_patch: tuple[ByteScores, ...]
    by_byte: tuple[ByteScores, ...]
    end_of_file: ByteScores
    decoders: DecoderErrors
    intervals: dict[str, Interval | None]
    baselines: dict[str, float]
    documents_cut: int
    skipped: dict[str, int]
    warnings: list[str]
    seconds: float
    patches_per_second: float

    def to_dict(self, *, files: bool = True) -> dict[str, Any]:
        """All figures, JSON-ready; with a row for each file unless `files` is False."""
        cut_bytes = sum(file.cut_bytes for file in self.files)
        rows = {"by_file": [file.to_dict() for file in self.files]} if files else {}
        return {
            "files": len(self.files),
            "cut_to_fit": self.documents_cut,
            "cut_bytes": cut_bytes,
            "skipped": self.skipped,
            "warnings": self.warnings,
            "loss": self.total.nats / self.total.positions,
            **self.total.figures(),
            "intervals": {name: None if one is None else list(one) for name, one in self.intervals.items()},
            "baselines_bits_per_byte": self.baselines,
            "decoders": self.decoders.to_dict(),
            "end_of_file": self.end_of_file.figures(),
            "by_extension": {name: scores.figures() for name, scores in self.by_extension.items()},
            "by_byte_position": [scores.figures() for scores in self.by_byte],
            "by_patch_position": [scores.figures() for scores in self.by_patch],
            "seconds": self.seconds,
            "patches_per_second": self.patches_per_second,
            **rows,
        }


class EvaluationOptions(TypedDict, total=False):
    """Keyword arguments of `evaluate_files` and `evaluate_pairs`.

    Args:
        patches_per_batch: maximum number of patches in a batch, 8,192 by default; at least the context.
        baselines: also compress the scored files (`bgpt_fast.tasks.baselines.Compressors`); the default.
        stride: 0 truncates a file longer than the context to its head. Otherwise (`evaluate_files` alone) such a file
            is scored whole, in windows of the context's length that start this many patches after one another; each
            window scores the patches that no earlier one did, so that all but the first have at least
            context − 1 − stride patches before them. At most the context − 1.
        resamples, confidence, seed: of the bootstrap over files (`bootstrap_interval`); by default 1,000, 0.95 and 0.
        progress: called with (files done, all files, bytes scored so far).
    """

    patches_per_batch: int
    baselines: bool
    stride: int
    resamples: int
    confidence: float
    seed: int
    progress: Progress | None


def evaluate_files(model: BGPT, paths: Paths, **options: Unpack[EvaluationOptions]) -> FileReport:
    """Scores a model on files, teacher-forced, without dropout.

    Files are read, packed and scored batch by batch; in memory are one batch, the byte decoder's logits of 2,048
    patches, and a row of figures for each file. A file longer than the context is truncated to its head and counted,
    unless there is a `stride`; unreadable files are skipped, counted and reported. Batching changes the
    figures only by rounding errors.

    Args:
        model: on any device.
        paths: files and folders, as in `FileSource`; empty files are skipped.
        options: see `EvaluationOptions`.

    Raises:
        DataError: no such path, or no file that can be scored.
        OutOfMemoryError: a batch needs more memory than there is.
        TypeError, ValueError: a wrong argument.
    """
    check_arguments("evaluate_files", model, options)
    skips = SkipReport()
    entries = find_files(as_roots(paths), skips)
    stride = options.get("stride", 0)
    check_int("evaluate_files: stride", stride, 0, model.config.patch_length - 1)
    documents = (document for file in entries for document in _documents(file, model.config, stride, skips))
    report = evaluate_documents(model, documents, len(entries), skips, **options)
    if report is None:
        raise DataError(
            f"evaluate_files: expected at least one file that can be read, got none; skipped: {skips.by_reason}"
        )
    return report


def check_arguments(function: str, model: object, options: EvaluationOptions) -> None:
    """Raises TypeError or ValueError for a wrong model or batch size."""
    if not isinstance(model, BGPT):
        raise TypeError(f"{function}: model: expected a BGPT, got {type(model).__name__}")
    model.config.check_bytes(f"{function}: model")
    check_int(f"{function}: patches_per_batch", options.get("patches_per_batch", 1), 1)


class Document(NamedTuple):
    """A file to score.

    Args:
        path: path of the file.
        packed: its document, preceded by its context if any, such as a pair's source.
        begin: index of its extension patch in `packed`, or of the last patch that an earlier window has scored; the
            patches after it are scored.
        offset: number of patches of the file up to `begin`; 0 unless earlier windows of it are other documents.
        is_window: whether it is one of the windows of a file that is scored whole.
    """

    path: str
    packed: PackedPatches
    begin: int = 0
    offset: int = 0
    is_window: bool = False

    @property
    def content(self) -> bytes:
        """The scored bytes of the file."""
        own = self.packed.patches[self.begin :]
        ((_, content),) = PackedPatches(
            own, torch.tensor([0, len(own)], dtype=torch.int32, device=own.device)
        ).to_bytes()
        return content


def evaluate_documents(
    model: BGPT,
    documents: Iterable[Document | None],
    count: int,
    skips: SkipReport,
    *,
    patches_per_batch: int = 8192,
    baselines: bool = True,
    stride: int = 0,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    progress: Progress | None = None,
) -> FileReport | None:
    """As `evaluate_files`, for packed documents; returns None if there are none.

    Args:
        documents: the files in order, windows of one file one after the other; None for a skipped one.
        count: their number, for `progress`.
        skips: report of the skipped files, updated by the iterator `documents`.
    """
    config = model.config

    def interval(above: NDArray[np.float64], below: NDArray[np.float64]) -> Interval | None:
        return bootstrap_interval(above, below, resamples=resamples, confidence=confidence, seed=seed)

    interval(np.ones(2), np.ones(2))  # checks the options before the model runs for hours
    sums = ScoreSums(config)
    with named_out_of_memory(lambda: "the baselines' compressors", advice="switch baselines off"):
        compressors = Compressors() if baselines else None
    files = _FileScores(compressors)
    seconds, patches, cut = 0.0, 0, 0
    for group, done in _in_batches(documents, max(patches_per_batch, config.patch_length)):
        batch = PackedPatches.concatenate([document.packed for document in group])
        start = time.monotonic()
        begins = np.array([document.begin for document in group])
        rows = sums.add(model, batch, begins, np.array([document.offset for document in group]))
        seconds += time.monotonic() - start
        patches += batch.num_patches
        cut += sum(document.packed.truncated for document in group if not document.is_window)
        for document, row in zip(group, rows, strict=True):
            files.add(document, row)
        if progress is not None:
            progress(done, count, int(sums.total[2]))
    scored = files.finish()
    if not scored:
        return None
    table = np.stack([file.scores.row for file in scored])
    nats, positions, num_bytes, _, right_bytes = table.T
    return FileReport(
        files=tuple(scored),
        total=ByteScores.of(sums.total),
        by_extension=_by_extension(scored, table),
        by_patch=tuple(ByteScores.of(row) for row in sums.by_patch[1 : sums.last_patch + 1]),
        by_byte=tuple(ByteScores.of(row) for row in sums.by_byte),
        end_of_file=ByteScores.of(sums.end_of_file),
        decoders=sums.decoders(),
        intervals={
            "bits_per_byte": interval(nats / math.log(2), num_bytes),
            "bits_per_position": interval(nats / math.log(2), positions),
            "accuracy": interval(right_bytes, num_bytes),
        },
        baselines={} if compressors is None else compressors.bits_per_byte(),
        documents_cut=cut,
        skipped=skips.by_reason,
        warnings=skips.examples,
        seconds=seconds,
        patches_per_second=patches / seconds if seconds else 0.0,
    )


def _documents(file: FileEntry, config: BGPTConfig, stride: int, skips: SkipReport) -> Iterator[Document | None]:
    """Yields a file's document, or its windows; None if it cannot be read."""
    count = count_patches(file.size, config.patch_size) - 1
    length = config.patch_length - 1
    if not stride or count <= length:
        packed = read_document(file, config, skips)
        yield None if packed is None else Document(file.path, packed)
        return
    scored = 0
    for first in itertools.count(0, stride):
        part = read_entry(file, FixedWindow(config, first, config.patch_length), skips)
        if part is None:
            if not first:
                yield None
            return
        begin = scored - first
        packed = PackedPatches.from_parts([[part]], config.patch_size, first_target=begin + 1)
        yield Document(file.path, packed, begin, scored, is_window=True)
        scored = first + length
        if scored >= count:
            return


class _FileScores:
    """Collects the scores of files, whose windows arrive one after the other, and compresses each whole file."""

    def __init__(self, compressors: Compressors | None) -> None:
        self._compressors = compressors
        self._scored: list[FileScore] = []
        self._content = b""

    def add(self, document: Document, row: NDArray[np.float64]) -> None:
        """Adds the scores of a file, or of a window of it."""
        if document.offset:
            last = self._scored.pop()
            row, self._content = row + last.scores.row, self._content + document.content
        else:
            self.finish()
            self._content = document.content
        cut_bytes = 0 if document.is_window else document.packed.truncated_bytes
        self._scored.append(FileScore(document.path, extension_of(document.path), ByteScores.of(row), cut_bytes, {}))

    def finish(self) -> list[FileScore]:
        """Compresses the last file, and returns the scores of all files."""
        if self._compressors is not None and self._scored:
            with named_out_of_memory(lambda: "the baselines' compressors", advice="switch baselines off"):
                compressed = self._compressors.add(self._content)
            self._scored[-1] = replace(self._scored[-1], compressed=compressed)
        return self._scored


def _in_batches(documents: Iterable[Document | None], max_patches: int) -> Iterator[tuple[list[Document], int]]:
    """Yields groups of documents of at most `max_patches` patches, and the number of documents done or skipped."""
    group: list[Document] = []
    patches = done = 0
    for document in documents:
        if document is not None:
            if group and patches + document.packed.num_patches > max_patches:
                yield group, done
                group, patches = [], 0
            group.append(document)
            patches += document.packed.num_patches
        done += document is None or not document.offset
    if group:
        yield group, done


def _by_extension(files: list[FileScore], table: NDArray[np.float64]) -> dict[str, ByteScores]:
    names = np.array([os.fsencode(file.extension) for file in files])
    return {os.fsdecode(name): ByteScores.of(table[names == name].sum(0)) for name in sorted(set(names.tolist()))}
