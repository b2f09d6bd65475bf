"""A model on files: bits and accuracy by file, extension, patch and byte, and which decoder is at fault.

Shape letters: B documents, T target patches, S bytes a patch, L patches of context.
"""

from __future__ import annotations

import gzip
import lzma
import math
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bgpt_fast.byte_decoder import CHUNK
from bgpt_fast.config import EOP, BGPTConfig
from bgpt_fast.data.found import FoundFile, Paths, Skips, as_roots, find_files, read_file
from bgpt_fast.data.source import DataError, check_int
from bgpt_fast.documents import extension_of
from bgpt_fast.metrics import ByteScores, Interval, bootstrap_interval
from bgpt_fast.model import BGPT, check_batch, evaluation_mode
from bgpt_fast.patches import PackedPatches

Progress = Callable[[int, int, int], None]
_COUNTS = len(ByteScores.COUNTS)


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
class DecoderErrors:
    """Which decoder is at fault, on data patches (those of the end of file left out).

    A patch's first byte is predicted from the patch-level decoder's feature alone; every later byte from the same
    feature and the patch's bytes before it, which the byte-level decoder reads. So each data patch, written greedily
    after the true patches before it, is one of three: right to the last position; wrong from the first byte on, where
    nothing but the feature could have told ("patch level"); or first wrong behind a right first byte, where the
    byte-level decoder had begun rightly and lost it ("byte level"). Up to a patch's first error, greedy writing and
    teacher forcing see the same bytes, so that this partition is exact. The bits are split the same way.

    High patch-level errors beside low byte-level ones mean that contents do not reach from patch to patch (context,
    patch layers, training); the reverse, that a patch's inner order is not learned (byte layers, width).

    Args:
        patches: data patches.
        right, patch_level, byte_level: how many are of each kind; they add up to `patches`.
        first_byte: scores of the first position of data patches.
        later_bytes: scores of the other positions.
    """

    patches: int
    right: int
    patch_level: int
    byte_level: int
    first_byte: ByteScores
    later_bytes: ByteScores

    def to_dict(self) -> dict[str, Any]:
        """Counts, their shares of the patches, and the scores of both kinds of positions; JSON-ready."""
        every = max(self.patches, 1)
        nats = self.first_byte.nats + self.later_bytes.nats
        return {
            "patches": self.patches,
            "right_share": self.right / every,
            "patch_level_error_share": self.patch_level / every,
            "byte_level_error_share": self.byte_level / every,
            "share_of_bits_in_first_bytes": self.first_byte.nats / nats if nats else 0.0,
            "first_byte": self.first_byte.figures(),
            "later_bytes": self.later_bytes.figures(),
        }


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
        baselines: bits a byte of each compressor: "gzip" and "xz" on each file alone, "..._solid" on all in one stream.
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
        baselines: compress the same bytes by gzip (level 9) and xz (preset 6) too.
        resamples, confidence, seed: of the bootstrap over files (`bootstrap_interval`).
        progress: called with (files done, files in all, bytes scored so far).

    Raises:
        DataError: no such path, or no file that could be scored.
        TypeError, ValueError: a wrong argument.
    """
    if not isinstance(model, BGPT):
        raise TypeError(f"evaluate_files: model: expected a BGPT, got {type(model).__name__}")
    check_int("evaluate_files: patches_per_batch", patches_per_batch, 1)
    config = model.config
    skips = Skips()
    found = find_files(as_roots(paths), skips)
    sums = _Sums(config)
    compressors = _Compressors() if baselines else None
    scored: list[FileScore] = []
    seconds, patches, cut = 0.0, 0, 0
    for group, passed in _in_batches(found, config, max(patches_per_batch, config.patch_length), skips):
        batch = PackedPatches.concatenate([document for _, document in group])
        start = time.monotonic()
        rows = sums.add(model, batch)
        seconds += time.monotonic() - start
        patches += batch.num_patches
        cut += batch.truncated
        for (file, document), row in zip(group, rows, strict=True):
            compressed = {}
            if compressors is not None:
                ((_, content),) = document.to_bytes()
                compressed = compressors.add(content)
            extension = extension_of(file.path)
            scored.append(FileScore(file.path, extension, ByteScores.of(row), document.truncated_bytes, compressed))
        if progress is not None:
            progress(passed, len(found), int(sums.total[2]))
    if not scored:
        raise DataError(
            f"evaluate_files: expected at least one file that can be read, got none; skipped: {skips.by_reason}"
        )
    table = np.stack([file.scores.row for file in scored])
    nats, positions, num_bytes, _, right_bytes = table.T

    def interval(above: NDArray[np.float64], below: NDArray[np.float64]) -> Interval | None:
        return bootstrap_interval(above, below, resamples=resamples, confidence=confidence, seed=seed)

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
        warnings=skips.named,
        seconds=seconds,
        patches_per_second=patches / seconds if seconds else 0.0,
    )


class BatchScores(NamedTuple):
    """What the model made of each target patch of a batch.

    nats: float32 [T, S]; tokens: int16 [T, S], the likeliest; truth: int16 [T, S]; all on the CPU. indices: int64 [T],
    where the targets lie in the batch.
    """

    nats: NDArray[np.float32]
    tokens: NDArray[np.int16]
    truth: NDArray[np.int16]
    indices: NDArray[np.int64]


@torch.no_grad()
def score_batch(model: BGPT, batch: PackedPatches) -> BatchScores:
    """Negative log-likelihood and likeliest token of each target position, given all true bytes before it.

    The logits of 2,048 patches are in memory at once, whatever the batch's size.

    Args:
        model: on any device; runs as in evaluation.
        batch: on any device.

    Raises:
        TypeError, ValueError: the batch does not fit the model, or there is no target.
    """
    device = next(model.parameters()).device
    batch = batch.to(device)
    check_batch(batch, model.config, device)
    indices = batch.target_indices()
    if not len(indices):
        raise ValueError("score_batch: batch: expected at least one patch to predict, got none")
    nats: list[Tensor] = []
    tokens: list[Tensor] = []
    with evaluation_mode(model):
        features = model.patch_level_decoder(batch.patches, batch.cu_seqlens, batch.max_seqlen)
        for chunk in indices.split(CHUNK):
            truth = batch.patches[chunk]
            logits = model.byte_level_decoder.logits(features[chunk - 1], truth).float()
            chosen = logits.gather(-1, truth.long().unsqueeze(-1)).squeeze(-1)
            nats.append((logits.logsumexp(-1) - chosen).cpu())
            tokens.append(logits.argmax(-1).to(torch.int16).cpu())
    return BatchScores(
        torch.cat(nats).numpy(),
        torch.cat(tokens).numpy(),
        batch.patches[indices].cpu().numpy(),
        indices.cpu().numpy(),
    )


class _Sums:
    """Sums over everything scored so far; rows are those of `ByteScores.COUNTS`."""

    def __init__(self, config: BGPTConfig) -> None:
        self.total = np.zeros(_COUNTS)
        self.end_of_file = np.zeros(_COUNTS)
        self.by_patch = np.zeros((config.patch_length, _COUNTS))
        self.by_byte = np.zeros((config.patch_size, _COUNTS))
        self.last_patch = 0
        self._kinds = np.zeros(3, np.int64)

    def add(self, model: BGPT, batch: PackedPatches) -> NDArray[np.float64]:
        """Adds a batch; returns the rows of its documents, [B, 5]."""
        found = score_batch(model, batch)
        real = found.truth != EOP
        right = found.tokens == found.truth
        # [T, S, 5]: every figure below is a sum of these over some of the positions.
        cells = np.stack([found.nats, np.ones_like(found.nats), real, right, right & real], -1, dtype=np.float64)
        patches = cells.sum(1)
        offsets = batch.cu_seqlens.cpu().numpy()
        document = np.searchsorted(offsets, found.indices, side="right") - 1
        place = found.indices - offsets[document]
        # A data patch has a byte in it; patches of nothing but <eop> end files.
        data = real.any(1)
        self.total += patches.sum(0)
        self.end_of_file += patches[~data].sum(0)
        np.add.at(self.by_patch, place[data], patches[data])
        self.by_byte += cells[data].sum(0)
        self.last_patch = max(self.last_patch, int(place[data].max(initial=0)))
        first, whole = right[data, 0], right[data].all(1)
        self._kinds += [whole.sum(), (~first).sum(), (first & ~whole).sum()]
        rows = np.zeros((batch.num_documents, _COUNTS))
        np.add.at(rows, document, patches)
        return rows

    def decoders(self) -> DecoderErrors:
        whole, patch_level, byte_level = self._kinds.tolist()
        return DecoderErrors(
            patches=whole + patch_level + byte_level,
            right=whole,
            patch_level=patch_level,
            byte_level=byte_level,
            first_byte=ByteScores.of(self.by_byte[0]),
            later_bytes=ByteScores.of(self.by_byte[1:].sum(0)),
        )


class _Compressors:
    """gzip and xz, on each file alone as the programs do, and on all files as one stream."""

    def __init__(self) -> None:
        self._alone = {"gzip": 0, "xz": 0}
        self._bytes = 0
        self._gzip = zlib.compressobj(9, zlib.DEFLATED, 31)
        self._xz = lzma.LZMACompressor(preset=6)
        self._solid = {"gzip_solid": 0, "xz_solid": 0}

    def add(self, content: bytes) -> dict[str, int]:
        """Bytes that each makes of a file alone."""
        alone = {"gzip": len(gzip.compress(content, 9, mtime=0)), "xz": len(lzma.compress(content, preset=6))}
        for name, size in alone.items():
            self._alone[name] += size
        self._solid["gzip_solid"] += len(self._gzip.compress(content))
        self._solid["xz_solid"] += len(self._xz.compress(content))
        self._bytes += len(content)
        return alone

    def bits_per_byte(self) -> dict[str, float]:
        """Ends the streams."""
        self._solid["gzip_solid"] += len(self._gzip.flush())
        self._solid["xz_solid"] += len(self._xz.flush())
        return {name: 8 * size / max(self._bytes, 1) for name, size in {**self._alone, **self._solid}.items()}


def _in_batches(
    files: Iterable[FoundFile], config: BGPTConfig, room: int, skips: Skips
) -> Iterator[tuple[list[tuple[FoundFile, PackedPatches]], int]]:
    """Files that can be read, with their documents, at most `room` patches at a time; and how many files are passed."""
    group: list[tuple[FoundFile, PackedPatches]] = []
    filled = passed = 0
    for file in files:
        document = read_file(file, config, skips, overlong="head")
        if document is not None:
            if group and filled + document.num_patches > room:
                yield group, passed
                group, filled = [], 0
            group.append((file, document))
            filled += document.num_patches
        passed += 1
    if group:
        yield group, passed


def _by_extension(files: list[FileScore], table: NDArray[np.float64]) -> dict[str, ByteScores]:
    names = np.array([os.fsencode(file.extension) for file in files])
    return {os.fsdecode(name): ByteScores.of(table[names == name].sum(0)) for name in sorted(set(names.tolist()))}
