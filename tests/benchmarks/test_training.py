"""A training step is compared with plain torch: both compute the same, and are measured by turns."""

from __future__ import annotations

import time

import pytest
import torch

from benchmarks.names import OURS, PLAIN
from benchmarks.scales import TINY
from benchmarks.timing import CLOCKS, sample, sample_in_turn
from benchmarks.training import batch_of, model_and_loss

CPU = torch.device("cpu")


def test_plain_torch_has_our_loss_and_gradients() -> None:
    batch = batch_of("equal", TINY.patches, TINY.model, CPU)
    (ours, our_loss), (plain, plain_loss) = (model_and_loss(name, TINY.model, CPU) for name in (OURS, PLAIN))
    losses = our_loss(batch), plain_loss(batch)
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-6)
    for loss in losses:
        loss.backward()
    pairs = {
        "patch_level_decoder.patch_embedding.weight": "patch_table",
        "patch_level_decoder.base.wpe.weight": "patch_decoder.wpe.weight",
        "patch_level_decoder.base.h.0.attn.c_attn.weight": "patch_decoder.h.0.attn.c_attn.weight",
        "byte_level_decoder.base.transformer.wte.weight": "byte_decoder.wte.weight",
        "byte_level_decoder.base.transformer.h.0.mlp.c_fc.bias": "byte_decoder.h.0.mlp.c_fc.bias",
    }
    for our_name, plain_name in pairs.items():
        gradients = ours.get_parameter(our_name).grad, plain.get_parameter(plain_name).grad
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_calls_are_measured_by_turns() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = sample_in_turn(calls, CPU, seconds=1e-9)
    assert order == ["a", "b"] * (1 + len(times["a"]))
    assert len(times["a"]) == len(times["b"]) >= 4
    assert [len(values) for values in sample_in_turn(calls, CPU, seconds=0.0).values()] == [1, 1]


def test_the_thread_clock_does_not_run_while_others_have_the_core() -> None:
    slept = sample_in_turn({"sleep": lambda: time.sleep(0.1)}, CPU, seconds=0.0, clock=CLOCKS["thread"])
    assert slept["sleep"][0] < 0.05
    assert min(sample(lambda: time.sleep(0.02), CPU, seconds=0.0, clock=CLOCKS["wall"])) >= 0.02
