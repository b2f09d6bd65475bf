"""Scores of a model on batches, summed by file, patch and byte position, and by the decoder that made the error.

Shape letters: B documents, T target patches, S bytes per patch, L patches of context.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bgpt_fast.byte_decoder import CHUNK
from bgpt_fast.config import EOP, BGPTConfig
from bgpt_fast.metrics import ByteScores
from bgpt_fast.model import BGPT, batch_memory, check_batch, evaluation_mode
from bgpt_fast.patches import PackedPatches

_COUNTS = len(ByteScores.COUNTS)


@dataclass(frozen=True)
class DecoderErrors:
    """Errors by decoder, on data patches (without end-of-file patches).

    The first byte of a patch is predicted only from the patch-level decoder's feature, every later byte from the
    feature and the patch's earlier bytes, by the byte-level decoder. So each data patch, decoded greedily after the
    true patches before it, has one of three results: all positions right; the first byte wrong, by the feature ("patch
    level"); or a later position wrong after a right first byte ("byte level"). Up to a patch's first error, greedy
    decoding and teacher forcing have the same inputs, so this partition is exact. The bits are split the same way.

    More patch-level than byte-level errors mean that information does not reach across patches (context, patch layers,
    training); the reverse, that the order within a patch is not learned (byte layers, width).

    Args:
        patches: number of data patches.
        right, patch_level, byte_level: number of patches with each result; their sum is `patches`.
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
        """Returns counts, their shares of the patches, and the scores of both kinds of positions; JSON-ready."""
        patches = max(self.patches, 1)
        nats = self.first_byte.nats + self.later_bytes.nats
        return {
            "patches": self.patches,
            "right_share": self.right / patches,
            "patch_level_error_share": self.patch_level / patches,
            "byte_level_error_share": self.byte_level / patches,
            "share_of_bits_in_first_bytes": self.first_byte.nats / nats if nats else 0.0,
            "first_byte": self.first_byte.figures(),
            "later_bytes": self.later_bytes.figures(),
        }


class BatchScores(NamedTuple):
    """A model's scores of the target patches of a batch, on the CPU.

    nats: float32 [T, S]; tokens: int16 [T, S], the most likely ones; truth: int16 [T, S]; indices: int64 [T] of the
    targets in the batch.
    """

    nats: NDArray[np.float32]
    tokens: NDArray[np.int16]
    truth: NDArray[np.int16]
    indices: NDArray[np.int64]


@torch.no_grad()
def score_batch(model: BGPT, batch: PackedPatches) -> BatchScores:
    """Returns negative log-likelihood and most likely token of each target position, after all true bytes before it.

    At most the logits of 2,048 patches are in memory, for any batch size.

    Args:
        model: on any device; runs in evaluation mode.
        batch: on any device.

    Raises:
        TypeError, ValueError: the batch does not fit the model, or there is no target.
        OutOfMemoryError: the batch needs more memory than there is.
    """
    with batch_memory("the scores", model, batch, "patches_per_batch"):
        return _score_batch(model, batch)


def _score_batch(model: BGPT, batch: PackedPatches) -> BatchScores:
    device = next(model.parameters()).device
    batch = batch.to(device)
    check_batch(batch, model.config, device)
    indices = batch.target_indices()
    if not len(indices):
        raise ValueError("score_batch: batch: expected at least one patch to predict, got none")
    nats: list[Tensor] = []
    tokens: list[Tensor] = []
    with evaluation_mode(model):
        features = model.patch_level_decoder(batch.patches, batch.cu_seqlens, batch.max_seqlen, batch.host_offsets)
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


class ScoreSums:
    """Sums over all scored batches; rows are those of `ByteScores.COUNTS`."""

    def __init__(self, config: BGPTConfig) -> None:
        self.total = np.zeros(_COUNTS)
        self.end_of_file = np.zeros(_COUNTS)
        self.by_patch = np.zeros((config.patch_length, _COUNTS))
        self.by_byte = np.zeros((config.patch_size, _COUNTS))
        self.last_patch = 0
        self._kinds = np.zeros(3, np.int64)

    def add(
        self, model: BGPT, batch: PackedPatches, begins: NDArray[np.int64], offsets: NDArray[np.int64] | None = None
    ) -> NDArray[np.float64]:
        """Adds a batch of files; returns rows [B, 5].

        Args:
            model: the model.
            batch: B documents.
            begins: [B], the patch of its document at which each file, or the scored part of it, starts.
            offsets: [B], number of the file's patches before that one, in other documents; None means none.
        """
        scores = score_batch(model, batch)
        real = scores.truth != EOP
        right = scores.tokens == scores.truth
        # [T, S, 5]: all figures below are sums of these over subsets of the positions.
        cells = np.stack([scores.nats, np.ones_like(scores.nats), real, right, right & real], -1, dtype=np.float64)
        patches = cells.sum(1)
        starts = batch.cu_seqlens.cpu().numpy()
        document = np.searchsorted(starts, scores.indices, side="right") - 1
        place = scores.indices - starts[document] - begins[document]
        if offsets is not None:
            place = place + offsets[document]
        # A data patch has at least one byte; an end-of-file patch has only <eop>.
        data = real.any(1)
        self.total += patches.sum(0)
        self.end_of_file += patches[~data].sum(0)
        missing = int(place.max(initial=0)) + 1 - len(self.by_patch)
        if missing > 0:
            self.by_patch = np.concatenate([self.by_patch, np.zeros((missing, _COUNTS))])
        np.add.at(self.by_patch, place[data], patches[data])
        self.by_byte += cells[data].sum(0)
        self.last_patch = max(self.last_patch, int(place[data].max(initial=0)))
        first, exact = right[data, 0], right[data].all(1)
        self._kinds += [exact.sum(), (~first).sum(), (first & ~exact).sum()]
        rows = np.zeros((batch.num_documents, _COUNTS))
        np.add.at(rows, document, patches)
        return rows

    def decoders(self) -> DecoderErrors:
        """Returns the errors by decoder."""
        exact, patch_level, byte_level = self._kinds.tolist()
        return DecoderErrors(
            patches=exact + patch_level + byte_level,
            right=exact,
            patch_level=patch_level,
            byte_level=byte_level,
            first_byte=ByteScores.of(self.by_byte[0]),
            later_bytes=ByteScores.of(self.by_byte[1:].sum(0)),
        )
