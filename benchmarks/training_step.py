"""A whole training step: of `BGPT`, of the reference under torch.compile, and of the released way.

All three start from the same weights and take the same documents, packed end to end and of equal length, so that the
peers pad nothing.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from typing import Any

import torch
from check_items import CONTENDERS, OURS, RELEASED
from peers import HuggingFaceBGPT, batched_reference
from timing import measure
from torch import Tensor, nn

from bgpt_fast import BGPT, BGPTConfig, PackedPatches, ReferenceBGPT
from bgpt_fast.flops import forward_flops, peak_flops, training_flops


def memory_target(patches: int) -> float:
    """Bytes that training on a batch of so many patches may take: 0.25 MB a patch and 6 GB."""
    return 0.25e6 * patches + 6e9


def step_of(
    model: nn.Module,
    loss_of: Callable[[], Tensor],
    device: torch.device,
    autocast: torch.dtype | None,
    *,
    fused: bool = False,
) -> Callable[[], Tensor]:
    """One update by AdamW, its loss scaled where float16 needs it; returns the loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=fused)
    scaler = torch.amp.GradScaler(device.type, enabled=autocast == torch.float16)

    def step() -> Tensor:
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            loss = loss_of()
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return step


def equal_documents(count: int, config: BGPTConfig, device: torch.device) -> PackedPatches:
    """Documents that fill the context."""
    stream = random.Random(0)
    size = (config.patch_length - 2) * config.patch_size
    packed = PackedPatches.from_bytes([("bin", stream.randbytes(size)) for _ in range(count)], config)
    return packed.to(device)


def _model(name: str, config: BGPTConfig, device: torch.device) -> tuple[nn.Module, Callable[[PackedPatches], Tensor]]:
    """A contender on the device with the weights of seed 0, and its loss."""
    torch.manual_seed(0)
    ours = BGPT(config).to(device)
    if name == OURS:
        return ours, lambda batch: ours(batch).loss
    if name == RELEASED:
        released = HuggingFaceBGPT(config).to(device)
        released.load_state_dict(ours.state_dict())
        return released, released
    reference = ReferenceBGPT(config).to(device)
    reference.load_state_dict(ours.state_dict())
    loss_of = batched_reference(reference)
    if device.type == "cuda":
        loss_of = torch.compile(loss_of, dynamic=False)
    shape = (-1, config.patch_length, config.patch_size)
    return reference, lambda batch: loss_of(batch.patches.view(shape))


def losses_agree(config: BGPTConfig, device: torch.device) -> dict[str, float]:
    """The float32 loss of each contender, uncompiled, on one document.

    Raises:
        AssertionError: they differ by more than 1e-4, relative.
    """
    batch = equal_documents(1, config, device)
    found = {}
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for name in CONTENDERS:
            _, loss_of = _model(name, config, device)
            found[name] = float(loss_of(batch))
    spread = max(found.values()) / min(found.values()) - 1
    assert spread <= 1e-4, f"the contenders do not compute the same: their losses are {found}"
    return found


def measure_step(name: str, config: BGPTConfig, documents: int, device: torch.device, seconds: float) -> dict[str, Any]:
    """Times one contender; where memory does not suffice, with half the documents, and so on.

    bfloat16 autocast and the fused AdamW on a GPU; the released way keeps its own float16 autocast with scaled losses
    and the plain AdamW. On the CPU all run in float32.

    Returns:
        Patches a second, and on a GPU the peak memory beside its target and, where the GPU's peak is known, the share
        of it (MFU).
    """
    while True:
        try:
            return _measure(name, config, documents, device, seconds)
        except torch.OutOfMemoryError:
            if documents == 1:
                raise
        # Outside the handler, where the exception no longer holds the activations.
        gc.collect()
        torch.cuda.empty_cache()
        documents //= 2


def _measure(name: str, config: BGPTConfig, documents: int, device: torch.device, seconds: float) -> dict[str, Any]:
    batch = equal_documents(documents, config, device)
    model, loss_of = _model(name, config, device)
    on_gpu = device.type == "cuda"
    half = torch.float16 if name == RELEASED else torch.bfloat16
    is_fused = on_gpu and name != RELEASED
    step = step_of(model, lambda: loss_of(batch), device, half if on_gpu else None, fused=is_fused)
    first = float(step())
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    timing = measure([step], device, seconds=seconds)
    lengths = [config.patch_length] * documents
    rate = batch.num_patches / timing.median
    found: dict[str, Any] = {
        **timing._asdict(),
        "documents": documents,
        "patches": batch.num_patches,
        "patches_per_s": rate,
        "autocast": str(half).removeprefix("torch.") if on_gpu else "none",
        "first_loss": first,
        "flops_per_step": training_flops(config, lengths),
        "forward_flops": forward_flops(config, lengths),
        "tflop_per_s": training_flops(config, lengths) / timing.median / 1e12,
    }
    if on_gpu:
        peak = peak_flops(device, half)
        if peak is not None:
            found["mfu"] = training_flops(config, lengths) / timing.median / peak
        found |= {
            "peak_memory": torch.cuda.max_memory_allocated(device),
            "memory_target": memory_target(batch.num_patches),
        }
    return found
