"""A whole training step (forward, backward, AdamW), compared with the released method, the reference and MEGABYTE.

    pytest benchmarks/bench_training.py --size full --dtype float32,bfloat16

All but MEGABYTE start from the same random weights, and the float32 losses of ours and the released method are compared
before anything is timed. The released method pads documents to the longest, multiplies by one-hot matrices and runs 17
positions for 16 bytes; on a GPU it has its own float16 autocast. The reference supports only documents of equal length.
Peak memory covers a step's gradients and activations.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.model_work import training_work
from benchmarks.names import COMPILED, MEGABYTE, OURS, REFERENCE, RELEASED
from benchmarks.suite import Bench
from benchmarks.training import batch_of, check_losses, model_and_loss, training_step
from bgpt_fast import BGPTConfig, PackedPatches
from bgpt_fast.flops import forward_flops


@functools.cache
def _checked(config: BGPTConfig, kind: str, patches: int, device: torch.device) -> None:
    """Raises if the implementations do not compute the same loss, so that they are not timed."""
    check_losses((OURS, RELEASED), batch_of(kind, patches, config, device), config, 1e-5)


def padding(batch: PackedPatches) -> float:
    """The share of positions that are padding if each document is padded to the longest."""
    lengths = batch.cu_seqlens.diff()
    return 1 - int(lengths.sum()) / (len(lengths) * int(lengths.max()))


@pytest.mark.parametrize("kind", ["equal", "mixed"])
@pytest.mark.baselines(OURS, RELEASED, REFERENCE, COMPILED, MEGABYTE)
@pytest.mark.slow_baselines(COMPILED)
def test_training_step(bench: Bench, kind: str, implementation: str, dtype: torch.dtype) -> None:
    if kind == "mixed" and implementation in (REFERENCE, COMPILED):
        pytest.skip(f"{implementation}: takes documents of equal length only")
    config, device, patches = bench.scale.model, bench.device, bench.scale.patches
    if implementation == RELEASED:
        _checked(config, kind, patches, device)
    batch = batch_of(kind, patches, config, device)
    model, step = training_step(implementation, batch, config, dtype)
    lengths = batch.cu_seqlens.diff().tolist()
    bench(
        step,
        f"training step, documents of {kind} length",
        implementation=implementation,
        dtype=dtype,
        work=training_work(config, lengths, dtype.itemsize),
        units=batch.num_patches,
        unit="patches",
        padded=0.0 if implementation == OURS else padding(batch),
        kind="training",
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def test_phases_of_a_step(bench: Bench, dtype: torch.dtype) -> None:
    """Our step by phase, synchronised with the device after each, and the FLOPs of each part of the forward pass."""
    config, device = bench.scale.model, bench.device
    batch = batch_of("equal", bench.scale.patches, config, device)
    model, loss_of = model_and_loss(OURS, config, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device.type == "cuda")
    rows = [
        _phases(model, lambda: loss_of(batch), optimizer, device, dtype)
        for _ in range(2 if bench.scale.seconds == 0 else 6)
    ][1:]
    flops = forward_flops(config, batch.cu_seqlens.diff())
    bench.record(
        [sum(row.values()) for row in rows],
        "training step by phase",
        dtype=dtype,
        units=batch.num_patches,
        unit="patches",
        kind="phases",
        phases={name: sorted(row[name] for row in rows)[len(rows) // 2] for name in rows[0]},
        forward_flops=flops,
    )


def _phases(
    model: nn.Module,
    loss_of: Callable[[], Tensor],
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, float]:
    """Seconds of each phase of one step."""
    marks: list[tuple[str, float]] = []

    def mark(name: str, *_: Any) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()
        marks.append((name, time.perf_counter()))

    patch_decoder = model.get_submodule("patch_level_decoder")
    hook = patch_decoder.register_forward_hook(lambda *_: mark("forward, patch decoder"))
    mark("start")
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        loss = loss_of()
    mark("forward, byte decoder")
    hook.remove()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    mark("backward")
    optimizer.step()
    mark("optimizer")
    return {name: after - before for (_, before), (name, after) in itertools.pairwise(marks)}
