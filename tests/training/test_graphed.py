"""Gradients of batches filled up to one shape are those of the batches themselves."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import CONFIG as DROPPING
from support.training import RandomSource, losses, make_model, make_trainer
from torch import Tensor

from bgpt_fast.config import BGPTConfig
from bgpt_fast.model import BGPT
from bgpt_fast.patches import PackedPatches
from bgpt_fast.training import NonFiniteLossError, TrainConfig, Trainer
from bgpt_fast.training.graphed import GraphedGradients, Replay

CONFIG = dataclasses.replace(DROPPING, dropout=0.0)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def recorded(step: Replay) -> Replay:
    """On a CPU: runs what is recorded now, as a graph's warm-up does, and again at each replay."""
    step()
    return step


def graphed_gradients(model: BGPT, patches: int = 40, targets: int = 6) -> GraphedGradients:
    record = None if DEVICE == "cuda" else recorded
    return GraphedGradients(model, patches, targets, autocast=False, record=record)


def gradients(model: BGPT) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def batches(count: int) -> list[tuple[PackedPatches, Tensor]]:
    source = RandomSource()
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for _ in range(count):
        batch = source.next_batch()
        targets = batch.target_indices()
        pairs.append((batch, targets[torch.randperm(len(targets), generator=generator)[:6]].sort()[0]))
    return pairs


@pytest.mark.parametrize("patches", [29, 40])
def test_filled_batches_have_their_own_gradients(patches: int) -> None:
    model = make_model(CONFIG).to(DEVICE).train()
    graphed = graphed_gradients(model, patches)
    for batch, targets in batches(5):
        if not graphed.fits(batch, targets):
            assert batch.num_patches > patches or len(targets) < 6
            continue
        model.zero_grad(set_to_none=True)
        output = model(batch.to(DEVICE), targets.to(DEVICE))
        (output.loss * 0.25).backward()
        expected = gradients(model)
        model.zero_grad(set_to_none=False)
        nats = graphed.add(batch, targets, 0.25)
        assert float(nats) == pytest.approx(float(output.nats.double().sum()), rel=1e-6)
        got = gradients(model)
        assert got.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(got[name], gradient, msg=name)


def test_a_batch_with_many_more_documents_is_recorded_anew() -> None:
    """A graph covers twice the documents that it needed at most, because attention pays for each."""
    model = make_model(CONFIG).to(DEVICE).train()
    times: list[int] = []

    def record(step: Replay) -> Replay:
        times.append(len(graphed._inputs.offsets) - 1)
        return recorded(step)

    graphed = GraphedGradients(model, 40, 2, autocast=False, record=record)
    for documents in (1, 1, 9, 7, 13):
        batch = PackedPatches.from_bytes([("bin", b"abc")] * documents, CONFIG)
        targets = batch.target_indices()[:2]
        model.zero_grad(set_to_none=True)
        output = model(batch.to(DEVICE), targets.to(DEVICE))
        output.loss.backward()
        expected = gradients(model)
        model.zero_grad(set_to_none=False)
        graphed.add(batch, targets, 1.0)
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(gradient, expected[name], msg=name)
    assert times == [4, 16]


def test_batches_add_up_and_keep_their_tensors() -> None:
    model = make_model(CONFIG).to(DEVICE).train()
    graphed = graphed_gradients(model)
    (first, first_targets), (second, second_targets) = batches(2)
    graphed.add(first, first_targets, 1.0)
    places = {name: p.grad.data_ptr() for name, p in model.named_parameters() if p.grad is not None}
    alone = gradients(model)
    graphed.add(second, second_targets, 0.0)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, alone[name])
    graphed.add(second, second_targets, 1.0)
    assert any(not torch.equal(gradient, alone[name]) for name, gradient in gradients(model).items())
    assert places == {name: p.grad.data_ptr() for name, p in model.named_parameters() if p.grad is not None}


def test_shapes_that_do_not_fit() -> None:
    graphed = graphed_gradients(make_model(CONFIG).to(DEVICE))
    (batch, targets), *_ = batches(1)
    assert graphed.fits(batch, targets)
    assert not graphed.fits(batch, targets[:5])
    assert not graphed_gradients(make_model(CONFIG).to(DEVICE), batch.num_patches - 1).fits(batch, targets)


class BoundedSource(RandomSource):
    patches_per_batch = 60


def trainer_of(run: Path, source: RandomSource | None = None, config: BGPTConfig = CONFIG, **fields: Any) -> Trainer:
    settings = {"steps": 6, "accumulation": 2, "targets_per_step": 9, "device": DEVICE, "threads": 1, **fields}
    return make_trainer(run, source or BoundedSource(documents=6), model=make_model(config), **settings)


def test_a_run_is_the_same_with_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":
        monkeypatch.setattr("bgpt_fast.training.graphed.cuda_graph", recorded)
        monkeypatch.setattr("bgpt_fast.training.step.CAN_GRAPH", ("cpu", "cuda"))
    trainer_of(tmp_path / "plain").train()
    graphed = trainer_of(tmp_path / "graphed", cuda_graph=True)
    graphed.train()
    assert graphed._train_step.graphed_batches > 6
    for got, expected in zip(losses(tmp_path / "graphed"), losses(tmp_path / "plain"), strict=True):
        assert got == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def graphs_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":
        monkeypatch.setattr("bgpt_fast.training.graphed.cuda_graph", recorded)
        monkeypatch.setattr("bgpt_fast.training.step.CAN_GRAPH", ("cpu", "cuda"))
        monkeypatch.setattr("bgpt_fast.training.step.CAN_READ_LATE", ("cpu", "cuda"))


@pytest.mark.usefixtures("graphs_on_cpu")
def test_a_whole_step_in_the_graph_is_the_same_step(tmp_path: Path) -> None:
    """Recording runs the step once more, which must change nothing."""
    settings = {"accumulation": 1, "grad_clip": 0.1}
    plain = trainer_of(tmp_path / "plain", **settings)
    plain.train()
    graphed = trainer_of(tmp_path / "graphed", cuda_graph=True, **settings)
    graphed.train()
    assert graphed._train_step.graphed_batches > 3
    for got, expected in zip(losses(tmp_path / "graphed"), losses(tmp_path / "plain"), strict=True):
        assert got == pytest.approx(expected, rel=1e-5)
    for name, weight in plain.model.state_dict().items():
        torch.testing.assert_close(graphed.model.state_dict()[name], weight, msg=name)


@pytest.mark.usefixtures("graphs_on_cpu")
def test_a_graph_updates_nothing_after_a_step_that_is_not_finite(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, accumulation=1, cuda_graph=True, save_every=2)
    weight = trainer.model.patch_level_decoder.base.ln_f.weight
    weight.register_hook(lambda gradient: gradient * torch.nan if trainer.step == 2 else gradient)
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.train()
    assert caught.value.step == 3
    assert trainer.step == 2
    latest = trainer.store.load_latest()
    assert latest is not None
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, latest[1].weights[name])


def test_what_cannot_be_recorded_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="cuda_graph: expected targets_per_step"):
        TrainConfig(cuda_graph=True)
    if DEVICE == "cpu":
        with pytest.raises(ValueError, match="cuda_graph: expected a CUDA device, got cpu"):
            trainer_of(tmp_path, cuda_graph=True)
        monkeypatch.setattr("bgpt_fast.training.step.CAN_GRAPH", ("cpu", "cuda"))
    with pytest.raises(ValueError, match="cuda_graph: expected no dropout"):
        trainer_of(tmp_path, config=DROPPING, cuda_graph=True)
    with pytest.raises(ValueError, match="cuda_graph: expected a source with patches_per_batch"):
        trainer_of(tmp_path, RandomSource(), cuda_graph=True)
