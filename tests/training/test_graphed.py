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

from bgpt_fast.config import NOTAGEN_ALPHABET, BGPTConfig
from bgpt_fast.model import BGPT
from bgpt_fast.patches import PackedPatches
from bgpt_fast.training import NonFiniteLossError, Trainer
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


def check_gradients(graphed: GraphedGradients, batch: PackedPatches, targets: Tensor, weight: float = 1.0) -> None:
    """Compares the gradients and the nats with those of the batch itself."""
    model = graphed._model
    model.zero_grad(set_to_none=True)
    output = model(batch.to(DEVICE), targets.to(DEVICE))
    (output.loss * weight).backward()
    expected = gradients(model)
    model.zero_grad(set_to_none=False)
    nats = graphed.add(batch, targets, weight)
    assert float(nats) == pytest.approx(float(output.nats.double().sum()), rel=1e-6)
    got = gradients(model)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, msg=name)


@pytest.mark.parametrize("chunk", [4, 2048])
@pytest.mark.parametrize("most", [(29, 6), (40, 40)], ids=str)
def test_filled_batches_have_their_own_gradients(
    most: tuple[int, int], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bgpt_fast.byte_decoder.CHUNK", chunk)
    monkeypatch.setattr("bgpt_fast.byte_decoder.LARGE_CHUNK", chunk)
    graphed = graphed_gradients(make_model(CONFIG).to(DEVICE).train(), *most)
    fitting = 0
    for index, (batch, targets) in enumerate(batches(5)):
        if graphed.fits(batch, targets):
            fitting += 1
            check_gradients(graphed, batch, targets[index:], 0.25)
        else:
            assert batch.num_patches > most[0]
    assert fitting >= 2


def test_neither_the_pad_of_an_alphabet_nor_targets_that_fill_are_in_the_loss() -> None:
    config = dataclasses.replace(CONFIG, **NOTAGEN_ALPHABET)
    patches = torch.randint(0, 9, (9, config.patch_size), generator=torch.Generator().manual_seed(0)).short()
    patches[5] = config.pad
    batch = PackedPatches(patches, torch.tensor([0, 4, 9], dtype=torch.int32))
    graphed = graphed_gradients(make_model(config).to(DEVICE).train(), 40, 40)
    for targets in ([1, 2, 3, 5, 7, 8], [2, 6], [5]):
        check_gradients(graphed, batch, torch.tensor(targets))


def test_a_batch_is_filled_to_the_next_of_a_few_sizes_and_each_is_recorded_once() -> None:
    """With `targets` as many as patches: all targets of a batch."""
    shapes: list[tuple[int, int]] = []

    def record(step: Replay) -> Replay:
        shapes.append((len(graphed._inputs.patches), len(graphed._inputs.targets)))
        return recorded(step)

    graphed = GraphedGradients(make_model(CONFIG).to(DEVICE).train(), 160, 160, autocast=False, record=record)
    for sizes in ([40] * 10, [40] * 9 + [30], [50] * 10, [3], [40] * 10):
        batch = PackedPatches.from_bytes([("bin", bytes(size)) for size in sizes], CONFIG)
        assert graphed.fits(batch, batch.target_indices())
        check_gradients(graphed, batch, batch.target_indices())
    # 10 · (1 + 10 + 1) patches, 3 fewer, 10 · (1 + 13 + 1), then 3; all but the first of each document are targets.
    assert shapes == [(120, 110), (150, 140), (10, 10)]


def test_a_batch_with_many_more_documents_is_recorded_anew() -> None:
    """A graph covers twice the documents that it needed at most, because attention pays for each."""
    times: list[int] = []

    def record(step: Replay) -> Replay:
        times.append(len(graphed._inputs.offsets) - 1)
        return recorded(step)

    graphed = GraphedGradients(make_model(CONFIG).to(DEVICE).train(), 640, 2, autocast=False, record=record)
    for documents in (1, 1, 9, 7, 13):
        batch = PackedPatches.from_bytes([("bin", b"abc")] * documents, CONFIG)
        check_gradients(graphed, batch, batch.target_indices()[:2])
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
    assert graphed.fits(batch, targets[:5])
    assert not graphed.fits(batch, targets[:0])
    assert not graphed_gradients(make_model(CONFIG).to(DEVICE), targets=5).fits(batch, targets)
    assert not graphed_gradients(make_model(CONFIG).to(DEVICE), batch.num_patches - 1).fits(batch, targets)


class BoundedSource(RandomSource):
    patches_per_batch = 60


def trainer_of(run: Path, source: RandomSource | None = None, config: BGPTConfig = CONFIG, **fields: Any) -> Trainer:
    settings = {"steps": 6, "accumulation": 2, "targets_per_step": 9, "device": DEVICE, "threads": 1, **fields}
    return make_trainer(run, source or BoundedSource(documents=6), model=make_model(config), **settings)


def test_a_run_is_the_same_with_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":
        monkeypatch.setattr("bgpt_fast.training.graphed.graph_recorder", lambda: recorded)
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
        monkeypatch.setattr("bgpt_fast.training.graphed.graph_recorder", lambda: recorded)
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
    if DEVICE == "cpu":
        with pytest.raises(ValueError, match="cuda_graph: expected a CUDA device, got cpu"):
            trainer_of(tmp_path, cuda_graph=True)
        monkeypatch.setattr("bgpt_fast.training.step.CAN_GRAPH", ("cpu", "cuda"))
    with pytest.raises(ValueError, match="cuda_graph: expected no dropout"):
        trainer_of(tmp_path, config=DROPPING, cuda_graph=True)
    with pytest.raises(ValueError, match="cuda_graph: expected a source with patches_per_batch"):
        trainer_of(tmp_path, RandomSource(), cuda_graph=True)
