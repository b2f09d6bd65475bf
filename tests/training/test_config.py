"""TrainConfig's checks, and the learning rate at every step."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import log_lines, make_trainer

from bgpt_fast.training import TrainConfig
from bgpt_fast.training.muon import Muon
from bgpt_fast.training.schedule import schedule_factor, step_progress, time_progress


def test_defaults_survive_json() -> None:
    config = TrainConfig(betas=[0.8, 0.9], learning_rate=1, muon_learning_rate=0.5)  # type: ignore[arg-type]
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.betas == (0.8, 0.9)
    with pytest.raises(ValueError, match="unknown fields"):
        TrainConfig.from_dict({"learningrate": 1.0})


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"steps": 1.5}, TypeError),
        ({"steps": True}, TypeError),
        ({"steps": -1}, ValueError),
        ({"steps": 0}, ValueError),
        ({"seed": 1 << 63}, ValueError),
        ({"threads": 70_000}, ValueError),
        ({"steps": 0, "max_minutes": 1.0}, ValueError),
        ({"schedule_by": "time"}, ValueError),
        ({"schedule_by": "epochs"}, ValueError),
        ({"learning_rate": "1e-3"}, TypeError),
        ({"learning_rate": math.nan}, ValueError),
        ({"learning_rate": 0.0}, ValueError),
        ({"muon_learning_rate": -1.0}, ValueError),
        ({"warmup_share": 1.0}, ValueError),
        ({"schedule": "wsd", "warmup_share": 0.5, "decay_share": 0.6}, ValueError),
        ({"betas": (0.9,)}, TypeError),
        ({"betas": (0.9, 1.0)}, ValueError),
        ({"accumulation": 0}, ValueError),
        ({"keep_last": 0}, ValueError),
        ({"optimizer": "sgd"}, ValueError),
        ({"precision": "fp16"}, ValueError),
        ({"threads": 0}, ValueError),
        ({"device": None}, TypeError),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(fields)) if len(fields) == 1 else "TrainConfig"):
        TrainConfig(**fields)


def test_cosine_with_warm_up() -> None:
    config = TrainConfig(warmup_share=0.1, min_lr_ratio=0.2)
    factors = [schedule_factor(config, x) for x in (0.0, 0.05, 0.1, 0.55, 1.0, 7.0)]
    assert factors == pytest.approx([0.0, 0.5, 1.0, 0.6, 0.2, 0.2])


def test_warm_up_stable_decay() -> None:
    config = TrainConfig(schedule="wsd", warmup_share=0.1, decay_share=0.4)
    assert [round(schedule_factor(config, x), 6) for x in (0.05, 0.1, 0.5, 0.6, 0.8, 1.0)] == [0.5, 1, 1, 1, 0.5, 0]
    flat = TrainConfig(schedule="wsd", warmup_share=0.0, decay_share=0.0)
    assert {schedule_factor(flat, x) for x in (0.0, 0.5, 1.0)} == {1.0}


def test_no_step_is_at_rate_zero() -> None:
    for steps in (1, 2, 7, 100):
        config = TrainConfig(steps=steps, warmup_share=0.1)
        assert all(schedule_factor(config, step_progress(config, step)) > 0 for step in range(steps))


def test_time_progress_is_the_share_of_the_budget() -> None:
    config = TrainConfig(schedule_by="time", max_minutes=2.0)
    assert time_progress(config, 7, 60.0, 2.0) == pytest.approx(61 / 120)
    assert 0 < time_progress(config, 0, 0.0, 0.0) < 0.01, "no step is at rate 0"
    assert time_progress(config, 8, 60.0, 12.0) == pytest.approx(0.55)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_rates_are_those_that_the_optimizers_step_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    rates: dict[str, list[set[float]]] = {"AdamW": [], "Muon": []}

    def record(kind: type[torch.optim.Optimizer]) -> None:
        original = kind.step

        def step(self: torch.optim.Optimizer, *arguments: Any) -> Any:
            rates[kind.__name__].append({group["lr"] for group in self.param_groups})
            return original(self, *arguments)

        monkeypatch.setattr(kind, "step", step)

    record(torch.optim.AdamW)
    record(Muon)
    trainer = make_trainer(
        tmp_path, steps=10, optimizer=optimizer, warmup_share=0.3, learning_rate=0.01, muon_learning_rate=0.02
    )
    trainer.train()
    factors = [schedule_factor(trainer.config, (step + 0.5) / 10) for step in range(10)]
    assert factors[0] == pytest.approx(0.5 / 3)
    assert factors[1] == pytest.approx(1.5 / 3)
    assert factors[9] < 0.02
    assert rates["AdamW"] == [{0.01 * factor} for factor in factors]
    assert rates["Muon"] == ([{0.02 * factor} for factor in factors] if optimizer == "muon" else [])
    assert [line["learning_rate"] for line in log_lines(tmp_path)] == [0.01 * factor for factor in factors]
