"""Training on the null GPU: what a step launches, and that nothing waits or is refused."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import CONFIG as DROPPING
from support.training import RandomSource, log_lines, make_trainer

from bgpt_fast import BGPT, BGPTConfig, BGPTForClassification, PackedPatches
from bgpt_fast.data import Prefetcher
from bgpt_fast.data.labelled import LabelledBatch
from bgpt_fast.device import HostCopy
from bgpt_fast.kernels.patch_attention.op import patch_attention
from bgpt_fast.training.graphed import GraphedGradients
from tools.null_gpu.log import Event, Kind, Log, counts, launches, waits
from tools.null_gpu.recorder import recording
from tools.null_gpu.step import measure

CONFIG = dataclasses.replace(DROPPING, dropout=0.0)
CUDA: dict[str, Any] = {"device": "cuda", "steps": 4, "precision": "bf16"}


def batch_on_gpu() -> PackedPatches:
    return RandomSource(documents=20).next_batch().to("cuda")


def events_of_a_step(log: Log, config: BGPTConfig, precision: str = "bf16") -> list[Event]:
    """A step after a first one."""
    model = BGPT(config).cuda().train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    batch = batch_on_gpu()

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step()
    first = len(log)
    step()
    return log.events(first)


def test_a_step_in_bfloat16_does_not_wait(log: Log) -> None:
    events = events_of_a_step(log, CONFIG)
    assert not waits(events)
    assert counts(events)["allocate"] == 0
    names = {event.name for event in events if event.kind is Kind.KERNEL}
    assert {"_layer_norm_bwd_kernel", "_byte_attention_bwd_kernel", "_one_hot_sums_kernel"} <= names
    assert any("flash_bwd" in name for name in names)
    assert any("patch_embed" in name for name in names)  # this project's own CUDA


@pytest.mark.parametrize(("config", "precision"), [(CONFIG, "fp32"), (DROPPING, "bf16"), (DROPPING, "fp32")])
def test_attention_by_groups_does_not_wait(config: BGPTConfig, precision: str, log: Log) -> None:
    """In float32 and with dropout documents of different lengths are grouped on the CPU."""
    events = events_of_a_step(log, config, precision)
    assert not waits(events)
    copies = counts(events)["copy_to_device"]
    deeper = dataclasses.replace(config, patch_num_layers=config.patch_num_layers + 2)
    assert counts(events_of_a_step(log, deeper, precision))["copy_to_device"] == copies > 0  # once, not in each layer


def test_attention_is_predicted_by_its_operations(log: Log) -> None:
    q, k, v = (torch.zeros(256, 2, 64, dtype=torch.bfloat16, device="cuda", requires_grad=True) for _ in range(3))
    cu_seqlens = torch.arange(0, 257, 64, dtype=torch.int32, device="cuda")
    first = len(log)
    with recording(log) as record:
        patch_attention(q, k, v, cu_seqlens, 64).sum().backward()
    work = {each.name: each for each in record.work_of(first, log.events(first)) if each is not None}
    forward = 2 * 256 * 64 * 2 * 64
    launched = Counter(each.name for each in record.work_of(first, log.events(first)) if each is not None)
    for name, flops in (("flash_documents_attention", forward), ("flash_documents_attention_backward", 2.5 * forward)):
        overload = f"bgpt_fast.{name}.default"
        assert work[overload].flops * launched[overload] == pytest.approx(flops)


def test_no_layer_fills_a_tensor_with_zeros(log: Log) -> None:
    """Neither gradients that are written next, nor those of outputs that have none."""
    fills, launched = [], []
    for depth in (1, 3):
        config = dataclasses.replace(CONFIG, patch_num_layers=depth, byte_num_layers=depth)
        events = events_of_a_step(log, config)
        fills.append(sum("FillFunctor" in event.name for event in events))
        launched.append(launches(events))
    assert fills[0] == fills[1]
    # A patch layer and a byte layer have 60 together; they had 71 while they filled 11 tensors.
    assert launched[1] - launched[0] <= 2 * 60


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


@pytest.mark.parametrize("prefetch", [0, 2])
def test_batches_are_copied_beside_the_step(prefetch: int, tmp_path: Path, log: Log) -> None:
    """From page-locked memory, on a stream that no kernel runs on; so the copies need not wait for the step before."""
    first = len(log)
    make_trainer(tmp_path, model=BGPT(CONFIG), **CUDA | {"steps": 6}, prefetch=prefetch).train()
    events = log.events(first)
    copies = [event for event in events if event.kind is Kind.COPY_TO_DEVICE]
    assert len(copies) >= 3 * 6  # patches, offsets and targets of each batch
    assert not {event.stream for event in copies} & {event.stream for event in events if event.kind is Kind.KERNEL}
    assert counts(events)["wait_on_gpu"] >= 6


def test_the_prefetcher_pins(log: Log) -> None:
    with Prefetcher(RandomSource(), pin_memory=True) as ahead:
        batch = ahead.next_batch()
    assert batch.patches.is_pinned()
    assert batch.cu_seqlens.is_pinned()
    assert batch.to("cuda").pin_memory().patches.is_cuda


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


class BoundedBatches(RandomSource):
    """Batches of many sizes, with all their targets."""

    patches_per_batch = 60


def test_batches_of_many_sizes_are_steps_of_a_few_graphs(tmp_path: Path, log: Log) -> None:
    trainer = make_trainer(tmp_path, BoundedBatches(), model=BGPT(CONFIG), **(CUDA | {"steps": 16}), cuda_graph=True)
    first = len(log)
    trainer.train()
    graphs = [event.graph for event in log.events(first) if event.kind is Kind.GRAPH]
    assert len(graphs) == 16
    shapes = trainer._train_step._graphed._shapes  # type: ignore[union-attr]
    assert 2 <= len(shapes) <= len(set(graphs)) < 16


def test_graphs_of_several_sizes_share_their_memory(log: Log) -> None:
    graphed = GraphedGradients(BGPT(CONFIG).cuda().train(), 8192, 8192, autocast=True)
    reserved = []
    for documents in (512, 384, 256, 128, 64):
        batch = PackedPatches.from_bytes([("bin", bytes(14 * 4))] * documents, CONFIG)
        graphed.add(batch, batch.target_indices(), 1.0)
        reserved.append(torch.cuda.memory_reserved())
    assert len(graphed._shapes) == 5
    assert reserved[-1] <= 1.1 * reserved[0]


def test_a_graphed_step_is_a_copy_a_graph_and_a_copy() -> None:
    report = measure(CONFIG, 512, precision="bf16", cuda_graph=True)
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
