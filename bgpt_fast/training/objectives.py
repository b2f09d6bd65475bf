"""Training objectives: the negative log-likelihood of the next bytes, or of a document's class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bgpt_fast.checkpoint.task import ModelTask
from bgpt_fast.classifier import BGPTForClassification
from bgpt_fast.config import BGPTConfig
from bgpt_fast.data.labelled import LabelledBatch
from bgpt_fast.device import to_device
from bgpt_fast.flops import training_flops
from bgpt_fast.model import BGPT
from bgpt_fast.patches import PackedPatches
from bgpt_fast.training.config import TrainConfig

Batch = TypeVar("Batch", PackedPatches, LabelledBatch)
Model: TypeAlias = BGPT | BGPTForClassification


class BatchStats(NamedTuple):
    """Counts of a batch: units averaged over by the loss, their positions and real bytes, patches, documents, FLOPs."""

    units: int
    positions: int
    num_bytes: int
    patches: int
    documents: int
    flops: int


class Objective(ABC, Generic[Batch]):
    """Defines the loss of a batch as a mean over units; a step averages over all units of all batches and ranks."""

    @abstractmethod
    def sample_targets(self, batch: Batch, config: TrainConfig, step: int, index: int) -> Tensor:
        """Indices of the units of a batch that the loss is computed for, int64, ascending.

        Args:
            batch: on the device where its source creates it.
            config: `targets_per_step` and `seed` are used.
            step: from 0.
            index: the batch's index among the batches of the step on all ranks, from 0.
        """

    def units(self, batch: Batch, targets: Tensor, config: BGPTConfig) -> int:
        """How many units the mean of `loss` is over."""
        return len(targets)

    @abstractmethod
    def stats(self, batch: Batch, targets: Tensor, config: BGPTConfig) -> BatchStats:
        """Counts of a batch and its targets."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, targets: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """The mean loss over a batch's units, and float64 [2], detached: sum of nats, number of correct units."""

    @abstractmethod
    def dummy_batch(self, config: BGPTConfig) -> Batch:
        """A batch of one empty document, for a rank that has no units."""

    @abstractmethod
    def tensors(self, batch: Batch, targets: Tensor) -> dict[str, Tensor]:
        """The batch as named tensors, to be written to a file."""


class NextBytes(Objective[PackedPatches]):
    """Predicts the bytes of patches from the patches before them; for `BGPT`. A unit is a target patch or, in a model
    with `pad`, a position whose symbol is in the loss."""

    def sample_targets(self, batch: PackedPatches, config: TrainConfig, step: int, index: int) -> Tensor:
        indices = batch.target_indices()
        count = config.targets_per_step
        if count == 0 or len(indices) <= count:
            return indices
        # A separate random stream for each batch: no state to save, and the same sample after resuming.
        generator = np.random.default_rng([config.seed, step, index])
        chosen = generator.choice(len(indices), count, replace=False, shuffle=False)
        return indices[torch.from_numpy(np.sort(chosen))]

    def units(self, batch: PackedPatches, targets: Tensor, config: BGPTConfig) -> int:
        return len(targets) if config.pad is None else int((batch.patches[targets] != config.pad).sum())

    def stats(self, batch: PackedPatches, targets: Tensor, config: BGPTConfig) -> BatchStats:
        lengths, units = batch.cu_seqlens.diff().cpu(), self.units(batch, targets, config)
        symbols = batch.patches[targets]
        return BatchStats(
            units=units,
            positions=units * config.patch_size if config.pad is None else units,
            num_bytes=int(((symbols != config.eop) & (symbols != config.fill)).sum()),
            patches=batch.num_patches,
            documents=len(lengths),
            flops=training_flops(config, lengths, targets=len(targets)),
        )

    def loss(
        self, model: nn.Module, batch: PackedPatches, targets: Tensor, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        there = to_device(batch, batch.patches.device, device)
        output = model(there, to_device(targets, targets.device, device))
        nats = output.nats.detach().sum(dtype=torch.float64)
        return output.loss, torch.stack([nats, torch.zeros_like(nats)])

    def dummy_batch(self, config: BGPTConfig) -> PackedPatches:
        patches = torch.full((2, config.patch_size), config.fill, dtype=torch.int16, device="cpu")
        return PackedPatches(patches, torch.tensor([0, 2], dtype=torch.int32, device="cpu"))

    def tensors(self, batch: PackedPatches, targets: Tensor) -> dict[str, Tensor]:
        return {"patches": batch.patches, "cu_seqlens": batch.cu_seqlens, "targets": targets}


class DocumentClass(Objective[LabelledBatch]):
    """Predicts the class of a document from all its patches; a unit is a document. For `BGPTForClassification`."""

    def sample_targets(self, batch: LabelledBatch, config: TrainConfig, step: int, index: int) -> Tensor:
        return torch.arange(batch.batch.num_documents, device="cpu")

    def stats(self, batch: LabelledBatch, targets: Tensor, config: BGPTConfig) -> BatchStats:
        lengths = batch.batch.cu_seqlens.diff()
        # Classification uses only the patch decoder.
        return BatchStats(
            units=len(targets),
            positions=len(targets),
            num_bytes=0,
            patches=batch.batch.num_patches,
            documents=len(lengths),
            flops=training_flops(config, lengths, targets=0),
        )

    def loss(
        self, model: nn.Module, batch: LabelledBatch, targets: Tensor, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        there = to_device(batch, batch.labels.device, device)
        logits = model(there.batch).float()
        nats = F.cross_entropy(logits, there.labels, reduction="none")
        right = (logits.argmax(1) == there.labels).sum(dtype=torch.float64)
        return nats.mean(), torch.stack([nats.detach().sum(dtype=torch.float64), right])

    def dummy_batch(self, config: BGPTConfig) -> LabelledBatch:
        batch = PackedPatches.from_bytes([("", b"")], config)
        return LabelledBatch(batch, torch.zeros(1, dtype=torch.int64, device="cpu"))

    def tensors(self, batch: LabelledBatch, targets: Tensor) -> dict[str, Tensor]:
        return {"patches": batch.batch.patches, "cu_seqlens": batch.batch.cu_seqlens, "labels": batch.labels}


def objective_of(model: Model) -> Objective[Any]:
    """The objective for a model, by the model's class."""
    return DocumentClass() if isinstance(model, BGPTForClassification) else NextBytes()


def labels_of(model: Model) -> dict[str, int] | None:
    """A classifier's label map; None for a generative model."""
    return dict(model.labels) if isinstance(model, BGPTForClassification) else None


def check_same_task(expected: ModelTask | None, task: ModelTask | None, what: str) -> None:
    """Raises ValueError, beginning with `what`, if two known tasks differ in more than the files' extensions."""
    if expected is None or task is None:
        return
    if (expected.tasks, expected.conversions, expected.machines) != (task.tasks, task.conversions, task.machines):
        raise ValueError(
            f"{what}: expected {expected}, got {task}; train on what the run was started with, or use another run "
            "folder; to start from its weights give them to --init-from"
        )


def check_labels(model: Model, source: object) -> None:
    """Raises ValueError if a classifier and its source have different label maps; no check if either has none."""
    ours, theirs = labels_of(model), getattr(source, "labels", None)
    if ours is not None and theirs is not None and ours != theirs:
        raise ValueError(
            f"source: expected the model's classes {ours!r:.200}, got {theirs!r:.200}; make it with labels=model.labels"
        )


def new_model_like(model: Model) -> Model:
    """A new model of the same class, sizes and labels, with initial weights."""
    if isinstance(model, BGPTForClassification):
        return BGPTForClassification(model.config, model.labels)
    return BGPT(model.config)
