"""A whole training step (forward, backward, AdamW) beside the released way, the reference and MEGABYTE.

    pytest benchmarks/bench_training.py --size full --dtype float32,bfloat16

All but MEGABYTE start from the same random weights, and the float32 losses of ours and the released way are compared
before anything is timed. The released way pads documents to the longest, multiplies by one-hot matrices and runs 17
positions for 16 bytes; on a GPU it keeps its float16 autocast. The reference takes documents of equal length alone.
Peak memory is that of a step: gradients and activations.
"""

from __future__ import annotations

import functools
import itertools
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from model_work import training_work
from optional_peers import COMPILED, MEGABYTE, OURS, REFERENCE, RELEASED, megabyte
from suite import Bench
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from training_step import step_of

from bgpt_fast import BGPT, BGPTConfig, PackedPatches, ReferenceBGPT
from bgpt_fast.flops import forward_flops

_SHARES = {"equal": (0.25, 0.25, 0.25, 0.25), "mixed": (0.55, 0.25, 0.15, 0.05)}
Loss = Callable[[PackedPatches], Tensor]


def documents(kind: str, patches: int, config: BGPTConfig) -> list[tuple[str, bytes]]:
    """Random documents of together about `patches` patches, of equal or of mixed lengths, each within the context."""
    stream = random.Random(0)
    groups = max(1, -(-int(patches * max(_SHARES["mixed"])) // config.patch_length))
    sizes = [max(1, int(share * patches / groups) - 2) for share in _SHARES[kind]] * groups
    return [("bin", stream.randbytes(size * config.patch_size)) for size in sizes]


def contender(name: str, config: BGPTConfig, device: torch.device) -> tuple[nn.Module, Loss]:
    """A model with the weights of seed 0, and its loss."""
    torch.manual_seed(0)
    if name == MEGABYTE:
        model = megabyte(config).to(device)
        return model, functools.partial(_megabyte_loss, model)
    ours = BGPT(config).to(device)
    if name == OURS:
        return ours, lambda batch: ours(batch).loss
    if name == RELEASED:
        from peers import HuggingFaceBGPT
        from transformers import logging

        logging.set_verbosity_error()
        released = HuggingFaceBGPT(config).to(device)
        released.load_state_dict(ours.state_dict())
        return released, released
    from peers import batched_reference

    reference = ReferenceBGPT(config).to(device)
    reference.load_state_dict(ours.state_dict())
    loss_of = batched_reference(reference)
    if name == COMPILED:
        loss_of = torch.compile(loss_of, dynamic=False)
    return reference, lambda batch: loss_of(batch.patches.view(batch.num_documents, -1, config.patch_size))


def _megabyte_loss(model: nn.Module, batch: PackedPatches) -> Tensor:
    documents = batch.patches.long().split(batch.cu_seqlens.diff().tolist())
    return model(pad_sequence(documents, batch_first=True), return_loss=True)


@functools.cache
def _checked(config: BGPTConfig, kind: str, patches: int, device: torch.device) -> None:
    """Refuses to time sides that do not compute the same."""
    batch = PackedPatches.from_bytes(documents(kind, patches, config), config).to(device)
    with torch.no_grad():
        losses = [float(contender(name, config, device)[1](batch)) for name in (OURS, RELEASED)]
    assert abs(losses[0] / losses[1] - 1) <= 1e-5, f"the two do not compute the same: their losses are {losses}"


def padding(batch: PackedPatches) -> float:
    """The share of patch positions that are no document's once the batch is padded to its longest document."""
    lengths = batch.cu_seqlens.diff()
    return 1 - int(lengths.sum()) / (len(lengths) * int(lengths.max()))


@pytest.mark.parametrize("kind", ["equal", "mixed"])
@pytest.mark.peers(OURS, RELEASED, REFERENCE, COMPILED, MEGABYTE)
@pytest.mark.slow_peers(COMPILED)
def test_training_step(bench: Bench, kind: str, implementation: str, dtype: torch.dtype) -> None:
    if kind == "mixed" and implementation in (REFERENCE, COMPILED):
        pytest.skip(f"{implementation}: takes documents of equal length alone")
    config, device, patches = bench.scale.model, bench.device, bench.scale.patches
    if implementation == RELEASED:
        _checked(config, kind, patches, device)
    batch = PackedPatches.from_bytes(documents(kind, patches, config), config).to(device)
    model, loss_of = contender(implementation, config, device)
    on_gpu = device.type == "cuda"
    half = torch.float16 if on_gpu and implementation == RELEASED else dtype
    autocast = None if half == torch.float32 else half
    step = step_of(model, lambda: loss_of(batch), device, autocast, fused=on_gpu and implementation != RELEASED)
    lengths = batch.cu_seqlens.diff().tolist()
    bench(
        [step],
        f"training step, documents of {kind} length",
        implementation=implementation,
        dtype=dtype,
        work=training_work(config, lengths, torch.empty((), dtype=dtype).element_size()),
        units=batch.num_patches,
        unit="patches",
        padded=0.0 if implementation == OURS else padding(batch),
        kind="training",
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def test_phases_of_a_step(bench: Bench, dtype: torch.dtype) -> None:
    """Ours by phase, the device waited for at the end of each; with the share of FLOPs that each phase has."""
    config, device = bench.scale.model, bench.device
    batch = PackedPatches.from_bytes(documents("equal", bench.scale.patches, config), config).to(device)
    model, loss_of = contender(OURS, config, device)
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
