"""Batches of documents in tests: their contents, and bitwise equality."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from bgpt_fast.data import BatchSource, LabelledBatch
from bgpt_fast.patches import PackedPatches


def contents(batches: Iterable[PackedPatches]) -> list[bytes]:
    """The contents of all documents, in order."""
    return [content for batch in batches for _, content in batch.to_bytes()]


def equal(one: PackedPatches | LabelledBatch, other: PackedPatches | LabelledBatch) -> bool:
    """Whether two batches have the same documents and, if labelled, the same labels."""
    if isinstance(one, LabelledBatch):
        assert isinstance(other, LabelledBatch)
        return torch.equal(one.labels, other.labels) and equal(one.batch, other.batch)
    assert isinstance(other, PackedPatches)
    return (
        one.max_seqlen == other.max_seqlen
        and torch.equal(one.patches, other.patches)
        and torch.equal(one.cu_seqlens, other.cu_seqlens)
        and torch.equal(one.target_indices(), other.target_indices())
    )


def skip(source: BatchSource, batches: int) -> None:
    """Draws this number of batches and discards them."""
    for _ in range(batches):
        source.next_batch()
