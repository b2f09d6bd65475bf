"""Classification of documents: predictions, and how right they are.

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
from bgpt_fast.model import evaluation_mode
from bgpt_fast.patches import PackedPatches

Document = tuple[str, bytes] | PathLike | PackedPatches
"""(extension, content), the path of a file, or a batch of one document."""

_RESAMPLES = 10_000


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one document.

    Args:
        label: the likeliest class.
        probability: of `label`.
        probabilities: of every class by its name, in the label map's order; they add up to 1.
        is_cut: whether the document was longer than the context, so that its head alone was looked at.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    is_cut: bool


@dataclass(frozen=True)
class ClassScore:
    """How right a classifier is on one class; shares in 0…1, None where there is nothing to take a share of.

    Args:
        precision: of the documents that it gave this class, how many are of it.
        recall: of the documents of this class, how many it gave it.
        f1: the harmonic mean of both.
        support: documents of this class.
    """

    precision: float | None
    recall: float | None
    f1: float | None
    support: int


@dataclass(frozen=True, eq=False)
class ClassificationReport:
    """How right a classifier is on N documents.

    Args:
        labels: class names by index.
        confusion: int64 [n, n]: how many documents of class row were given class column.
        interval: the bootstrap's 95 % interval of the accuracy: its 2.5 % and 97.5 % quantiles over resamples of the
            documents. Where all documents are right, or none, it has no width and says nothing.
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
        """Documents that were given their class."""
        return int(self.confusion.trace())

    @property
    def accuracy(self) -> float:
        """correct / documents."""
        return self.correct / self.documents

    @property
    def macro_f1(self) -> float:
        """The mean F1 of the classes that have documents, each class counting alike."""
        scores = [score.f1 for score in self.by_class.values() if score.support]
        return sum(score or 0.0 for score in scores) / len(scores)

    @property
    def by_class(self) -> dict[str, ClassScore]:
        """Scores of every class, in the label map's order."""
        right = self.confusion.diagonal().tolist()
        supports = self.confusion.sum(1).tolist()
        given = self.confusion.sum(0).tolist()
        return {
            label: ClassScore(
                precision=_share(right[index], given[index]),
                recall=_share(right[index], supports[index]),
                f1=_share(2 * right[index], given[index] + supports[index]),
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
        seed: of the bootstrap.

    Raises:
        ValueError: no documents, different numbers of both, or an index that is no class.
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
    # Drawing N documents with replacement and counting the right ones is drawing from a binomial distribution.
    draws = np.random.default_rng(seed).binomial(len(rows), confusion.trace() / len(rows), _RESAMPLES) / len(rows)
    low, high = np.quantile(draws, (0.025, 0.975)).tolist()
    return ClassificationReport(names, confusion, (low, high))


def accuracy_evaluation(
    batches: Sequence[LabelledBatch],
) -> Callable[[BGPTForClassification], dict[str, float]]:
    """An `evaluate` for `Trainer`: the model's loss and accuracy over `batches`.

    Args:
        batches: held-out documents on any device, such as `LabelledSource(..., split="eval").one_pass()` as a list;
            their classes are those of the model's label map.

    Returns:
        A function of the model that gives `loss`, the mean nats a document, and `accuracy`, the share of documents
        that are given their class.

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
        return {"loss": nats / documents, "accuracy": correct / documents}

    return evaluate


def evaluate(model: BGPTForClassification, batches: Iterable[LabelledBatch], *, seed: int = 0) -> ClassificationReport:
    """Scores a classifier on labelled documents.

    Args:
        model: on any device; it runs as in evaluation.
        batches: documents on any device, with classes of the model's label map.
        seed: of the bootstrap.

    Raises:
        FloatingPointError: the model's logits are not finite.
        ValueError: there are no documents, or they are of a class that the model does not have.
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
    """Classifies documents, in packed batches.

    Args:
        model: on any device; it runs as in evaluation.
        documents: pairs (extension, content), paths of files, or batches of one document each. Over-long ones are cut
            to their head; `Prediction.is_cut` says which.
        patches_per_batch: most patches of a batch; a document that has more is a batch of its own.

    Returns:
        A prediction a document, in order; none for none.

    Raises:
        FloatingPointError: the model's logits are not finite.
        OSError, PatchError: a file cannot be read, or is none.
        TypeError, ValueError: a wrong argument.
    """
    return list(predict_iter(model, documents, patches_per_batch=patches_per_batch))


def predict_iter(
    model: BGPTForClassification, documents: Iterable[Document], *, patches_per_batch: int = 2048
) -> Iterator[Prediction]:
    """As `predict`, but a prediction at a time; no more documents are held than a batch has."""
    if isinstance(documents, str | bytes | os.PathLike) or not isinstance(documents, Iterable):
        raise TypeError(f"predict: documents: expected a list of documents, got {type(documents).__name__}")
    if patches_per_batch < 1:
        raise ValueError(f"predict: patches_per_batch: expected at least 1, got {patches_per_batch}")
    return _predictions(model, documents, patches_per_batch)


def _predictions(
    model: BGPTForClassification, documents: Iterable[Document], patches_per_batch: int
) -> Iterator[Prediction]:
    waiting: list[PackedPatches] = []
    patches = 0
    for index, document in enumerate(documents):
        packed = _packed(model, document, index)
        if waiting and patches + packed.num_patches > patches_per_batch:
            yield from _classify(model, waiting)
            waiting, patches = [], 0
        waiting.append(packed)
        patches += packed.num_patches
    if waiting:
        yield from _classify(model, waiting)


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
    with evaluation_mode(model):
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
