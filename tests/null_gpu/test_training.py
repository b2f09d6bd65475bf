"""Training on the null GPU: what a step launches, and that nothing waits or is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import CONFIG as DROPPING
from support.training import RandomSource, log_lines, make_trainer

from bgpt_fast import BGPT, BGPTForClassification, PackedPatches
from bgpt_fast.data.labelled import LabelledBatch
from bgpt_fast.device import HostCopy
from tools.null_gpu.log import Kind, Log, counts, launches, waits
from tools.null_gpu.step import measure

CONFIG = dataclasses.replace(DROPPING, dropout=0.0)
"""With dropout, and in float32, attention's groups depend on lengths that no kernel has computed."""
CUDA: dict[str, Any] = {"device": "cuda", "steps": 4, "precision": "bf16"}


def batch_on_gpu() -> PackedPatches:
    return RandomSource(documents=20).next_batch().to("cuda")


def test_a_step_in_bfloat16_does_not_wait(log: Log) -> None:
    model = BGPT(CONFIG).cuda().train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    batch = batch_on_gpu()

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step()
    first = len(log)
    step()
    events = log.events(first)
    assert not waits(events)
    assert counts(events)["allocate"] == 0
    names = {event.name for event in events if event.kind is Kind.KERNEL}
    assert {"_layer_norm_bwd_kernel", "_byte_attention_bwd_kernel", "_one_hot_sums_kernel"} <= names
    assert any("flash_bwd" in name for name in names)
    assert any("patch_embed" in name for name in names)  # this project's own CUDA


def test_figures_that_no_kernel_computed_are_read_as_finite() -> None:
    values = torch.tensor([float("nan"), -float("inf"), 2.0]).cuda()
    assert HostCopy(values).tolist() == [0.0, 0.0, 2.0]


def test_every_step_of_a_shape_launches_the_same(log: Log) -> None:
    model, batch = BGPT(CONFIG).cuda().train(), batch_on_gpu()
    keys = []
    for _ in range(3):
        first = len(log)
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(batch).loss
        loss.backward()
        keys.append([event.key for event in log.events(first) if event.kind is not Kind.ALLOCATE])
    assert keys[1] == keys[2]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"accumulation": 3, "targets_per_step": 5},
        {"activation_checkpointing": True},
        {"optimizer": "muon", "learning_rate": 1e-3},
        {"prefetch": 2},
    ],
    ids=["plain", "accumulation", "checkpointing", "muon", "prefetch"],
)
def test_the_trainer_runs(fields: dict[str, Any], tmp_path: Path, log: Log) -> None:
    first = len(log)
    trainer = make_trainer(tmp_path, model=BGPT(CONFIG), **CUDA, **fields)
    trainer.train()
    assert trainer.step == 4
    assert launches(log.events(first)) > 400


def test_the_trainer_profiles(tmp_path: Path, log: Log) -> None:
    make_trainer(tmp_path, model=BGPT(CONFIG), **CUDA, profile_steps=1, profile_after=1).train()
    assert (tmp_path / "profile.json").exists()


def test_a_run_resumes(tmp_path: Path, log: Log) -> None:
    make_trainer(tmp_path, model=BGPT(CONFIG), **CUDA).train()
    trainer = make_trainer(tmp_path, model=BGPT(CONFIG), **CUDA | {"steps": 6})
    assert trainer.resumed
    trainer.train()
    assert [line["step"] for line in log_lines(tmp_path) if line["kind"] == "train"] == list(range(1, 7))


class LabelledSource(RandomSource):
    def next_batch(self) -> LabelledBatch:  # type: ignore[override]
        batch = super().next_batch()
        return LabelledBatch(batch, torch.arange(batch.num_documents) % 2)


def test_the_classifier_trains(tmp_path: Path, log: Log) -> None:
    torch.manual_seed(0)
    model = BGPTForClassification(CONFIG, {"a": 0, "b": 1})
    make_trainer(tmp_path, LabelledSource(), model=model, **CUDA).train()


class EqualBatches(RandomSource):
    """Always the same batch, so that it fits a graph."""

    patches_per_batch = 40

    def next_batch(self) -> PackedPatches:
        self.position = 0
        return super().next_batch()


def test_the_graphed_step_is_one_launch(tmp_path: Path, log: Log) -> None:
    trainer = make_trainer(tmp_path, EqualBatches(), model=BGPT(CONFIG), **CUDA, cuda_graph=True, targets_per_step=4)
    first = len(log)
    trainer.train()
    graphs = [event for event in log.events(first) if event.kind is Kind.GRAPH]
    assert len(graphs) == 4
    inside = log.graph(graphs[0].graph)
    assert launches(inside) > 50
    assert not waits(inside)


def test_a_graphed_step_is_a_copy_a_graph_and_a_copy() -> None:
    report = measure(CONFIG, 512, precision="bf16", cuda_graph=True, targets_per_step=480)
    # Inputs, two learning rates, the graph, figures.
    assert report.launches <= 5
    assert report.waits == {"cudaEventSynchronize of earlier work": 1}
    assert not report.refused


def test_a_graph_in_float32_is_refused_by_name(tmp_path: Path) -> None:
    fields = CUDA | {"precision": "fp32", "cuda_graph": True, "targets_per_step": 4}
    with pytest.raises(ValueError, match="cuda_graph: expected precision='bf16' on a GPU, got 'fp32'"):
        make_trainer(tmp_path, EqualBatches(), model=BGPT(CONFIG), **fields)


def test_launches_do_not_grow_with_the_batch(log: Log) -> None:
    """Up to 8,192 patches the byte decoder is one chunk."""
    model = BGPT(CONFIG).cuda().train()
    numbers = []
    for documents in (64, 512, 512):
        batch = PackedPatches.from_bytes([("bin", bytes(14 * 4))] * documents, CONFIG).to("cuda")
        model.zero_grad(set_to_none=True)
        first = len(log)
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(batch).loss
        loss.backward()
        numbers.append(launches(log.events(first)))
    assert batch.num_patches == 8192
    # Only sums over splits of the rows come with more rows; chunks of 2,048 would double the launches.
    assert numbers[2] < 1.2 * numbers[0]


def test_the_trainers_step_waits_for_the_one_before_and_fills_nothing_in_vain() -> None:
    report = measure(CONFIG, 512, precision="bf16")
    assert report.waits == {"cudaEventSynchronize of earlier work": 1}
    assert not report.refused
    rows, hidden = 512 * CONFIG.patch_size, 4 * CONFIG.hidden_size
    zeros = report.gpu_seconds_of.get("aten.zeros.default", 0.0)
    assert zeros <= 2e-6 * report.kernels.get("aten.zeros.default", 0) + rows * hidden * 2 / 4.3e12
