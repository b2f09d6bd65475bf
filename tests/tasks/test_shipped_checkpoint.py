"""The shipped checkpoint does what the README says of it."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from support.paths import EXAMPLES

from bgpt_fast import BGPT
from bgpt_fast.cli.train_options import options_from_file
from bgpt_fast.tasks.cpu_states import generate
from bgpt_fast.tasks.cpu_states.assessment import assess

EXAMPLE = EXAMPLES / "cpu_states"
FOLDER = EXAMPLE / "checkpoint"


@pytest.fixture(scope="module")
def model() -> BGPT:
    return BGPT.from_pretrained(FOLDER, dtype=torch.float32)


def test_the_checkpoint_is_small_and_has_the_committed_options(model: BGPT) -> None:
    assert (FOLDER / "model.safetensors").stat().st_size <= 8_000_000
    assert json.loads((FOLDER / "options.json").read_text()) == json.loads((EXAMPLE / "checkpoint.json").read_text())
    assert model.config == options_from_file(FOLDER / "options.json").model


def test_the_checkpoint_simulates_held_out_programs(model: BGPT) -> None:
    machine = options_from_file(FOLDER / "options.json").machine
    held_out = generate(150, seed=77, stream="philox", split="eval", **asdict(machine))
    result = assess(model, held_out)
    assert result.teacher_forced.accuracy >= 0.99
    assert result.teacher_forced.changed_accuracy is not None
    assert result.teacher_forced.changed_accuracy >= 0.90
    assert result.teacher_forced.accuracy > result.teacher_forced.copy_baseline
    assert result.free_running.exact_programs >= 0.5

    # The negative control: the same model with one layer's weights shuffled knows nothing.
    with torch.no_grad():
        weight = model.patch_level_decoder.base.h[0].mlp.c_fc.weight
        weight.copy_(weight[torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))])
    assert assess(model, held_out[:20]).teacher_forced.accuracy < 0.9


def test_the_scores_of_the_checkpoint_are_recorded() -> None:
    training = json.loads((FOLDER / "training.json").read_text())
    assert training["held_out_programs"] >= 1000
    assert training["teacher_forced"]["accuracy"] >= 0.99
    assert training["steps"] > 0
    assert training["seconds"] > 0
