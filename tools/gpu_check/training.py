"""The whole training step on a GPU: of `BGPT`, of the reference under torch.compile, and of the released way.

All three start from the same weights and take the same documents of equal length, so that nothing is padded.
"""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import nn

from benchmarks.names import COMPILED, REFERENCE, RELEASED
from benchmarks.timing import measure
from benchmarks.training import Loss, model_and_loss, random_documents, step_of
from bgpt_fast import BGPTConfig, PackedPatches
from bgpt_fast.flops import forward_flops, peak_flops, training_flops
from tools.gpu_check.items import IMPLEMENTATIONS


def _full_documents(count: int, config: BGPTConfig, device: torch.device) -> PackedPatches:
    """Documents that fill the context."""
    sizes = [(config.patch_length - 2) * config.patch_size] * count
    return PackedPatches.from_bytes(random_documents(sizes), config).to(device)


def _model_and_loss(name: str, config: BGPTConfig, device: torch.device) -> tuple[nn.Module, Loss]:
    """On the CPU the reference is not compiled, which would take minutes."""
    return model_and_loss(REFERENCE if name == COMPILED and device.type == "cpu" else name, config, device)


def losses_agree(config: BGPTConfig, device: torch.device) -> dict[str, float]:
    """The float32 loss of each implementation, uncompiled, on one document.

    Raises:
        AssertionError: they differ by more than 1e-4, relative.
    """
    batch = _full_documents(1, config, device)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        losses = {name: float(_model_and_loss(name, config, device)[1](batch)) for name in IMPLEMENTATIONS}
    spread = max(losses.values()) / min(losses.values()) - 1
    assert spread <= 1e-4, f"expected equal losses of all implementations, got {losses}"
    return losses


def measure_step(name: str, config: BGPTConfig, documents: int, device: torch.device, seconds: float) -> dict[str, Any]:
    """Times one implementation; if memory runs out, with half the documents, and so on.

    bfloat16 autocast and the fused AdamW on a GPU; the released way has its own float16 autocast with scaled losses
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
        # Outside the handler, whose exception refers to the activations.
        gc.collect()
        torch.cuda.empty_cache()
        documents //= 2


def _measure(name: str, config: BGPTConfig, documents: int, device: torch.device, seconds: float) -> dict[str, Any]:
    batch = _full_documents(documents, config, device)
    model, loss_of = _model_and_loss(name, config, device)
    on_gpu = device.type == "cuda"
    half = torch.float16 if name == RELEASED else torch.bfloat16
    fused = on_gpu and name != RELEASED
    step = step_of(model, lambda: loss_of(batch), device, half if on_gpu else None, fused=fused)
    first_loss = float(step())
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    timing = measure(step, device, seconds=seconds)
    lengths = [config.patch_length] * documents
    flops = training_flops(config, lengths)
    values: dict[str, Any] = {
        **timing._asdict(),
        "documents": documents,
        "patches": batch.num_patches,
        "patches_per_s": batch.num_patches / timing.median,
        "autocast": str(half).removeprefix("torch.") if on_gpu else "none",
        "first_loss": first_loss,
        "flops_per_step": flops,
        "forward_flops": forward_flops(config, lengths),
        "tflop_per_s": flops / timing.median / 1e12,
    }
    if on_gpu:
        peak = peak_flops(device, half)
        if peak is not None:
            values["mfu"] = flops / timing.median / peak
        values["peak_memory"] = torch.cuda.max_memory_allocated(device)
        values["memory_target"] = 0.25e6 * batch.num_patches + 6e9
    return values
