"""The whole training step on a GPU: of `BGPT`, of the reference under torch.compile, and of the released method.

All three start from the same weights and take the same documents of equal length, so that nothing is padded.
"""

from __future__ import annotations

import copy
import gc
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.names import COMPILED, REFERENCE, RELEASED
from benchmarks.op_measure import mismatch, wrong_result
from benchmarks.timing import measure
from benchmarks.training import check_losses, random_documents, training_step
from bgpt_fast import BGPT, BGPTConfig, PackedPatches, ReferenceBGPT
from bgpt_fast.checkpoint.schema import PATCH_EMBEDDING
from bgpt_fast.flops import forward_flops, peak_flops, training_flops
from tools.gpu_check.items import IMPLEMENTATIONS

_FLOORS = {torch.float32: 1e-5, torch.bfloat16: 2.0**-8}


def full_documents(count: int, config: BGPTConfig, device: torch.device) -> PackedPatches:
    """Documents that fill the context."""
    sizes = [(config.patch_length - 2) * config.patch_size] * count
    return PackedPatches.from_bytes(random_documents(sizes), config).to(device)


def losses_agree(config: BGPTConfig, device: torch.device) -> dict[str, float]:
    """Compares the float32 losses of all implementations on one document, and returns them."""
    return check_losses(IMPLEMENTATIONS, full_documents(1, config, device), config, 1e-4)


def check_step(config: BGPTConfig, dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Compares a step on two short documents, its loss and all gradients, with the reference's in float64 on the CPU.

    An error may be twice that of the reference in the step's own precision plus the share of the largest value that
    tests/test_model.py allows. float32 computes in float32 throughout, bfloat16 under autocast.

    Returns:
        The largest errors of ours and of the reference in this precision, relative to the largest value.

    Raises:
        WrongResultError: names the wrong gradients.
        FloatingPointError: the update of the weights by AdamW gives a NaN or an infinity.
    """
    torch.manual_seed(0)
    reference = ReferenceBGPT(config)
    ours = BGPT(config)
    ours.load_state_dict(reference.state_dict())
    S = config.patch_size
    batch = PackedPatches.from_bytes(random_documents([3 * S, 2 * S - 1]), config)
    exact = _loss_and_gradients(copy.deepcopy(reference).double(), batch, torch.float64)
    plain = _loss_and_gradients(reference.to(device), batch.to(device), dtype)
    ours = ours.to(device)
    actual = _loss_and_gradients(ours, batch.to(device), dtype)
    worst, wrong = {"error": 0.0, "plain_error": 0.0}, []
    for name, expected in exact.items():
        largest = float(expected.abs().max()) or 1.0
        plain_error = float((plain[name] - expected).abs().max())
        worst["error"] = max(worst["error"], float((actual[name] - expected).abs().max()) / largest)
        worst["plain_error"] = max(worst["plain_error"], plain_error / largest)
        allowed = 2 * plain_error + _FLOORS[dtype] * largest
        wrong.append(mismatch(name, actual[name], expected, allowed))
    if bad := [item for item in wrong if item is not None]:
        raise wrong_result("training step", bad)
    torch.optim.AdamW(ours.parameters(), fused=device.type == "cuda").step()
    for name, parameter in ours.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise FloatingPointError(f"{name} is not finite after the update")
    return worst


def _loss_and_gradients(model: nn.Module, batch: PackedPatches, dtype: torch.dtype) -> dict[str, Tensor]:
    """In float64 on the CPU, by the reference's names and layout."""
    with torch.autocast(batch.patches.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = model(batch).loss
    loss.backward()
    results = {name: p.grad.double().cpu() for name, p in model.named_parameters() if p.grad is not None}
    if isinstance(model, BGPT):  # keeps it transposed
        results[PATCH_EMBEDDING] = results[PATCH_EMBEDDING].t().contiguous()
    return {"loss": loss.detach().double().cpu(), **results}


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
    batch = full_documents(documents, config, device)
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
