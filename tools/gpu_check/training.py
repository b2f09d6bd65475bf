"""The whole training step on a GPU: of `BGPT`, of the reference under torch.compile, and of the released method.

All three start from the same weights and take the same documents of equal length, so that nothing is padded.
"""

from __future__ import annotations

import gc
from typing import Any

import torch

from benchmarks.names import COMPILED, REFERENCE, RELEASED
from benchmarks.timing import measure
from benchmarks.training import check_losses, random_documents, training_step
from bgpt_fast import BGPTConfig, PackedPatches
from bgpt_fast.flops import forward_flops, peak_flops, training_flops
from tools.gpu_check.items import IMPLEMENTATIONS


def _full_documents(count: int, config: BGPTConfig, device: torch.device) -> PackedPatches:
    """Documents that fill the context."""
    sizes = [(config.patch_length - 2) * config.patch_size] * count
    return PackedPatches.from_bytes(random_documents(sizes), config).to(device)


def losses_agree(config: BGPTConfig, device: torch.device) -> dict[str, float]:
    """Compares the float32 losses of all implementations on one document, and returns them."""
    return check_losses(IMPLEMENTATIONS, _full_documents(1, config, device), config, 1e-4)


def measure_step(name: str, config: BGPTConfig, documents: int, device: torch.device, seconds: float) -> dict[str, Any]:
    """Times one implementation; when memory runs out, retries with half the documents, repeatedly.

    A GPU uses bfloat16 (float16 for the released method). A CPU uses float32 and does not compile the reference, which
    would take minutes.

    Returns:
        Patches per second, and on a GPU the peak memory with its target and, if the GPU's peak rate is known, the
        share of it that is reached (MFU).
    """
    while True:
        try:
            return _measure(name, config, documents, device, seconds)
        except torch.OutOfMemoryError:
            if documents == 1:
                raise
        # Outside the handler, because its exception keeps the activations alive.
        gc.collect()
        torch.cuda.empty_cache()
        documents //= 2


def _measure(name: str, config: BGPTConfig, documents: int, device: torch.device, seconds: float) -> dict[str, Any]:
    batch = _full_documents(documents, config, device)
    on_gpu = device.type == "cuda"
    half = torch.float16 if name == RELEASED else torch.bfloat16
    name = REFERENCE if name == COMPILED and not on_gpu else name
    _, step = training_step(name, batch, config, torch.bfloat16 if on_gpu else torch.float32)
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
