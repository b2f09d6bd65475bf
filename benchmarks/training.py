"""The implementations of a training step: models with the same weights, their losses, and an update by AdamW."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from benchmarks.baselines import megabyte
from benchmarks.names import COMPILED, MEGABYTE, OURS, RELEASED
from bgpt_fast import BGPT, BGPTConfig, PackedPatches, ReferenceBGPT

Loss = Callable[[PackedPatches], Tensor]
_SHARES = {"equal": (0.25, 0.25, 0.25, 0.25), "mixed": (0.55, 0.25, 0.15, 0.05)}


def random_documents(sizes: list[int]) -> list[tuple[str, bytes]]:
    """Documents of so many random bytes, the same at every call."""
    stream = random.Random(0)
    return [("bin", stream.randbytes(size)) for size in sizes]


def documents(kind: str, patches: int, config: BGPTConfig) -> list[tuple[str, bytes]]:
    """Documents of about `patches` patches in total, of "equal" or of "mixed" lengths, each within the context."""
    groups = max(1, -(-int(patches * max(_SHARES["mixed"])) // config.patch_length))
    lengths = [max(1, int(share * patches / groups) - 2) for share in _SHARES[kind]] * groups
    return random_documents([length * config.patch_size for length in lengths])


def model_and_loss(name: str, config: BGPTConfig, device: torch.device) -> tuple[nn.Module, Loss]:
    """An implementation with the weights of seed 0 (MEGABYTE has weights of its own), and its loss.

    The reference takes documents of equal length only.
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


def step_of(
    model: nn.Module, loss_of: Callable[[], Tensor], device: torch.device, autocast: torch.dtype | None, *, fused: bool
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
