"""`train` makes programs of CPU states on the device of the model, and each rank has its own GPU."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bgpt_fast.cli import train_data
from bgpt_fast.cli.train_options import Train
from bgpt_fast.tasks import cpu_states as cpu
from bgpt_fast.tasks.cpu_states.gpu_source import GPUStateSource


def test_train_generates_programs_on_the_device_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    options = Train(training=dataclasses.replace(Train().training, device="cpu"))
    assert type(train_data.TrainData(options, options.model).source) is cpu.CPUStateSource
    on_gpu = dataclasses.replace(options, machine_on="gpu")
    with pytest.raises(ValueError, match=r"expected --training\.device cuda, got cpu"):
        train_data.TrainData(on_gpu, on_gpu.model)
    monkeypatch.setattr(train_data, "rank_device", lambda name: torch.device("cuda", 3))
    monkeypatch.setattr(train_data, "_C", SimpleNamespace(with_cuda=False))
    with pytest.raises(ValueError, match="expected a build with CUDA"):
        train_data.TrainData(on_gpu, on_gpu.model)
    monkeypatch.setattr(train_data, "_C", SimpleNamespace(with_cuda=True))
    for one in (options, on_gpu):
        source = train_data.TrainData(one, one.model).source
        assert isinstance(source, GPUStateSource)
        assert source.device == torch.device("cuda", 3)
        assert source.describe() == cpu.CPUStateSource(one.model, **train_arguments(one)).describe()
    for on_cpu in (
        dataclasses.replace(options, machine_on="cpu"),
        dataclasses.replace(options, training=dataclasses.replace(options.training, prefetch_process=True)),
    ):
        assert type(train_data.TrainData(on_cpu, on_cpu.model).source) is cpu.CPUStateSource


def train_arguments(options: Train) -> dict[str, Any]:
    return {
        "seed": options.training.seed,
        "documents_per_batch": options.programs_per_batch,
        "long_share": options.long_share,
        "small_values": options.small_values,
        **asdict(options.machine),
    }


def test_each_rank_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for name, value in (("RANK", "6"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "2")):
        monkeypatch.setenv(name, value)
    assert train_data.rank_device("auto") == torch.device("cuda", 2)
    assert train_data.rank_device("cpu") == torch.device("cpu")
