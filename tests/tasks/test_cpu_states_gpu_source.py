"""The source on the GPU gives the very batches of the one on the CPU: its torch part here, all of it on a GPU."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor

from bgpt_fast import BGPTConfig, PackedPatches
from bgpt_fast.tasks import cpu_states as cpu
from bgpt_fast.tasks.cpu_states import gpu_source
from bgpt_fast.tasks.cpu_states.gpu_source import GPUStateSource

CONFIG = BGPTConfig(patch_size=8, patch_length=32, hidden_size=8, patch_num_layers=1, byte_num_layers=1, num_heads=1)
MACHINE = {"num_registers": 2, "memory_size": 64, "min_program": 1, "max_program": 15}


def on_the_cpu(
    count: int, *, options: cpu.StreamOptions, seed: int, start: int, device: object
) -> tuple[Tensor, Tensor, Tensor]:
    """`generate_on_gpu` by the machine in C++."""
    traces = cpu.generate(count, seed=seed, start=start, stream="parallel", **asdict(options))
    in_test = [cpu.split_of(trace.program_bytes, 2, 64) == "test" for trace in traces]
    return torch.tensor(traces.data), torch.tensor(traces.offsets), torch.tensor(in_test)


def equal(left: PackedPatches, right: PackedPatches) -> bool:
    assert left.max_seqlen == right.max_seqlen
    return (
        torch.equal(left.patches, right.patches)
        and torch.equal(left.cu_seqlens, right.cu_seqlens)
        and torch.equal(left.target_indices(), right.target_indices())
    )


@pytest.mark.parametrize(
    "more",
    [
        {"split": "train", "long_share": 0.85},
        {"split": None, "states_only": False},
        {"split": "train", "rank": 1, "world_size": 3},
        {"split": "test", "documents_per_batch": 3},
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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu() -> None:
    arguments: dict[str, Any] = {"seed": 3, "documents_per_batch": 64, "long_share": 0.5, **MACHINE}
    ours, theirs = GPUStateSource(CONFIG, **arguments), cpu.CPUStateSource(CONFIG, **arguments)
    for _ in range(8):
        batch = ours.next_batch()
        assert batch.patches.is_cuda
        assert equal(batch.to("cpu"), theirs.next_batch())
