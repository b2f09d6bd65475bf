"""What a step minimises: the negative log-likelihood of the next bytes, or of a document's class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bgpt_fast.classifier import BGPTForClassification
from bgpt_fast.config import EOP, BGPTConfig
from bgpt_fast.data.labelled import LabelledBatch
from bgpt_fast.flops import training_flops
from bgpt_fast.model import BGPT
from bgpt_fast.patches import PackedPatches
from bgpt_fast.training.config import TrainConfig

Batch = TypeVar("Batch", PackedPatches, LabelledBatch)
Model: TypeAlias = BGPT | BGPTForClassification


class BatchStats(NamedTuple):
    """What a batch holds: units of the mean, positions they have, real bytes to predict, patches, documents, FLOPs."""

    units: int
    positions: int
    num_bytes: int
    patches: int
    documents: int
    flops: int


class Objective(ABC, Generic[Batch]):
    """How batches become a loss; the mean of a step runs over all units of all batches and ranks."""

    @abstractmethod
    def sample_targets(self, batch: Batch, config: TrainConfig, step: int, place: int) -> Tensor:
        """The units that count: int64, rising.

        Args:
            batch: where its source makes it: on the CPU, or on the GPU.
            config: `targets_per_step` and `seed` count.
            step: from 0.
            place: the batch's number among those of the step, on all ranks.
        """

    @abstractmethod
    def work(self, batch: Batch, drawn: Tensor, config: BGPTConfig) -> BatchStats:
        """What the units of a batch come to."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, drawn: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """The mean loss over a batch's units, and float64 [2] without a gradient: the sum of nats, units right."""

    @abstractmethod
    def dummy_batch(self, config: BGPTConfig) -> Batch:
        """A batch of one empty document, for a rank that has none."""

    @abstractmethod
    def tensors(self, batch: Batch, drawn: Tensor) -> dict[str, Tensor]:
        """A batch as named tensors, to be written out."""


class NextBytes(Objective[PackedPatches]):
    """The bytes of patches from what is before them; a unit is a target patch. For `BGPT`."""

    def sample_targets(self, batch: PackedPatches, config: TrainConfig, step: int, place: int) -> Tensor:
        indices = batch.target_indices()
        wanted = config.targets_per_step
        if wanted == 0 or len(indices) <= wanted:
            return indices
        # A stream of its own for each batch: nothing to save, and the same draw after a resume.
        generator = np.random.default_rng([config.seed, step, place])
        chosen = generator.choice(len(indices), wanted, replace=False, shuffle=False)
        return indices[torch.from_numpy(np.sort(chosen))]

    def work(self, batch: PackedPatches, drawn: Tensor, config: BGPTConfig) -> BatchStats:
        lengths = batch.cu_seqlens.diff().cpu()
        return BatchStats(
            units=len(drawn),
            positions=len(drawn) * config.patch_size,
            num_bytes=int((batch.patches[drawn] != EOP).sum()),
            patches=batch.num_patches,
            documents=len(lengths),
            flops=training_flops(config, lengths, targets=len(drawn)),
        )

    def loss(
        self, model: nn.Module, batch: PackedPatches, drawn: Tensor, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        output = model(batch.to(device), drawn.to(device))
        nats = output.nats.detach().sum(dtype=torch.float64)
        return output.loss, torch.stack([nats, torch.zeros_like(nats)])

    def dummy_batch(self, config: BGPTConfig) -> PackedPatches:
        return PackedPatches.from_bytes([("", b"")], config)

    def tensors(self, batch: PackedPatches, drawn: Tensor) -> dict[str, Tensor]:
        return {"patches": batch.patches, "cu_seqlens": batch.cu_seqlens, "targets": drawn}


class DocumentClass(Objective[LabelledBatch]):
    """The class of a document from all of its patches; a unit is a document. For `BGPTForClassification`."""

    def sample_targets(self, batch: LabelledBatch, config: TrainConfig, step: int, place: int) -> Tensor:
        return torch.arange(batch.batch.num_documents)

    def work(self, batch: LabelledBatch, drawn: Tensor, config: BGPTConfig) -> BatchStats:
        lengths = batch.batch.cu_seqlens.diff()
        # A class takes the patch decoder alone.
        return BatchStats(
            units=len(drawn),
            positions=len(drawn),
            num_bytes=0,
            patches=batch.batch.num_patches,
            documents=len(lengths),
            flops=training_flops(config, lengths, targets=0),
        )

    def loss(
        self, model: nn.Module, batch: LabelledBatch, drawn: Tensor, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        there = batch.to(device)
        logits = model(there.batch).float()
        nats = F.cross_entropy(logits, there.labels, reduction="none")
        right = (logits.argmax(1) == there.labels).sum(dtype=torch.float64)
        return nats.mean(), torch.stack([nats.detach().sum(dtype=torch.float64), right])

    def dummy_batch(self, config: BGPTConfig) -> LabelledBatch:
        batch = PackedPatches.from_bytes([("", b"")], config)
        return LabelledBatch(batch, torch.zeros(1, dtype=torch.int64))

    def tensors(self, batch: LabelledBatch, drawn: Tensor) -> dict[str, Tensor]:
        return {"patches": batch.batch.patches, "cu_seqlens": batch.batch.cu_seqlens, "labels": batch.labels}


def objective_of(model: Model) -> Objective[Any]:
    """What a model is trained for."""
    return DocumentClass() if isinstance(model, BGPTForClassification) else NextBytes()


def labels_of(model: Model) -> dict[str, int] | None:
    """A classifier's label map; None of a generative model."""
    return dict(model.labels) if isinstance(model, BGPTForClassification) else None


def check_labels(model: Model, source: object) -> None:
    """Raises ValueError where a classifier and its source number classes differently; both must have a label map."""
    ours, theirs = labels_of(model), getattr(source, "labels", None)
    if ours is not None and theirs is not None and ours != theirs:
        raise ValueError(
            f"source: expected the model's classes {ours!r:.200}, got {theirs!r:.200}; make it with labels=model.labels"
        )


def same_kind(model: Model) -> Model:
    """A new model of the same class, sizes and labels, with weights of its own."""
    if isinstance(model, BGPTForClassification):
        return BGPTForClassification(model.config, model.labels)
    return BGPT(model.config)
