"""What a model makes of a batch, position by position, summed up: by file, patch and byte, and which decoder errs.

Shape letters: B documents, T target patches, S bytes a patch, L patches of context.
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
from bgpt_fast.model import BGPT, check_batch, evaluation_mode
from bgpt_fast.patches import PackedPatches

_COUNTS = len(ByteScores.COUNTS)


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


class ScoreSums:
    """Sums over everything scored so far; rows are those of `ByteScores.COUNTS`."""

    def __init__(self, config: BGPTConfig) -> None:
        self.total = np.zeros(_COUNTS)
        self.end_of_file = np.zeros(_COUNTS)
        self.by_patch = np.zeros((config.patch_length, _COUNTS))
        self.by_byte = np.zeros((config.patch_size, _COUNTS))
        self.last_patch = 0
        self._kinds = np.zeros(3, np.int64)

    def add(self, model: BGPT, batch: PackedPatches, begins: NDArray[np.int64]) -> NDArray[np.float64]:
        """Adds a batch, each file beginning at the patch `begins`, [B], of its document; returns their rows, [B, 5]."""
        found = score_batch(model, batch)
        real = found.truth != EOP
        right = found.tokens == found.truth
        # [T, S, 5]: every figure below is a sum of these over some of the positions.
        cells = np.stack([found.nats, np.ones_like(found.nats), real, right, right & real], -1, dtype=np.float64)
        patches = cells.sum(1)
        offsets = batch.cu_seqlens.cpu().numpy()
        document = np.searchsorted(offsets, found.indices, side="right") - 1
        place = found.indices - offsets[document] - begins[document]
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
