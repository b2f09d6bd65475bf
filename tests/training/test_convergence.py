"""`BGPT` learns as the paper's model does: the loss of each of 50 AdamW steps, same weights and documents.

Hugging Face's GPT-2 pads the documents and runs 17 byte positions, but its loss leaves out what is padded and the last
position's logits (attention is causal, so that neither reaches anything else): the two losses are one function, and
steps differ by rounding alone. AdamW divides a gradient by its own size, which lifts the rounding of one that is next
to nothing to a whole step; hence some digits fewer after 50 steps than after one.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.hugging_face import HuggingFaceBGPT
from bgpt_fast import BGPT, BGPTConfig, PackedPatches

CONFIG = BGPTConfig(patch_size=4, patch_length=16, hidden_size=32, patch_num_layers=2, byte_num_layers=2, num_heads=4)
STEPS = 50
RATE = 3e-3
SIZES = {"equal": (40, 40, 40, 40), "mixed": (55, 30, 9, 1)}
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}
"""Of the largest relative difference; on one thread they were seen to be 2.3e-6 and 1.2e-14."""


def batches(kind: str) -> list[PackedPatches]:
    """Five batches that a model can learn from: few byte values, and every other byte a repetition."""
    stream = random.Random(0)

    def document(size: int) -> bytes:
        return bytes(byte for _ in range(size // 2 + 1) for byte in [stream.randrange(7)] * 2)[:size]

    return [PackedPatches.from_bytes([("bin", document(size)) for size in SIZES[kind]], CONFIG) for _ in range(5)]


def losses(model: nn.Module, loss_of: Callable[[PackedPatches], Tensor], kind: str, rate: float = RATE) -> Tensor:
    """The loss before each step: float64 [STEPS]."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1)
    data = batches(kind)
    curve = []
    for step in range(STEPS):
        loss = loss_of(data[step % len(data)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(float(loss.detach()))
    return torch.tensor(curve, dtype=torch.float64)


def ours(dtype: torch.dtype) -> BGPT:
    torch.manual_seed(0)
    return BGPT(CONFIG).to(dtype)


def unrounded_loss(logits: Tensor, labels: Tensor, vocab_size: int, **unused: object) -> Tensor:
    """Hugging Face's loss without its rounding of the logits to float32."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def paper(dtype: torch.dtype) -> HuggingFaceBGPT:
    model = HuggingFaceBGPT(CONFIG).to(dtype)
    model.load_state_dict(ours(dtype).state_dict())
    if dtype == torch.float64:
        model.byte_level_decoder.base.loss_function = unrounded_loss
    return model


def gap(a: Tensor, b: Tensor) -> float:
    """The largest relative difference of any step."""
    return float((a / b - 1).abs().max())


@functools.cache
def our_losses(kind: str, dtype: torch.dtype) -> Tensor:
    model = ours(dtype)
    return losses(model, lambda batch: model(batch).loss, kind)


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp32", "fp64"])
def test_losses_agree_step_by_step(kind: str, dtype: torch.dtype) -> None:
    model = paper(dtype)
    expected = losses(model, model, kind)
    assert expected[-1] < 0.3 * expected[0]
    assert gap(our_losses(kind, dtype), expected) <= TOLERANCE[dtype]


def other_eps(model: HuggingFaceBGPT) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1.1e-5


def other_gelu(model: HuggingFaceBGPT) -> None:
    for module in model.modules():
        if hasattr(module, "c_fc"):
            module.act = nn.GELU()


@pytest.mark.parametrize(
    ("spoil", "rate", "dtype"),
    [
        (lambda model: None, 1.01 * RATE, torch.float32),
        (other_eps, RATE, torch.float32),
        # Its curve differs by 1e-5, which takes float64 to see at this width.
        (other_gelu, RATE, torch.float64),
    ],
)
def test_one_wrong_detail_shows(spoil: Callable[[HuggingFaceBGPT], None], rate: float, dtype: torch.dtype) -> None:
    model = paper(dtype)
    spoil(model)
    assert gap(our_losses("mixed", dtype), losses(model, model, "mixed", rate)) > 100 * TOLERANCE[dtype]
