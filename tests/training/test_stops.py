"""Errors that end a run: unreadable data, and another run in the same folder."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import CONFIG, RandomSource, fingerprint, losses, make_model, make_trainer, torchrun, train

from bgpt_fast.data import DataError
from bgpt_fast.folder_lock import FolderInUseError, FolderLock
from bgpt_fast.training import Trainer
from bgpt_fast.training.checkpoint_store import CheckpointStore, CheckpointWriteError

HARD: dict[str, Any] = {"steps": 6, "accumulation": 2, "targets_per_step": 7}


def failing(at: int) -> RandomSource:
    def fail(position: int) -> None:
        if position == at:
            raise DataError("tune.abc: the disk is gone")

    return RandomSource(before=fail)


@pytest.mark.parametrize(("at", "prefetch"), [(7, 0), (6, 2)], ids=["second batch", "first batch, read ahead"])
def test_an_error_in_the_data_saves_the_run_first(tmp_path: Path, at: int, prefetch: int) -> None:
    straight = train(tmp_path / "straight", **HARD)
    stopped = make_trainer(tmp_path / "run", failing(at), prefetch=prefetch, **HARD)
    with pytest.raises(DataError, match="the disk is gone") as caught:
        stopped.train()
    assert stopped.step == 3
    assert stopped.store.pointed("latest") == 3
    assert caught.value.__notes__ == [f"saved in {stopped.store.path(3)}: start the same run again to go on"]
    assert stopped.source.state_dict() == {"position": 6}, "where step 4 begins"
    # With the data readable again the run equals one that never stopped; no batch of the failed step is lost.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*resuming with other settings")
        resumed = make_trainer(tmp_path / "run", **HARD)
    assert resumed.step == 3
    resumed.train()
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")
    assert fingerprint(resumed) == fingerprint(straight)


def test_without_a_step_or_with_infinite_weights_nothing_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_trainer(tmp_path / "first", failing(0))
    with pytest.raises(DataError) as caught:
        first.train()
    assert first.store.steps() == []
    assert not hasattr(caught.value, "__notes__")

    spoilt: list[Trainer] = []

    def spoil(position: int) -> None:
        if position == 2:
            with torch.no_grad():
                next(spoilt[0].model.parameters()).fill_(torch.inf)
            raise DataError("gone")

    spoilt.append(make_trainer(tmp_path / "spoilt", RandomSource(before=spoil)))
    with pytest.raises(DataError) as caught:
        spoilt[0].train()
    assert spoilt[0].store.steps() == []
    assert caught.value.__notes__ == ["the weights are no longer finite and were not saved"]

    def full(*_: object, **__: object) -> None:
        raise CheckpointWriteError("no space")

    monkeypatch.setattr(CheckpointStore, "save", full)
    # At 3, a save that is still running fails.
    for at, save_every in ((2, 0), (3, 3)):
        with pytest.raises(DataError, match="the disk is gone") as caught:
            train(tmp_path / f"full {at}", failing(at), save_every=save_every)
        assert caught.value.__notes__ == ["no space"]


def test_a_second_run_in_the_folder_is_refused_at_once(tmp_path: Path) -> None:
    first = make_trainer(tmp_path / "run", steps=2)
    with pytest.raises(FolderInUseError, match=f"run: process {os.getpid()} on .* is at work here .a training run."):
        make_trainer(tmp_path / "run", steps=2)
    first.train()
    assert not (tmp_path / "run/.lock").exists()
    # The error reports of ranks belong to the run that holds the lock; the next start removes them.
    note = tmp_path / "run/.ranks-first/1"
    note.parent.mkdir()
    note.touch()
    lock = FolderLock(tmp_path / "run", "another run")
    with pytest.raises(FolderInUseError):
        make_trainer(tmp_path / "run", steps=2)
    assert note.exists()
    lock.release()
    make_trainer(tmp_path / "run", steps=2)
    assert not note.parent.exists()
    # Between sessions the folder is unlocked, and a session of the same trainer locks it again.
    lock = FolderLock(tmp_path / "run", "another run")
    with pytest.raises(FolderInUseError):
        first.train()
    lock.release()
    first.train()
    # A trainer that is refused for another reason does not keep the lock.
    with pytest.raises(ValueError, match="another model"):
        make_trainer(tmp_path / "run", model=make_model(dataclasses.replace(CONFIG, byte_num_layers=2)))
    FolderLock(tmp_path / "run", "another run").release()


CHILD = """
import sys; sys.path.insert(0, "tests")
from support.training import RandomSource, make_trainer
def wait(position):
    if position == 2:
        print("training", flush=True)
        input()
make_trainer(__import__("pathlib").Path(sys.argv[1]), RandomSource(before=wait), save_every=1).train()
"""


def test_a_killed_run_does_not_block_the_next(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"training\n"
        with pytest.raises(FolderInUseError, match=f"process {child.pid} on"):
            make_trainer(tmp_path / "run")
        child.kill()
    assert (tmp_path / "run/.lock").exists()
    resumed = make_trainer(tmp_path / "run", save_every=1)
    assert resumed.step in (1, 2)
    resumed.train()


@pytest.mark.slow
def test_all_ranks_are_refused(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "run", "another run")
    note = tmp_path / "run/.ranks-first/1"
    note.parent.mkdir()
    note.touch()
    refused = torchrun([{"run": str(tmp_path / "run")}])
    lock.release()
    assert refused.returncode != 0
    assert refused.stderr.count(b"is at work here") >= 2, "rank 0 broadcasts the error"
    assert not (tmp_path / "run/checkpoints").exists()
    assert list((tmp_path / "run").glob(".ranks-*/*")) == [note], "the first run's, and none of the refused one"
