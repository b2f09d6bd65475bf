"""Background work changes no result: batches read ahead, asynchronous checkpoints, dashboards."""

from __future__ import annotations

import gzip
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import RandomSource, fingerprint, log_lines, losses, make_trainer, train
from support.write_faults import largest_file
from torch import Tensor

import bgpt_fast.training.checkpointer
from bgpt_fast.data import DataError
from bgpt_fast.training import CheckpointWriteError
from bgpt_fast.training.checkpoint_store import CheckpointStore
from bgpt_fast.training.checkpointer import AsyncSaver, snapshot
from bgpt_fast.training.logs import RunLog


@pytest.fixture
def slow_saves(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every save takes as long as some steps; returns the threads that saved."""
    threads: list[str] = []
    save = CheckpointStore.save

    def slow(self: CheckpointStore, *arguments: Any, **named: Any) -> Path:
        threads.append(threading.current_thread().name)
        time.sleep(0.2)
        return save(self, *arguments, **named)

    monkeypatch.setattr(CheckpointStore, "save", slow)
    return threads


@pytest.mark.parametrize("process", [False, True])
def test_batches_read_ahead_are_the_same_batches(tmp_path: Path, process: bool) -> None:
    plain = train(tmp_path / "plain", steps=6, accumulation=2)
    source = RandomSource()
    ahead = train(tmp_path / "ahead", source, steps=6, accumulation=2, prefetch=3, prefetch_process=process)
    assert losses(tmp_path / "ahead") == losses(tmp_path / "plain")
    assert fingerprint(ahead) == fingerprint(plain)
    # The source's position is after the last batch that was used, not after those read ahead.
    assert source.position == 12


def test_a_source_that_fails_ahead_fails_at_its_own_step(tmp_path: Path) -> None:
    def crash(position: int) -> None:
        if position == 4:
            raise OSError("disk gone")

    trainer = make_trainer(tmp_path, RandomSource(before=crash), steps=10, prefetch=2)
    with pytest.raises(OSError, match="disk gone"):
        trainer.train()
    assert trainer.step == 4


def _resumed_from_step_3(tmp_path: Path) -> tuple[list[float], list[float]]:
    """Losses of a run, and of one resumed from its checkpoint of step 3, which was written while training continued."""
    train(tmp_path, steps=6, save_every=3, keep_last=9)
    expected = losses(tmp_path)
    (tmp_path / "checkpoints" / "latest").write_text("step-00000003\n")
    train(tmp_path, steps=6, save_every=3, keep_last=9)
    return expected, losses(tmp_path)


def test_a_checkpoint_is_of_its_step_while_training_continues(tmp_path: Path, slow_saves: list[str]) -> None:
    expected, got = _resumed_from_step_3(tmp_path)
    assert got == expected
    assert all(name.startswith("bgpt-save") for name in slow_saves)


def test_negative_control_without_copies_a_checkpoint_is_of_a_later_step(
    tmp_path: Path, slow_saves: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bgpt_fast.training.checkpointer, "snapshot", dict)
    expected, got = _resumed_from_step_3(tmp_path)
    assert got != expected


def test_training_continues_during_a_save_and_ends_after_it(tmp_path: Path, slow_saves: list[str]) -> None:
    trainer = make_trainer(tmp_path, steps=4, save_every=2)
    result = trainer.train()
    assert trainer.store.pointed("latest") == 4
    assert result.checkpoint_path.is_dir()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("bgpt-save")]


def test_a_failed_background_save_stops_training_at_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: CheckpointStore, step: int, *arguments: Any, **named: Any) -> Path:
        raise CheckpointWriteError("no space")

    def wait(position: int) -> None:
        deadline = time.monotonic() + 60
        while position == 2 and not trainer._checkpointer.failed and time.monotonic() < deadline:
            time.sleep(0.01)

    monkeypatch.setattr(CheckpointStore, "save", fail)
    trainer = make_trainer(tmp_path, RandomSource(before=wait), steps=9, save_every=2)
    with pytest.raises(CheckpointWriteError, match="no space"):
        trainer.train()
    assert trainer.step == 3


def test_saves_run_one_after_the_other_and_raise_once(tmp_path: Path) -> None:
    order: list[int] = []
    saves = AsyncSaver()

    def save(number: int) -> None:
        time.sleep(0.05)
        order.append(number)
        if number == 1:
            raise OSError("full")

    saves.start(lambda: save(0))
    saves.start(lambda: save(1))
    with pytest.raises(OSError, match="full"):
        saves.wait()
    saves.wait()
    assert not saves.failed
    saves.start(lambda: save(2))
    saves.close()
    assert order == [0, 1, 2]


def test_snapshot_keeps_values_layout_and_ties() -> None:
    weight = torch.arange(12.0).reshape(3, 4).t()
    tensors: dict[str, Tensor] = {"a": weight, "tied": weight, "empty": torch.empty(0), "part": weight[:2]}
    copies = snapshot(tensors)
    weight.zero_()
    assert copies["a"].stride() == weight.stride()
    assert copies["a"].tolist()[3] == [3.0, 7.0, 11.0]
    assert copies["tied"] is copies["a"]
    assert copies["part"].shape == (2, 3)
    assert copies["empty"].numel() == 0


def test_dashboards_and_profile_are_files_of_the_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    evaluations = iter([3.0, 2.0])
    fields = {"steps": 6, "eval_every": 3, "tensorboard": True, "profile_steps": 2, "profile_after": 2}
    train(tmp_path, evaluate=lambda model: {"loss": next(evaluations)}, **fields)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    curve = [(event.step, event.value) for event in events.Scalars("train/loss")]
    logged = [(line["step"], line["loss"]) for line in log_lines(tmp_path) if line["kind"] == "train"]
    assert [step for step, _ in curve] == [step for step, _ in logged]
    assert [value for _, value in curve] == pytest.approx([value for _, value in logged], rel=1e-6)
    assert [(event.step, event.value) for event in events.Scalars("eval/loss")] == [(3, 3.0), (6, 2.0)]
    profile = json.loads((tmp_path / "profile.json").read_text())
    assert profile["steps"] == 2
    assert profile["ops"][0].keys() == {"name", "calls", "cpu_seconds", "gpu_seconds"}
    trace = json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))
    named = {event.get("name") for event in trace["traceEvents"]}
    assert {"data", "forward", "backward", "clip", "optimizer"} <= named


def test_a_source_that_cannot_be_set_back_is_no_failure_of_a_complete_run(tmp_path: Path) -> None:
    def fail(state: dict[str, Any]) -> None:
        raise DataError("the connection is gone")

    source = RandomSource()
    source.load_state_dict = fail  # type: ignore[method-assign]
    trainer = make_trainer(tmp_path, source, steps=3, prefetch=2)
    with pytest.warns(UserWarning, match="could not be set back to where training ended: DataError: the connection"):
        result = trainer.train()
    assert result.steps == 3
    assert trainer.store.steps() == [3]


def test_data_that_fails_after_the_last_step_is_no_failure(tmp_path: Path) -> None:
    def crash(position: int) -> None:
        if position >= 3:
            raise DataError("vanished")

    for prefetch in (1, 4):
        result = make_trainer(tmp_path / str(prefetch), RandomSource(before=crash), steps=3, prefetch=prefetch).train()
        assert result.steps == 3


def test_a_full_disk_is_named_by_the_log(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    log.open_at(0, 0)
    with largest_file(4), pytest.raises(OSError, match=r"File too large.*log\.jsonl"):
        log.write({"loss": 1.0})
