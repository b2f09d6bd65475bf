"""BGPTFastForSequenceClassification: the logits of BGPTForClassification behind the interface of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import randomised
from torch.nn import functional as F

pytest.importorskip("transformers")
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from bgpt_fast import BGPTConfig, BGPTForClassification, PackedPatches
from bgpt_fast.hf import BGPTFastConfig, BGPTFastForSequenceClassification

LABELS = {"cat": 0, "dog": 1, "owl": 2}
TEXTS = ["meow meow", "woof", "hoo"]


@pytest.fixture
def classifier(tiny_config: BGPTConfig) -> BGPTForClassification:
    torch.manual_seed(0)
    return randomised(BGPTForClassification(tiny_config, LABELS))


def test_logits_loss_and_labels(classifier: BGPTForClassification, tmp_path: Path) -> None:
    classifier.save_pretrained(tmp_path / "model", hf=True, extension="wav")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert isinstance(model, BGPTFastForSequenceClassification)
    assert model.config.id2label == {0: "cat", 1: "dog", 2: "owl"}
    assert model.config.num_labels == 3
    assert not model.training
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    targets = torch.tensor([0, 1, 1])
    out = model(**tokenizer(TEXTS, padding=True, return_tensors="pt"), labels=targets)
    batch = PackedPatches.from_bytes([("wav", text.encode()) for text in TEXTS], classifier.config)
    expected = classifier(batch)
    torch.testing.assert_close(out.logits, expected)
    torch.testing.assert_close(out.loss, F.cross_entropy(expected, targets))


def test_pipeline(classifier: BGPTForClassification, tmp_path: Path) -> None:
    classifier.save_pretrained(tmp_path / "model", hf=True)
    results = pipeline("text-classification", model=str(tmp_path / "model"))(TEXTS, batch_size=3)
    batch = PackedPatches.from_bytes([("txt", text.encode()) for text in TEXTS], classifier.config)
    expected = classifier(batch).softmax(1)
    assert [result["label"] for result in results] == [list(LABELS)[int(row.argmax())] for row in expected]
    assert [result["score"] for result in results] == pytest.approx(expected.amax(1).tolist(), rel=1e-4)


def test_a_new_classifier_has_the_labels_of_its_config(tiny_config: BGPTConfig) -> None:
    config = BGPTFastConfig(tiny_config.to_dict(), num_labels=4)
    model = AutoModelForSequenceClassification.from_config(config)
    assert model.model.labels == {f"LABEL_{index}": index for index in range(4)}
