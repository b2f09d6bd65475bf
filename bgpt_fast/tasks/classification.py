"""Classification of documents: predictions and their scores.

Shape letters: B documents of a batch, N documents in all, n classes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bgpt_fast.classifier import BGPTForClassification
from bgpt_fast.data import LabelledBatch
from bgpt_fast.documents import PathLike
from bgpt_fast.model import batch_memory, evaluation_mode
from bgpt_fast.patches import PackedPatches

Document = tuple[str, bytes] | PathLike | PackedPatches
"""(extension, content), the path of a file, or a batch of one document."""

_RESAMPLES = 10_000


@dataclass(frozen=True)
class Prediction:
    """A classifier's prediction for one document.

    Args:
        label: the most likely class.
        probability: probability of `label`.
        probabilities: probabilities of every class by name, in the label map's order; their sum is 1.
        is_cut: the document was longer than the context and truncated to its head.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    is_cut: bool


@dataclass(frozen=True)
class ClassScore:
    """The scores of one class; shares in 0…1, None if undefined.

    Args:
        precision: share of the documents predicted as this class that belong to it.
        recall: share of this class's documents that are predicted as this class.
        f1: the harmonic mean of precision and recall.
        support: number of documents of this class.
    """

    precision: float | None
    recall: float | None
    f1: float | None
    support: int


@dataclass(frozen=True, eq=False)
class ClassificationReport:
    """The scores of a classifier on N documents.

    Args:
        labels: class names by index.
        confusion: int64 [n, n]: number of documents by true class (row) and predicted class (column).
        interval: the bootstrap's 95 % interval of the accuracy: its 2.5 % and 97.5 % quantiles over resamples of the
            documents. If all or no documents are right, its width is 0 and it is meaningless.
    """

    labels: tuple[str, ...]
    confusion: NDArray[np.int64]
    interval: tuple[float, float]

    @property
    def documents(self) -> int:
        """N."""
        return int(self.confusion.sum())

    @property
    def correct(self) -> int:
        """Number of documents whose predicted class is right."""
        return int(self.confusion.trace())

    @property
    def accuracy(self) -> float:
        """correct / documents."""
        return self.correct / self.documents

    @property
    def macro_f1(self) -> float:
        """The unweighted mean F1 of the classes that have documents."""
        scores = [score.f1 for score in self.by_class.values() if score.support]
        return sum(score or 0.0 for score in scores) / len(scores)

    @property
    def by_class(self) -> dict[str, ClassScore]:
        """The scores of every class, in the label map's order."""
        right = self.confusion.diagonal().tolist()
        supports = self.confusion.sum(1).tolist()
        predicted_counts = self.confusion.sum(0).tolist()
        return {
            label: ClassScore(
                precision=_share(right[index], predicted_counts[index]),
                recall=_share(right[index], supports[index]),
                f1=_share(2 * right[index], predicted_counts[index] + supports[index]),
                support=supports[index],
            )
            for index, label in enumerate(self.labels)
        }

    def to_dict(self) -> dict[str, Any]:
        """All figures, JSON-ready."""
        return {
            "documents": self.documents,
            "correct": self.correct,
            "accuracy": self.accuracy,
            "accuracy_interval": list(self.interval),
            "macro_f1": self.macro_f1,
            "by_class": {label: asdict(score) for label, score in self.by_class.items()},
            "labels": list(self.labels),
            "confusion": self.confusion.tolist(),
        }


def score(
    labels: Iterable[str], truth: Sequence[int], predicted: Sequence[int], *, seed: int = 0
) -> ClassificationReport:
    """Scores predicted classes.

    Args:
        labels: class names by index, such as `model.labels`.
        truth: N indices of the true classes.
        predicted: N indices of the predicted classes, in the same order.
        seed: seed of the bootstrap.

    Raises:
        ValueError: no documents, `truth` and `predicted` of different lengths, or an index without a class.
    """
    names = tuple(labels)
    if len(truth) != len(predicted) or not len(truth):
        raise ValueError(
            f"score: expected as many predictions as truths, at least 1, got {len(predicted)} and {len(truth)}"
        )
    rows, columns = np.asarray(truth, np.int64), np.asarray(predicted, np.int64)
    for what, indices in (("truth", rows), ("predicted", columns)):
        if indices.min() < 0 or indices.max() >= len(names):
            raise ValueError(
                f"score: {what}: expected classes 0…{len(names) - 1}, got {indices.min()}…{indices.max()}; use the "
                "model's own label map"
            )
    confusion = np.bincount(rows * len(names) + columns, minlength=len(names) ** 2).reshape(len(names), len(names))
    # The number of right documents in a resample has a binomial distribution.
    draws = np.random.default_rng(seed).binomial(len(rows), confusion.trace() / len(rows), _RESAMPLES) / len(rows)
    low, high = np.quantile(draws, (0.025, 0.975)).tolist()
    return ClassificationReport(names, confusion, (low, high))


def accuracy_evaluation(
    batches: Sequence[LabelledBatch],
) -> Callable[[BGPTForClassification], dict[str, float]]:
    """Returns an `evaluate` for `Trainer`: the model's loss and accuracy over `batches`.

    Args:
        batches: held-out documents on any device, such as `LabelledSource(..., split="eval").one_pass()` as a list;
            their classes are those of the model's label map.

    Returns:
        A function of the model that returns `loss`, the mean nats per document, `accuracy`, and the number of
        `documents`.

    Raises:
        ValueError: there are no documents.
    """
    documents = sum(batch.batch.num_documents for batch in batches)
    if not documents:
        raise ValueError("accuracy_evaluation: batches: expected at least one document, got none")

    def evaluate(model: BGPTForClassification) -> dict[str, float]:
        nats, correct = 0.0, 0
        for batch in batches:
            truth = _checked_truth("accuracy_evaluation", model, batch)
            logits = _logits(model, batch.batch)
            nats += float(F.cross_entropy(logits, truth.to(logits.device), reduction="sum"))
            correct += int((logits.argmax(1).cpu() == truth).sum())
        return {"loss": nats / documents, "accuracy": correct / documents, "documents": float(documents)}

    return evaluate


def evaluate(model: BGPTForClassification, batches: Iterable[LabelledBatch], *, seed: int = 0) -> ClassificationReport:
    """Scores a classifier on labelled documents.

    Args:
        model: on any device; it runs in evaluation mode.
        batches: documents on any device, with classes of the model's label map.
        seed: seed of the bootstrap.

    Raises:
        FloatingPointError: the model's logits are not finite.
        ValueError: there are no documents, or the model does not have their class.
        TypeError, ValueError: a batch does not fit the model.
    """
    truth: list[int] = []
    predicted: list[int] = []
    for batch in batches:
        truth += _checked_truth("evaluate", model, batch).tolist()
        predicted += _finite(_logits(model, batch.batch)).argmax(1).tolist()
    return score(model.labels, truth, predicted, seed=seed)


def predict(
    model: BGPTForClassification, documents: Iterable[Document], *, patches_per_batch: int = 2048
) -> list[Prediction]:
    """Classifies documents in packed batches.

    Args:
        model: on any device; it runs in evaluation mode.
        documents: pairs (extension, content), paths of files, or batches of one document each. Those longer than the
            context are truncated to their head and have `Prediction.is_cut`.
        patches_per_batch: maximum number of patches in a batch; a longer document is a batch by itself.

    Returns:
        One prediction for each document, in order.

    Raises:
        FloatingPointError: the model's logits are not finite.
        OutOfMemoryError: a batch needs more memory than there is.
        OSError, PatchError: a file cannot be read, or is not a regular file.
        TypeError, ValueError: a wrong argument.
    """
    return list(predict_iter(model, documents, patches_per_batch=patches_per_batch))


def predict_iter(
    model: BGPTForClassification, documents: Iterable[Document], *, patches_per_batch: int = 2048
) -> Iterator[Prediction]:
    """As `predict`, but yields one prediction at a time; at most one batch is in memory."""
    if isinstance(documents, str | bytes | os.PathLike) or not isinstance(documents, Iterable):
        raise TypeError(f"predict: documents: expected a list of documents, got {type(documents).__name__}")
    if patches_per_batch < 1:
        raise ValueError(f"predict: patches_per_batch: expected at least 1, got {patches_per_batch}")
    return _predictions(model, documents, patches_per_batch)


def _predictions(
    model: BGPTForClassification, documents: Iterable[Document], patches_per_batch: int
) -> Iterator[Prediction]:
    batch: list[PackedPatches] = []
    patches = 0
    for index, document in enumerate(documents):
        packed = _packed(model, document, index)
        if batch and patches + packed.num_patches > patches_per_batch:
            yield from _classify(model, batch)
            batch, patches = [], 0
        batch.append(packed)
        patches += packed.num_patches
    if batch:
        yield from _classify(model, batch)


def _packed(model: BGPTForClassification, document: Document, index: int) -> PackedPatches:
    if isinstance(document, tuple):
        return PackedPatches.from_bytes([document], model.config)
    if isinstance(document, str | bytes | os.PathLike):
        return PackedPatches.from_files([document], model.config)
    if not isinstance(document, PackedPatches) or document.num_documents != 1:
        got = f"a batch of {document.num_documents}" if isinstance(document, PackedPatches) else repr(document)[:80]
        raise TypeError(
            f"predict: documents[{index}]: expected a pair (extension, bytes), a path or a batch of one document, "
            f"got {got}"
        )
    return document


def _classify(model: BGPTForClassification, documents: list[PackedPatches]) -> Iterator[Prediction]:
    logits = _finite(_logits(model, PackedPatches.concatenate(documents)))
    names = list(model.labels)
    for document, shares in zip(documents, logits.softmax(1).tolist(), strict=True):
        best = max(range(len(names)), key=shares.__getitem__)
        yield Prediction(
            names[best], shares[best], dict(zip(names, shares, strict=True)), is_cut=document.truncated > 0
        )


@torch.no_grad()
def _logits(model: BGPTForClassification, batch: PackedPatches) -> Tensor:
    """Float64 [B, n], on the model's device."""
    with evaluation_mode(model), batch_memory("classification", model, batch, "patches_per_batch"):
        return model(batch.to(model.classifier.weight.device)).double()


def _finite(logits: Tensor) -> Tensor:
    if not bool(logits.isfinite().all()):
        raise FloatingPointError(
            "classification: expected finite logits, got NaN or infinity; the weights have diverged: use an earlier "
            "checkpoint"
        )
    return logits


def _checked_truth(function: str, model: BGPTForClassification, batch: LabelledBatch) -> Tensor:
    truth = batch.labels.cpu()
    if len(truth) and not 0 <= int(truth.min()) <= int(truth.max()) < len(model.labels):
        raise ValueError(
            f"{function}: labels: expected classes 0…{len(model.labels) - 1} of the model's label map, got "
            f"{int(truth.min())}…{int(truth.max())}; make the source with labels=model.labels"
        )
    return truth


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
