"""The source on the GPU gives the very batches of the one on the CPU: its torch part here, all of it on a GPU."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.batches import equal
from torch import Tensor

from bgpt_fast import BGPT, BGPTConfig, PackedPatches
from bgpt_fast.tasks import cpu_states as cpu
from bgpt_fast.tasks.cpu_states import gpu_source
from bgpt_fast.tasks.cpu_states.gpu_source import GPUStateSource
from bgpt_fast.training import TrainConfig, Trainer

CONFIG = BGPTConfig(patch_size=8, patch_length=32, hidden_size=8, patch_num_layers=1, byte_num_layers=1, num_heads=1)
MACHINE: dict[str, Any] = {"num_registers": 2, "memory_size": 64, "min_program": 1, "max_program": 15}


def on_the_cpu(
    count: int, *, options: cpu.StreamOptions, seed: int, start: int, small_values: float, device: object
) -> tuple[Tensor, Tensor, Tensor]:
    """`generate_on_gpu` by the machine in C++."""
    traces = cpu.generate(count, seed=seed, start=start, stream="philox", small_values=small_values, **asdict(options))
    in_eval = [cpu.split_of(trace.program_bytes, 2, 64) == "eval" for trace in traces]
    return torch.tensor(traces.data), torch.tensor(traces.offsets), torch.tensor(in_eval)


@pytest.mark.parametrize(
    "more",
    [
        {"split": "train", "long_share": 0.85, "small_values": 0.5},
        {"split": None, "states_only": False},
        {"split": "train", "rank": 1, "world_size": 3},
        {"split": "eval", "documents_per_batch": 3},
    ],
)
def test_the_batches_are_those_of_the_cpu(more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_source, "generate_on_gpu", on_the_cpu)
    arguments: dict[str, Any] = {"seed": 3, "documents_per_batch": 40, **MACHINE, **more}
    ours, theirs = GPUStateSource(CONFIG, device="cpu", **arguments), cpu.CPUStateSource(CONFIG, **arguments)
    batches = []
    for _ in range(4):
        batches.append(ours.next_batch())
        assert equal(batches[-1], theirs.next_batch())
        assert ours.state_dict() == theirs.state_dict()
    assert not torch.equal(batches[0].patches[:20], batches[1].patches[:20])
    again = GPUStateSource(CONFIG, device="cpu", **arguments)
    again.load_state_dict(theirs.state_dict())
    assert equal(again.next_batch(), theirs.next_batch())


class OnDevice(Tensor):
    """A tensor that numpy cannot read where it is, as one on a GPU; `.cpu()` gives a plain one."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(function, types, args, kwargs or {})
        return result.as_subclass(Tensor) if function is Tensor.cpu else result

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert a tensor on a device to numpy")


class OnDeviceSource(GPUStateSource):
    """Its batches are elsewhere."""

    def next_batch(self) -> PackedPatches:
        batch = super().next_batch()
        there = [tensor.as_subclass(OnDevice) for tensor in (batch.patches, batch.cu_seqlens)]
        with pytest.raises(TypeError, match="on a device"):
            np.asarray(there[1])
        return dataclasses.replace(PackedPatches.unchecked(there[0], there[1], batch.max_seqlen), targets=batch.targets)


@pytest.mark.parametrize("targets", [0, 20])
def test_a_run_goes_on_from_one_source_with_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, targets: int
) -> None:
    monkeypatch.setattr(gpu_source, "generate_on_gpu", on_the_cpu)

    def trained(folder: str, kinds: list[type[cpu.CPUStateSource]], prefetch: int = 2) -> dict[str, Tensor]:
        for steps, kind in enumerate(kinds, 1):
            torch.manual_seed(0)
            model = BGPT(CONFIG)
            device: dict[str, Any] = {} if kind is cpu.CPUStateSource else {"device": "cpu"}
            source = kind(CONFIG, seed=3, documents_per_batch=6, long_share=0.5, **MACHINE, **device)
            config = TrainConfig(
                steps=2 * steps, device="cpu", tensorboard=False, prefetch=prefetch, targets_per_step=targets
            )
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*resuming with other settings")
                Trainer(model, source, config, tmp_path / folder, show_progress=False).train()
        return model.state_dict()

    def schedule_free(*_: object) -> float:
        return 1.0

    monkeypatch.setattr("bgpt_fast.training.trainer.schedule_factor", schedule_free)
    expected = trained("cpu", [cpu.CPUStateSource] * 2)
    mixed = trained("mixed", [OnDeviceSource, cpu.CPUStateSource])
    gpu = trained("gpu", [cpu.CPUStateSource, OnDeviceSource], prefetch=0)
    for name, tensor in expected.items():
        assert torch.equal(tensor, mixed[name])
        assert torch.equal(tensor, gpu[name])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu() -> None:
    arguments: dict[str, Any] = {"seed": 3, "documents_per_batch": 64, "long_share": 0.5, **MACHINE}
    ours, theirs = GPUStateSource(CONFIG, **arguments), cpu.CPUStateSource(CONFIG, **arguments)
    for _ in range(8):
        batch = ours.next_batch()
        assert batch.patches.is_cuda
        assert equal(batch.to("cpu"), theirs.next_batch())
