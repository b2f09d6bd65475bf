"""A model on files: bits and accuracy by file, extension, patch and byte, and which decoder is at fault."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bgpt_fast.checks import check_int
from bgpt_fast.config import BGPTConfig
from bgpt_fast.data.file_index import FileEntry, Paths, SkipReport, as_roots, find_files, read_document
from bgpt_fast.data.source import DataError
from bgpt_fast.documents import extension_of
from bgpt_fast.metrics import ByteScores, Interval, bootstrap_interval
from bgpt_fast.model import BGPT
from bgpt_fast.patches import PackedPatches
from bgpt_fast.tasks.baselines import Compressors
from bgpt_fast.tasks.batch_scores import DecoderErrors, ScoreSums

Progress = Callable[[int, int, int], None]


@dataclass(frozen=True)
class FileScore:
    """One file.

    Args:
        path: where it is.
        extension: what the model was told it is.
        scores: of all its target patches, the end-of-file patch included.
        cut_bytes: bytes behind the context, which the model did not see.
        compressed: bytes that each baseline makes of what the model saw.
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
    """What `evaluate_files` found.

    Args:
        files: the files, in the order of their relative paths.
        total: of all of them.
        by_extension: of each extension.
        by_patch: of the n-th data patch of all files, n from 1; end-of-file patches are not among them.
        by_byte: of the s-th byte of data patches, s from 1 to S.
        end_of_file: of the end-of-file patches: whether the model knows where a file ends.
        decoders: see `DecoderErrors`.
        intervals: of "bits_per_byte", "bits_per_position" and "accuracy" of the total, by bootstrap over files.
        baselines: bits a byte of each compressor: "gzip", "xz" and, where zstandard is installed, "zstd" on each file
            alone, "..._solid" on all in one stream.
        documents_cut: files that are longer than the context, be it by their end-of-file patch alone;
            `FileScore.cut_bytes` says by how much.
        skipped: how many were left out for each reason; `warnings` names the first.
        seconds: of the model alone.
        patches_per_second: in that time.
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
        """JSON-ready; `files` says whether with a row for each file."""
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
            "intervals": {name: None if found is None else list(found) for name, found in self.intervals.items()},
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


def evaluate_files(
    model: BGPT,
    paths: Paths,
    *,
    patches_per_batch: int = 8192,
    baselines: bool = True,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    progress: Progress | None = None,
) -> FileReport:
    """Scores a model on files, teacher-forced, without dropout.

    Files are read, packed and scored batch by batch; in memory at once are one batch, the byte decoder's logits of
    2,048 patches, and a row of figures for each file. An over-long file is cut to its head, as in training's
    evaluation, and counted; what cannot be read is skipped, counted and named. Figures do not depend on how files fall
    into batches but for rounding.

    Args:
        model: on any device.
        paths: files and folders, as `FileSource`; empty files are skipped.
        patches_per_batch: most patches of a batch; raised to the context where that is more.
        baselines: compress the same bytes too (`bgpt_fast.tasks.baselines.Compressors`).
        resamples, confidence, seed: of the bootstrap over files (`bootstrap_interval`).
        progress: called with (files done, files in all, bytes scored so far).

    Raises:
        DataError: no such path, or no file that could be scored.
        TypeError, ValueError: a wrong argument.
    """
    if not isinstance(model, BGPT):
        raise TypeError(f"evaluate_files: model: expected a BGPT, got {type(model).__name__}")
    check_int("evaluate_files: patches_per_batch", patches_per_batch, 1)
    skips = SkipReport()
    found = find_files(as_roots(paths), skips)
    report = evaluate_documents(
        model,
        (_document(file, model.config, skips) for file in found),
        len(found),
        skips,
        patches_per_batch=patches_per_batch,
        baselines=baselines,
        resamples=resamples,
        confidence=confidence,
        seed=seed,
        progress=progress,
    )
    if report is None:
        raise DataError(
            f"evaluate_files: expected at least one file that can be read, got none; skipped: {skips.by_reason}"
        )
    return report


class Document(NamedTuple):
    """A file to score.

    Args:
        path: where it is.
        packed: its document, and what the model is told before it.
        begin: where its own extension patch lies in `packed`; the patches behind it are scored.
    """

    path: str
    packed: PackedPatches
    begin: int = 0

    @property
    def content(self) -> bytes:
        """What the model sees of the file itself."""
        own = self.packed.patches[self.begin :]
        ((_, content),) = PackedPatches(own, torch.tensor([0, len(own)], dtype=torch.int32)).to_bytes()
        return content


def evaluate_documents(
    model: BGPT,
    documents: Iterable[Document | None],
    count: int,
    skips: SkipReport,
    *,
    patches_per_batch: int,
    baselines: bool,
    resamples: int,
    confidence: float,
    seed: int,
    progress: Progress | None,
) -> FileReport | None:
    """What `evaluate_files` does with files, with documents that are already packed; None if there is none.

    Args:
        documents: the files in their order, None for one that was left out.
        count: how many they are, for `progress`.
        skips: what was left out, filled as `documents` is read.
    """
    config = model.config

    def interval(above: NDArray[np.float64], below: NDArray[np.float64]) -> Interval | None:
        return bootstrap_interval(above, below, resamples=resamples, confidence=confidence, seed=seed)

    interval(np.ones(2), np.ones(2))  # names wrong options before a model works for hours
    sums = ScoreSums(config)
    compressors = Compressors() if baselines else None
    scored: list[FileScore] = []
    seconds, patches, cut = 0.0, 0, 0
    for group, passed in _in_batches(documents, max(patches_per_batch, config.patch_length)):
        batch = PackedPatches.concatenate([document.packed for document in group])
        start = time.monotonic()
        rows = sums.add(model, batch, np.array([document.begin for document in group]))
        seconds += time.monotonic() - start
        patches += batch.num_patches
        cut += batch.truncated
        for document, row in zip(group, rows, strict=True):
            compressed = {} if compressors is None else compressors.add(document.content)
            scores, unseen = ByteScores.of(row), document.packed.truncated_bytes
            scored.append(FileScore(document.path, extension_of(document.path), scores, unseen, compressed))
        if progress is not None:
            progress(passed, count, int(sums.total[2]))
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


def _document(file: FileEntry, config: BGPTConfig, skips: SkipReport) -> Document | None:
    packed = read_document(file, config, skips)
    return None if packed is None else Document(file.path, packed)


def _in_batches(documents: Iterable[Document | None], room: int) -> Iterator[tuple[list[Document], int]]:
    """Documents, at most `room` patches at a time; and how many are passed, with those that were left out."""
    group: list[Document] = []
    filled = passed = 0
    for document in documents:
        if document is not None:
            if group and filled + document.packed.num_patches > room:
                yield group, passed
                group, filled = [], 0
            group.append(document)
            filled += document.packed.num_patches
        passed += 1
    if group:
        yield group, passed


def _by_extension(files: list[FileScore], table: NDArray[np.float64]) -> dict[str, ByteScores]:
    names = np.array([os.fsencode(file.extension) for file in files])
    return {os.fsdecode(name): ByteScores.of(table[names == name].sum(0)) for name in sorted(set(names.tolist()))}
