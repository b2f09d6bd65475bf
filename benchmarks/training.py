"""The implementations of a training step: models with the same weights, their losses, and an update by AdamW."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from benchmarks.baselines import megabyte
from benchmarks.names import COMPILED, MEGABYTE, OURS, PLAIN, PLAIN_COMPILED, REFERENCE, RELEASED
from benchmarks.plain_torch import PlainBGPT
from bgpt_fast import BGPT, BGPTConfig, PackedPatches, ReferenceBGPT

Loss = Callable[[PackedPatches], Tensor]
_SHARES = {"equal": (0.25, 0.25, 0.25, 0.25), "mixed": (0.55, 0.25, 0.15, 0.05)}


def random_documents(sizes: list[int]) -> list[tuple[str, bytes]]:
    """Documents of these sizes in bytes, with random content that is the same at every call."""
    stream = random.Random(0)
    return [("bin", stream.randbytes(size)) for size in sizes]


def batch_of(kind: str, patches: int, config: BGPTConfig, device: torch.device) -> PackedPatches:
    """Documents of about `patches` patches in total, of "equal" or of "mixed" lengths, each within the context."""
    groups = max(1, -(-int(patches * max(_SHARES["mixed"])) // config.patch_length))
    lengths = [max(1, int(share * patches / groups) - 2) for share in _SHARES[kind]] * groups
    documents = random_documents([length * config.patch_size for length in lengths])
    return PackedPatches.from_bytes(documents, config).to(device)


def model_and_loss(name: str, config: BGPTConfig, device: torch.device) -> tuple[nn.Module, Loss]:
    """An implementation with the weights of seed 0 (MEGABYTE has its own weights), and its loss.

    The reference and plain torch support only documents of equal length.
    """
    torch.manual_seed(0)
    if name == MEGABYTE:
        model = megabyte(config).to(device)

        def megabyte_loss(batch: PackedPatches) -> Tensor:
            parts = batch.patches.long().split(batch.cu_seqlens.diff().tolist())
            return model(pad_sequence(parts, batch_first=True), return_loss=True)

        return model, megabyte_loss
    ours = BGPT(config).to(device)
    if name == OURS:
        return ours, lambda batch: ours(batch).loss
    if name in (PLAIN, PLAIN_COMPILED):
        plain = PlainBGPT(config, ours.state_dict()).to(device)
        return plain, torch.compile(plain, dynamic=False) if name == PLAIN_COMPILED else plain
    # Takes seconds to import.
    from benchmarks.hugging_face import HuggingFaceBGPT, batched_reference

    other = (HuggingFaceBGPT if name == RELEASED else ReferenceBGPT)(config).to(device)
    other.load_state_dict(ours.state_dict())
    if isinstance(other, HuggingFaceBGPT):
        return other, other
    loss_of = batched_reference(other)
    if name == COMPILED:
        loss_of = torch.compile(loss_of, dynamic=False)
    return other, lambda batch: loss_of(batch.patches.view(batch.num_documents, -1, config.patch_size))


def check_losses(names: Sequence[str], batch: PackedPatches, config: BGPTConfig, tolerance: float) -> dict[str, float]:
    """The float32 losses of implementations, uncompiled.

    Raises:
        AssertionError: the losses differ by more than the relative `tolerance`.
    """
    device = batch.patches.device
    losses = {}
    with torch.no_grad():
        for name in names:
            uncompiled = {COMPILED: REFERENCE, PLAIN_COMPILED: PLAIN}.get(name, name)
            losses[name] = float(model_and_loss(uncompiled, config, device)[1](batch))
    spread = max(losses.values()) / min(losses.values()) - 1
    assert spread <= tolerance, f"expected equal losses of all implementations, got {losses}"
    return losses


def training_step(
    name: str, batch: PackedPatches, config: BGPTConfig, dtype: torch.dtype
) -> tuple[nn.Module, Callable[[], Tensor]]:
    """An implementation, and a function that updates it by AdamW and returns the loss.

    Reduced precision uses autocast. The released method has its own AdamW, and on a GPU float16 autocast with loss
    scaling; the others use fused AdamW.
    """
    device = batch.patches.device
    model, loss_of = model_and_loss(name, config, device)
    is_released_on_gpu = device.type == "cuda" and name == RELEASED
    autocast = torch.float16 if is_released_on_gpu else dtype
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=name != RELEASED)
    scaler = torch.amp.GradScaler(device.type, enabled=autocast == torch.float16)

    def step() -> Tensor:
        with torch.autocast(device.type, autocast, enabled=autocast != torch.float32):
            loss = loss_of(batch)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return model, step
