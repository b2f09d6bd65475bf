"""Predictions and scores of classifiers, against plain computations and by hand."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bgpt_fast import BGPTConfig, BGPTForClassification, PackedPatches
from bgpt_fast.data import LabelledBatch, LabelledSource
from bgpt_fast.documents import PatchError
from bgpt_fast.tasks.classification import accuracy_evaluation, evaluate, predict, predict_iter, score

CONFIG = BGPTConfig(patch_size=4, patch_length=12, hidden_size=16, patch_num_layers=1, byte_num_layers=1, num_heads=2)
LABELS = {"a.txt": 0, "b.txt": 1, "c.bin": 2}
MAX_BYTES = 4 * (12 - 2)
"""The most bytes of a document that is not cut."""


@pytest.fixture
def model() -> BGPTForClassification:
    torch.manual_seed(0)
    model = BGPTForClassification(CONFIG, LABELS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return model.eval()


def documents(seed: int, count: int = 30) -> list[tuple[str, bytes]]:
    generator = np.random.default_rng(seed)
    return [(("txt", "bin", "")[index % 3], generator.bytes(int(generator.integers(0, 60)))) for index in range(count)]


def labelled(seed: int, count: int = 30) -> list[LabelledBatch]:
    classes = np.random.default_rng(seed).integers(0, 3, count)
    pieces = [slice(0, 7), slice(7, 8), slice(8, count)]
    inputs = documents(seed, count)
    return [
        LabelledBatch(PackedPatches.from_bytes(inputs[piece], CONFIG), torch.from_numpy(classes[piece]))
        for piece in pieces
    ]


def one_at_a_time(model: BGPTForClassification, inputs: list[tuple[str, bytes]]) -> torch.Tensor:
    """Probabilities [N, n] of documents that share no batch."""
    with torch.no_grad():
        logits = [model(PackedPatches.from_bytes([document], model.config))[0] for document in inputs]
    return torch.stack(logits).double().softmax(1)


@pytest.mark.parametrize("patches_per_batch", [1, 20, 10**6])
def test_predictions_are_those_of_each_document_alone(model: BGPTForClassification, patches_per_batch: int) -> None:
    inputs = documents(0)
    predictions = predict(model, inputs, patches_per_batch=patches_per_batch)
    expected = one_at_a_time(model, inputs)
    shares = torch.tensor([list(one.probabilities.values()) for one in predictions], dtype=torch.float64)
    torch.testing.assert_close(shares, expected, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(shares, expected.roll(1, 0), rtol=1e-2), "another document's would show"
    for one, row in zip(predictions, expected, strict=True):
        assert list(one.probabilities) == list(LABELS)
        assert one.label == list(LABELS)[int(row.argmax())]
        assert one.probability == max(one.probabilities.values())
        assert sum(one.probabilities.values()) == pytest.approx(1, abs=1e-12)
    assert [one.is_cut for one in predictions] == [len(content) > MAX_BYTES for _, content in inputs]
    assert any(one.is_cut for one in predictions)


def test_batches_are_filled_up_to_the_limit(model: BGPTForClassification, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    forward = BGPTForClassification.forward
    monkeypatch.setattr(
        BGPTForClassification, "forward", lambda self, b: sizes.append(b.num_patches) or forward(self, b)
    )
    predict(model, [("txt", b"abcd")] * 10, patches_per_batch=9)
    assert sizes == [9, 9, 9, 3]
    sizes.clear()
    predict(model, [("txt", bytes(100)), ("txt", b"")], patches_per_batch=9)
    assert sizes == [12, 2], "a longer document is a batch of its own"


def test_predictions_stream(model: BGPTForClassification) -> None:
    samples = []

    def endless() -> Any:
        while True:
            samples.append(None)
            yield ("txt", b"abcd")

    stream = predict_iter(model, endless(), patches_per_batch=9)
    for _ in range(7):
        next(stream)
    assert len(samples) <= 10


def test_a_truncated_document_is_classified_by_its_head(model: BGPTForClassification) -> None:
    content = np.random.default_rng(1).bytes(1000)
    alive = PackedPatches.from_bytes([("txt", content)], CONFIG).to_bytes()[0][1]
    [cut] = predict(model, [("txt", content)])
    [whole] = predict(model, [("txt", alive[:MAX_BYTES])])
    assert len(alive) < 1000
    assert cut.is_cut
    assert not whole.is_cut
    [again] = predict(model, [("txt", alive + b"another tail")])
    assert again.probabilities == cut.probabilities


def test_predictions_of_files(tmp_path: Path, model: BGPTForClassification) -> None:
    paths = [tmp_path / "a.txt", tmp_path / os.fsdecode(b"\xff\xfe.b\xff"), tmp_path / "empty"]
    for path, content in zip(paths, (b"hello", b"\x00\xff" * 9, b""), strict=True):
        path.write_bytes(content)
    inputs = [("txt", b"hello"), (os.fsdecode(b"b\xff"), b"\x00\xff" * 9), ("", b"")]
    expected = predict(model, inputs)
    assert predict(model, paths) == expected
    assert predict(model, [os.fsencode(path) for path in paths]) == expected
    assert predict(model, [PackedPatches.from_bytes([document], CONFIG) for document in inputs]) == expected
    with pytest.raises(FileNotFoundError, match="nowhere"):
        predict(model, [tmp_path / "nowhere"])
    with pytest.raises(PatchError, match="got a folder"):
        predict(model, [tmp_path])


def test_wrong_documents_are_named(model: BGPTForClassification) -> None:
    assert predict(model, []) == []
    for wrong, error, message in (
        ("path.txt", TypeError, "documents: expected a list of documents, got str"),
        (3, TypeError, "documents: expected a list of documents, got int"),
        ([3], TypeError, r"documents\[0\]: expected a pair .* got 3"),
        ([("txt", b""), ("txt",)], TypeError, "expected a pair"),
        ([PackedPatches.from_bytes(documents(0, 2), CONFIG)], TypeError, r"\[0\]: .* got a batch of 2"),
        ([PackedPatches.from_bytes([("", b"")], BGPTConfig())], ValueError, "patches of 4 bytes, got 16"),
    ):
        with pytest.raises(error, match=message):
            predict(model, wrong)
    with pytest.raises(ValueError, match="patches_per_batch: expected at least 1, got 0"):
        predict(model, [], patches_per_batch=0)


def test_prediction_restores_the_training_mode() -> None:
    model = BGPTForClassification(BGPTConfig(**{**CONFIG.to_dict(), "dropout": 0.5}), LABELS)
    model.patch_level_decoder.eval()
    first = predict(model, documents(0))
    assert first == predict(model, documents(0)), "no dropout"
    assert evaluate(model, labelled(0)).to_dict() == evaluate(model, labelled(0)).to_dict()
    assert model.training
    assert not model.patch_level_decoder.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_weights_that_diverged_are_named(model: BGPTForClassification) -> None:
    model.classifier.weight.data[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="expected finite logits"):
        predict(model, documents(0))
    with pytest.raises(FloatingPointError, match="expected finite logits"):
        evaluate(model, labelled(0))


def test_loss_and_accuracy_count_documents(model: BGPTForClassification) -> None:
    batches = labelled(3)
    truth = torch.cat([batch.labels for batch in batches])
    expected = one_at_a_time(model, documents(3))
    figures = accuracy_evaluation(batches)(model)
    nats = -expected[torch.arange(30), truth].log()
    assert figures.keys() == {"loss", "accuracy", "documents"}
    assert figures["documents"] == 30
    assert figures["loss"] == pytest.approx(float(nats.mean()), rel=1e-5)
    assert figures["accuracy"] == float((expected.argmax(1) == truth).double().mean())
    by_batch = [float(piece.mean()) for piece in nats.split([7, 1, 22])]
    assert figures["loss"] != pytest.approx(sum(by_batch) / 3, rel=1e-3), "the mean of batches' means is another"
    report = evaluate(model, iter(batches))
    assert report.accuracy == figures["accuracy"]
    assert report.documents == 30


def test_evaluation_refuses_unknown_classes(model: BGPTForClassification) -> None:
    for nothing in ([], [LabelledBatch(PackedPatches.from_bytes([], CONFIG), torch.empty(0, dtype=torch.int64))]):
        with pytest.raises(ValueError, match="expected at least one document, got none"):
            accuracy_evaluation(nothing)
    with pytest.raises(ValueError, match="at least 1, got 0 and 0"):
        evaluate(model, [])
    other = [LabelledBatch(PackedPatches.from_bytes(documents(0, 2), CONFIG), torch.tensor([0, 3]))]
    for score_it in (accuracy_evaluation(other), lambda model: evaluate(model, other)):
        with pytest.raises(ValueError, match=r"expected classes 0…2 of the model's label map, got 0…3.*labels=model"):
            score_it(model)


def test_a_report_by_hand() -> None:
    truth = [0] * 6 + [1] * 3 + [2]
    predicted = [0, 0, 0, 0, 1, 1, 1, 1, 0, 0]
    report = score(["a", "b", "c", "d"], truth, predicted)
    assert report.confusion.tolist() == [[4, 2, 0, 0], [1, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert report.confusion.dtype == np.int64
    assert (report.documents, report.correct, report.accuracy) == (10, 6, 0.6)
    a, b, c, d = report.by_class.values()
    assert (a.precision, a.recall, a.f1, a.support) == (4 / 6, 4 / 6, 8 / 12, 6)
    assert (b.precision, b.recall, b.f1, b.support) == (2 / 4, 2 / 3, 4 / 7, 3)
    assert (c.precision, c.recall, c.f1, c.support) == (None, 0.0, 0.0, 1)
    assert (d.precision, d.recall, d.f1, d.support) == (None, None, None, 0)
    assert report.macro_f1 == pytest.approx((8 / 12 + 4 / 7 + 0) / 3)
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["by_class"]["b"]["support"] == 3
    assert plain["confusion"] == report.confusion.tolist()
    assert plain["accuracy_interval"] == list(report.interval)


def test_the_interval_is_the_bootstraps() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 3, 200)
    predicted = np.where(generator.random(200) < 0.8, truth, (truth + 1) % 3)
    report = score(LABELS, truth.tolist(), predicted.tolist())
    right = (truth == predicted).astype(float)
    resampled = right[generator.integers(0, 200, (20_000, 200))].mean(1)
    # Two bootstraps of this size differ by a document or less.
    assert report.interval == pytest.approx(np.quantile(resampled, (0.025, 0.975)).tolist(), abs=1 / 200)
    assert report.interval[0] < report.accuracy < report.interval[1]
    again = score(LABELS, truth.tolist(), predicted.tolist())
    assert again.interval == report.interval
    assert score(["a"], [0], [0]).interval == (1.0, 1.0)
    assert score(["a", "b"], [0], [1]).interval == (0.0, 0.0)


def test_wrong_scores_are_named() -> None:
    for truth, predicted, message in (
        ([], [], "at least 1, got 0 and 0"),
        ([0], [0, 1], "got 2 and 1"),
        ([0, 3], [0, 0], r"truth: expected classes 0…2, got 0…3"),
        ([0, 0], [0, -1], r"predicted: expected classes 0…2, got -1…0"),
    ):
        with pytest.raises(ValueError, match=message):
            score(LABELS, truth, predicted)


def test_a_few_steps_learn_what_the_classes_are(tmp_path: Path) -> None:
    """The source's label map, the loss and the scores fit together: two easy classes are told apart."""
    generator = np.random.default_rng(0)
    for index in range(40):
        content = generator.integers(0, 128, 20) + 128 * (index % 2)
        (tmp_path / f"{('low', 'high')[index % 2]}_{index}.bin").write_bytes(content.astype(np.uint8).tobytes())
    arguments: dict[str, Any] = {"seed": 1, "eval_share": 0.4}
    train = LabelledSource(tmp_path, CONFIG, 64, split="train", **arguments)
    held_out = list(LabelledSource(tmp_path, CONFIG, 64, split="eval", labels=train.labels, **arguments).one_pass())
    torch.manual_seed(0)
    model = BGPTForClassification(CONFIG, train.labels)
    before = accuracy_evaluation(held_out)(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(40):
        batch = train.next_batch()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(batch.batch), batch.labels).backward()
        optimizer.step()
    assert before["loss"] > 0.5
    assert accuracy_evaluation(held_out)(model)["loss"] < 0.2
    assert evaluate(model, held_out).accuracy > 0.9
