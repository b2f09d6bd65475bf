"""A GPU's steps are launched before the figures of the one before are read; here the same is done on the CPU."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import RandomSource, fingerprint, interrupt, log_lines, make_trainer, train

from bgpt_fast.data.source import DataError
from bgpt_fast.training import step
from bgpt_fast.training.step import TrainStep

SETTINGS: dict[str, Any] = {"save_every": 3, "eval_every": 4}
_TIMES = {"seconds", "patches_per_second", "data_wait_share", "tflops", "mfu"}


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "CAN_READ_LATE", ("cpu",))


def figures(run_dir: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in _TIMES} for line in log_lines(run_dir)]


def evaluate(model: torch.nn.Module) -> dict[str, float]:
    return {"weight": float(next(model.parameters()).sum())}


def test_a_late_run_is_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prints = []
    for name, devices in (("at once", ()), ("late", ("cpu",))):
        monkeypatch.setattr(step, "CAN_READ_LATE", devices)
        trainer = make_trainer(tmp_path / name, evaluate=evaluate, **SETTINGS)
        result = trainer.train()
        assert result.loss == log_lines(tmp_path / name)[-2]["loss"]
        prints.append(fingerprint(trainer))
    assert prints[0] == prints[1]
    assert figures(tmp_path / "at once") == figures(tmp_path / "late")


@pytest.mark.usefixtures("late")
def test_a_step_is_launched_before_the_last_ones_figures_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, int]] = []
    launch = TrainStep.__call__

    def recorded(self: TrainStep, batches: Any, index: int) -> Any:
        events.append(("launch", index))
        launched = launch(self, batches, index)

        def result() -> Any:
            events.append(("read", index))
            return launched.result()

        return launched._replace(result=result)

    monkeypatch.setattr(TrainStep, "__call__", recorded)
    train(tmp_path, steps=5, save_every=3)
    order = [("launch", 0), ("launch", 1), ("read", 0), ("launch", 2), ("read", 1), ("read", 2)]  # a checkpoint
    assert events == [*order, ("launch", 3), ("launch", 4), ("read", 3), ("read", 4)]


@pytest.mark.usefixtures("late")
def test_an_interrupted_late_run_resumes(tmp_path: Path) -> None:
    interrupt(tmp_path / "stopped", at=5, number=signal.SIGTERM)
    assert fingerprint(train(tmp_path / "stopped")) == fingerprint(train(tmp_path / "whole"))


@pytest.mark.usefixtures("late")
def test_a_failing_source_leaves_the_last_whole_step(tmp_path: Path) -> None:
    def fail(position: int) -> None:
        if position == 4:
            raise DataError("no more data")

    trainer = make_trainer(tmp_path, RandomSource(before=fail))
    with pytest.raises(DataError, match="no more data") as caught:
        trainer.train()
    assert any("saved in" in note for note in caught.value.__notes__)
    assert [line["step"] for line in log_lines(tmp_path)] == [1, 2, 3, 4]
    latest = trainer.store.load_latest()
    assert latest is not None
    assert latest[0] == 4


@pytest.mark.usefixtures("late")
def test_muon_is_read_at_once(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, optimizer="muon", learning_rate=1e-3)
    assert not trainer._train_step.is_late
