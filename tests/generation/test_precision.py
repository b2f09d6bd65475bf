"""`--precision auto`: which precision is chosen, and what bfloat16 changes."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.paths import EXAMPLES

from bgpt_fast import BGPT, BGPTConfig
from bgpt_fast.generation import precision
from bgpt_fast.generation.precision import (
    MAX_CHANGED_SHARE,
    PrecisionChoice,
    generation_precision,
    scoring_in,
    scoring_precision,
)
from bgpt_fast.generation.scoring import score
from bgpt_fast.tasks.cpu_states import generate

CPU = torch.device("cpu")
WIDE = BGPTConfig(patch_length=20, hidden_size=256, patch_num_layers=1, byte_num_layers=1, num_heads=4)
NARROW = BGPTConfig(patch_length=20, hidden_size=64, patch_num_layers=1, byte_num_layers=1, num_heads=4)


def test_an_explicit_precision_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_faster", None)
    for name in ("float32", "bfloat16", "int8"):
        assert generation_precision(name, WIDE, CPU, 1).precision == name
    assert scoring_precision("bfloat16", WIDE, CPU).precision == "bfloat16"
    assert generation_precision("auto", NARROW, CPU, 1) == scoring_precision("auto", NARROW, CPU)
    assert scoring_precision("auto", NARROW, CPU) == ("float32", "the model is only 64 wide")


@pytest.mark.parametrize(("slow", "expected"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_the_faster_one_is_chosen(monkeypatch: pytest.MonkeyPatch, slow: str, expected: str) -> None:
    """With a clock that a call of one precision advances by 3 s, of the other by 1 s."""
    now = 0.0

    def advance(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(precision.time, "perf_counter", lambda: now)
    calls = {name: lambda name=name: advance(3.0 if name == slow else 1.0) for name in ("float32", "bfloat16")}
    choice = precision._faster(calls, CPU)
    ratio = "3.0" if slow == "float32" else "0.3"
    assert choice == (expected, f"bfloat16 is {ratio} times as fast as float32 on this processor, measured in 16000 ms")
    assert choice.text == f"precision: {expected} ({choice.reason})"


def test_a_small_gain_is_not_worth_another_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.accumulate(itertools.chain([0.0], itertools.cycle([0.0, 1.1, 0.0, 1.0])))
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(clock))
    assert precision._faster({"float32": int, "bfloat16": int}, CPU).precision == "float32"


def test_auto_measures_in_both_ways() -> None:
    for choice in (generation_precision("auto", WIDE, CPU, 3), scoring_precision("auto", WIDE, CPU)):
        assert isinstance(choice, PrecisionChoice)
        assert choice.precision in ("float32", "bfloat16")
        assert "times as fast as float32 on this processor, measured in" in choice.reason


def test_scoring_in_bfloat16_changes_bits_and_little_more() -> None:
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(64, 64), torch.randn(8, 64)
    with torch.no_grad():
        plain = layer(x)
        with scoring_in("float32", CPU):
            assert torch.equal(layer(x), plain)
        with scoring_in("bfloat16", CPU):
            half = layer(x)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), plain, rtol=0.02, atol=0.02)


def test_bfloat16_changes_the_most_likely_byte_rarely_on_the_shipped_model() -> None:
    model = BGPT.from_pretrained(EXAMPLES / "cpu_states" / "checkpoint", dtype=torch.float32)
    machine = {"num_registers": 2, "memory_size": 64, "min_program": 1, "max_program": 15}
    traces = generate(100, seed=3, stream="philox", split="eval", **machine)  # type: ignore[arg-type]
    documents = [("bin", trace.to_bytes()) for trace in traces]
    chosen = {}
    for name in ("float32", "bfloat16", "int8"):
        chosen[name] = torch.cat([logits.argmax(1) for logits in score(model, documents, precision=name)])
    changed = {name: float((tokens != chosen["float32"]).float().mean()) for name, tokens in chosen.items()}
    assert 0 < changed["bfloat16"] <= MAX_CHANGED_SHARE
    assert changed["int8"] > 0
