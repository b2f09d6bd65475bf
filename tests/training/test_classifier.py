"""`Trainer` with a classifier: what a step minimises, its figures, and a run that goes on."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from support.training import CONFIG as DROPPING
from support.training import RandomSource, fingerprint, log_lines, make_trainer
from torch.nn import functional as F

from bgpt_fast import BGPTForClassification
from bgpt_fast.data import LabelledBatch
from bgpt_fast.patches import PackedPatches
from bgpt_fast.training import NonFiniteLossError, TrainConfig, Trainer, TrainingInterrupted
from bgpt_fast.training.checkpoint_store import CheckpointStore

CONFIG = dataclasses.replace(DROPPING, dropout=0.0)
LABELS = {"low.bin": 0, "high.bin": 1, "mixed.bin": 2}


class LabelledBytes(RandomSource):
    """Seeded batches of documents whose bytes tell their class."""

    def next_batch(self) -> LabelledBatch:  # type: ignore[override]
        stream = random.Random(self.position)
        self.position += 1
        labels = [stream.randrange(3) for _ in range(self.documents)]
        ranges = [(0, 99), (156, 255), (0, 255)]
        bodies = [bytes(stream.randint(*ranges[label]) for _ in range(stream.randrange(12, 40))) for label in labels]
        batch = PackedPatches.from_bytes([("bin", body) for body in bodies], CONFIG)
        return LabelledBatch(batch, torch.tensor(labels))


def trainer_of(
    run: Path, source: Any = None, labels: dict[str, int] = LABELS, config: Any = CONFIG, **fields: Any
) -> Trainer:
    torch.manual_seed(0)
    model = BGPTForClassification(config, labels)
    fields = {"steps": 6, "threads": 1, **fields}
    return make_trainer(run, source or LabelledBytes(documents=5), model=model, **fields)


def test_a_step_minimises_the_mean_over_documents(tmp_path: Path) -> None:
    torch.manual_seed(0)
    expected = BGPTForClassification(CONFIG, LABELS).train()
    trainer = trainer_of(tmp_path, steps=1, accumulation=2, grad_clip=0.0)
    source = LabelledBytes(documents=5)
    batches = [source.next_batch() for _ in range(2)]
    logits = torch.cat([expected(batch.batch) for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    trainer.train()
    (line,) = log_lines(tmp_path)
    assert line["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert line["accuracy"] == float((logits.argmax(1) == labels).double().mean())
    assert line["documents"] == 10
    assert "bits_per_byte" not in line
    norm = torch.cat([p.grad.flatten() for p in expected.parameters() if p.grad is not None]).norm()
    assert line["grad_norm"] == pytest.approx(float(norm), rel=1e-5)


def test_it_learns(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, steps=60, learning_rate=1e-2)
    trainer.train()
    assert sum(line["accuracy"] for line in log_lines(tmp_path)[-10:]) / 10 > 0.85


def test_a_resumed_classifier_is_the_same_run_and_keeps_its_labels(tmp_path: Path) -> None:
    straight = trainer_of(tmp_path / "straight", config=DROPPING)
    straight.train()
    first = trainer_of(tmp_path / "resumed", config=DROPPING)
    stop = first._agree
    first._agree = lambda interrupts: 15 if first.step == 3 else stop(interrupts)  # type: ignore[method-assign]
    with pytest.raises(TrainingInterrupted):
        first.train()
    resumed = trainer_of(tmp_path / "resumed", config=DROPPING)
    resumed.train()
    assert fingerprint(resumed) == fingerprint(straight)
    saved = BGPTForClassification.from_pretrained(resumed.store.path(6))
    assert saved.labels == LABELS
    with pytest.raises(ValueError, match="holds a run with other classes"):
        trainer_of(tmp_path / "resumed", labels={"low.bin": 1, "high.bin": 0, "mixed.bin": 2})
    with pytest.raises(ValueError, match="holds a run with other classes: expected None"):
        make_trainer(tmp_path / "resumed")


def test_a_batch_that_is_not_finite_is_written_with_its_labels(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    with torch.no_grad():
        trainer.model.classifier.weight.fill_(torch.nan)  # type: ignore[union-attr, operator]
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.train()
    batch_file = safetensors.torch.load_file(caught.value.batch_path)
    batch = LabelledBytes(documents=5).next_batch()
    assert torch.equal(batch_file["0.labels"], batch.labels)
    assert torch.equal(batch_file["0.patches"], torch.as_tensor(batch.batch.patches))


def test_a_source_with_other_classes_is_refused(tmp_path: Path) -> None:
    source = LabelledBytes(documents=5)
    source.labels = dict(LABELS)  # type: ignore[attr-defined]
    trainer_of(tmp_path, source, steps=1).train()
    source.labels = {"low.bin": 1, "high.bin": 0, "mixed.bin": 2}  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"source: expected the model's classes .*'low.bin': 0.* got .*'low.bin': 1"):
        trainer_of(tmp_path, source)


def test_stop_at_ends_the_run_and_a_new_start_stays_ended(tmp_path: Path) -> None:
    scores = iter([0.2, 0.6, 0.9, 0.95])

    fields = {"steps": 20, "eval_every": 2, "best_metric": "accuracy", "best_is": "highest", "stop_at": 0.9}
    for _ in range(2):
        result = make_trainer(tmp_path, evaluate=lambda model: {"accuracy": next(scores)}, **fields).train()
        assert (result.steps, result.stopped_by) == (6, "target")
    assert CheckpointStore(tmp_path / "checkpoints").pointed("best") == 6
    with pytest.raises(ValueError, match="stop_at: expected None where there is no best_metric"):
        TrainConfig(stop_at=0.9)
