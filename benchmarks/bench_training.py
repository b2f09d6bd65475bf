"""A whole training step (forward, backward, AdamW), compared with the released method, the reference and MEGABYTE.

    pytest benchmarks/bench_training.py --size full --dtype float32,bfloat16

All but MEGABYTE start from the same random weights, and the float32 losses of ours, the released method and plain torch
are compared before anything is timed. The released method pads documents to the longest, multiplies by one-hot matrices
and runs 17 positions for 16 bytes; on a GPU it has its own float16 autocast. Plain torch (`plain_torch.py`), eager and
compiled, supports only documents of equal length, and is measured in turn with ours. Peak memory covers a step's
gradients and activations.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.model_work import training_work
from benchmarks.names import MEGABYTE, OURS, PLAIN, PLAIN_COMPILED, RELEASED
from benchmarks.scales import Scale
from benchmarks.suite import Bench
from benchmarks.training import batch_of, check_losses, model_and_loss, training_step
from bgpt_fast import BGPTConfig, PackedPatches
from bgpt_fast.flops import forward_flops
from bgpt_fast.training.allocator import reused_memory

_IN_TURN = (OURS, PLAIN, PLAIN_COMPILED)
_EQUAL_LENGTHS_ONLY = (PLAIN, PLAIN_COMPILED)
_MEASURED = pytest.StashKey[dict[tuple[str, torch.dtype], dict[str, tuple[list[float], int]]]]()


def padding(batch: PackedPatches) -> float:
    """The share of positions that are padding if each document is padded to the longest."""
    lengths = batch.cu_seqlens.diff()
    return 1 - int(lengths.sum()) / (len(lengths) * int(lengths.max()))


@functools.cache
def _check(kind: str, patches: int, config: BGPTConfig, device: torch.device) -> None:
    """Raises if the implementations do not compute the same loss, so that they are not timed."""
    names = (OURS, RELEASED) if kind == "mixed" else (OURS, RELEASED, PLAIN)
    check_losses(names, batch_of(kind, patches, config, device), config, 1e-5)


def _batch(scale: Scale, kind: str, device: torch.device) -> tuple[PackedPatches, BGPTConfig]:
    """The batch of a kind of step, and the model's sizes."""
    is_small = kind == "small"
    config, patches = (scale.small_model, scale.small_patches) if is_small else (scale.model, scale.patches)
    lengths = "equal" if is_small else kind
    _check(lengths, patches, config, device)
    return batch_of(lengths, patches, config, device), config


def _measured(bench: Bench, request: pytest.FixtureRequest) -> dict[str, tuple[list[float], int]]:
    """Times and peak memory of those among `_IN_TURN` that are selected for this item's batch and dtype."""
    cases = request.config.stash.setdefault(_MEASURED, {})
    own = {name: value for name, value in request.node.callspec.params.items() if name != "implementation"}
    key = (own["kind"], own["dtype"])
    if key not in cases:
        items = [item for item in request.session.items if getattr(item, "originalname", "") == "test_training_step"]
        params = [item.callspec.params for item in items if not item.get_closest_marker("skip")]
        names = [each["implementation"] for each in params if own.items() <= each.items()]
        names = [name for name in names if own["kind"] != "mixed" or name not in _EQUAL_LENGTHS_ONLY]
        batch, config = _batch(bench.scale, own["kind"], bench.device)
        steps = {name: training_step(name, batch, config, own["dtype"])[1] for name in names if name in _IN_TURN}
        cases[key] = _in_turn(bench, steps)
    return cases[key]


def _in_turn(bench: Bench, steps: Mapping[str, Callable[[], object]]) -> dict[str, tuple[list[float], int]]:
    """As `Bench.in_turn`, with the C library's settings of a run that trains, for all implementations."""
    with reused_memory() if bench.device.type == "cpu" else contextlib.nullcontext():
        return bench.in_turn(steps)


_KINDS = {
    "equal": "training step, documents of equal length",
    "mixed": "training step, documents of mixed length",
    "small": "training step, CPU-state preset",
}


@pytest.mark.parametrize("kind", list(_KINDS))
@pytest.mark.baselines(OURS, RELEASED, PLAIN, PLAIN_COMPILED, MEGABYTE)
@pytest.mark.slow_baselines(PLAIN_COMPILED)
def test_training_step(
    bench: Bench, kind: str, implementation: str, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    if kind == "mixed" and implementation in _EQUAL_LENGTHS_ONLY:
        pytest.skip(f"{implementation}: takes documents of equal length only")
    batch, config = _batch(bench.scale, kind, bench.device)
    if implementation in _IN_TURN:
        times, peak_bytes = _measured(bench, request)[implementation]
    else:
        step = training_step(implementation, batch, config, dtype)[1]
        times, peak_bytes = _in_turn(bench, {implementation: step})[implementation]
    lengths = batch.cu_seqlens.diff().tolist()
    bench.record(
        times,
        _KINDS[kind],
        implementation=implementation,
        dtype=dtype,
        work=training_work(config, lengths, dtype.itemsize),
        units=batch.num_patches,
        unit="patches",
        peak_bytes=peak_bytes,
        padded=0.0 if implementation == OURS else padding(batch),
        kind="training",
    )


def test_phases_of_a_step(bench: Bench, dtype: torch.dtype) -> None:
    """Our step by phase, synchronised with the device after each, and the FLOPs of each part of the forward pass."""
    config, device = bench.scale.model, bench.device
    batch = batch_of("equal", bench.scale.patches, config, device)
    model, loss_of = model_and_loss(OURS, config, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
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
