"""Checkpoint folders: order of writing, failing disks, damage, pointers, pruning."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.write_faults import dies_in_step, disk_full, flip, largest_file, step_fails

from bgpt_fast import files
from bgpt_fast.checkpoint import save
from bgpt_fast.checkpoint.schema import CheckpointError
from bgpt_fast.config import BGPTConfig
from bgpt_fast.model import BGPT
from bgpt_fast.training import CheckpointDamagedError, CheckpointWriteError, checkpoint_store
from bgpt_fast.training.checkpoint_store import CheckpointStore, RunState

SMALL = BGPTConfig(patch_size=2, patch_length=4, hidden_size=4, patch_num_layers=1, byte_num_layers=1, num_heads=1)


def _checkpoint(step: int) -> RunState:
    torch.manual_seed(step)
    weights = BGPT(SMALL).state_dict()
    optimizer = {"a/exp_avg": torch.randn(5), "a/step": torch.tensor(float(step))}
    return RunState(SMALL, weights, optimizer, {"torch": torch.get_rng_state()}, {"step": step, "source": {"at": step}})


def _assert_same(one: RunState, other: RunState) -> None:
    assert one.model_config == other.model_config
    assert one.state == other.state
    for mine, its in ((one.weights, other.weights), (one.optimizer, other.optimizer), (one.rng, other.rng)):
        assert sorted(mine) == sorted(its)
        assert all(torch.equal(mine[name], its[name]) for name in mine)


def _assert_latest(store: CheckpointStore, step: int) -> None:
    latest = store.load_latest()
    assert latest is not None
    assert latest[0] == step
    _assert_same(latest[1], _checkpoint(step))


def test_round_trip_and_from_pretrained(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    assert store.load_latest() is None
    folder = store.save(7, _checkpoint(7))
    assert folder.name == "step-00000007"
    _assert_latest(store, 7)
    assert BGPT.from_pretrained(folder).config == SMALL


def test_old_ones_go_and_the_best_stays(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2)
    for step in range(1, 7):
        store.save(step, _checkpoint(step), best=step == 2)
    assert store.steps() == [2, 5, 6]
    assert store.pointed("best") == 2
    assert store.pointed("latest") == 6
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


def test_files_then_folder_then_pointer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    store = CheckpointStore(tmp_path)
    store.save(1, _checkpoint(1))
    real = {name: getattr(os, name) for name in ("fsync", "replace", "rename")}

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        kind = "folder" if path.is_dir() else "file"
        events.append(f"fsync {kind} {'in new' if '.step-' in str(path) else 'top'}")
        real["fsync"](descriptor)

    def renamed(name: str) -> Callable[..., None]:
        def call(source: Any, target: Any, **kwargs: Any) -> None:
            events.append(f"{name} {Path(target).name}")
            real[name](source, target, **kwargs)

        return call

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", renamed("replace"))
    monkeypatch.setattr(os, "rename", renamed("rename"))
    store.save(2, _checkpoint(2))
    moved = events.index("rename step-00000002")
    before, after = events[:moved], events[moved + 1 :]
    assert before.count("fsync file in new") == 6
    assert before[-1] == "fsync folder in new"
    assert [event for event in before if "top" in event or "latest" in event] == []
    assert after == ["fsync folder top", "fsync file top", "replace latest", "fsync folder top"]


def test_every_system_call_fails_in_turn(tmp_path: Path) -> None:
    calls = ("fsync", "replace", "rename", "chmod", "mkdir")
    for number in range(200):
        store = CheckpointStore(tmp_path / str(number), keep_last=1)
        store.save(1, _checkpoint(1))
        is_saved = False
        with step_fails(number, disk_full, calls) as steps, contextlib.suppress(CheckpointWriteError):
            store.save(2, _checkpoint(2))
            is_saved = True
        if not is_saved:
            _assert_same(store.load(1), _checkpoint(1))
        latest = store.load_latest()
        assert latest is not None
        _assert_same(latest[1], _checkpoint(latest[0]))
        if len(steps) <= number:
            break
    assert number == len(steps) > 20
    assert set(steps) == {"make", "write", *calls}
    assert store.steps() == [2]


def no_exchange(one: Any, other: Any) -> None:
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def two_renames(one: Any, other: Any) -> None:
    """Replaces a folder as it is done without an exchange, and without a way back."""
    shutil.rmtree(other)
    os.rename(one, other)


@pytest.mark.parametrize(
    "exchange",
    [
        files.exchange,
        pytest.param(no_exchange, marks=pytest.mark.slow),
        pytest.param(two_renames, marks=pytest.mark.slow),
    ],
)
def test_a_kill_in_every_step_of_replacing_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: Callable[[Any, Any], None]
) -> None:
    calls = ("fsync", "replace", "rename", "chmod", "rmdir")
    monkeypatch.setattr(checkpoint_store, "exchange", exchange)
    store = CheckpointStore(tmp_path, keep_last=1)
    steps = []
    store.save(1, _checkpoint(1))
    lost = without_folder = 0
    for number in range(200):
        if not dies_in_step(number, lambda: store.save(1, _checkpoint(2)), calls):
            break
        without_folder += not store.path(1).exists()
        try:
            latest = store.load_latest()
        except CheckpointDamagedError:
            lost += 1
            store.save(1, _checkpoint(1))
            continue
        assert latest is not None
        assert latest[1].state["step"] in (1, 2)
        steps.append(latest[1].state["step"])
        _assert_same(latest[1], _checkpoint(steps[-1]))
        if exchange is files.exchange:
            assert BGPT.from_pretrained(tmp_path / "latest").config == SMALL
        store.save(1, _checkpoint(1))
    assert number > 20
    if exchange is two_renames:
        assert lost, "the negative control loses a checkpoint"
        return
    assert not lost
    assert steps == sorted(steps), "the old one, then the new one"
    assert set(steps) == {1, 2}
    assert bool(without_folder) == (exchange is no_exchange), "restored from where it had been moved"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["latest", "step-00000001"]


def test_weights_that_are_not_finite_are_not_saved_and_passed_over(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, _checkpoint(1))
    bad = _checkpoint(2)
    bad.weights["patch_level_decoder.base.wpe.weight"][0, 0] = torch.nan
    with pytest.raises(CheckpointError, match=r"wpe\.weight: expected finite weights, got 1 of 16"):
        store.save(2, bad)
    assert store.steps() == [1]
    assert not list(tmp_path.glob(".step-*"))
    with pytest.MonkeyPatch.context() as patch:  # as an earlier version saved it
        patch.setattr(save, "check_finite", lambda *_: None)
        store.save(2, bad)
    with pytest.warns(UserWarning, match=r"going on from step 1.*expected finite weights"):
        _assert_latest(store, 1)


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "optimizer.safetensors", "model.safetensors"])
def test_pipes_where_files_are_meant_are_damage(tmp_path: Path, name: str) -> None:
    store = CheckpointStore(tmp_path)
    folder = store.save(1, _checkpoint(1))
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(CheckpointDamagedError, match=rf"{name}.*regular file"):
        store.load(1)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM])
def test_a_shortage_is_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        store.save(step, _checkpoint(step))

    def no_more(*_: Any) -> Any:
        raise OSError(number, os.strerror(number))

    for name in ("read_file", "open_regular", "read_json"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_store, name, no_more)
            with pytest.raises(OSError, match=os.strerror(number)) as caught:
                store.load(2)
        assert not isinstance(caught.value, CheckpointDamagedError)
    _assert_latest(store, 2)


def test_full_disk(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    folder = store.save(1, _checkpoint(1))
    sizes = sorted(path.stat().st_size for path in folder.iterdir())
    for size in [0, 1, *(limit - 1 for limit in sizes)]:
        with largest_file(size), pytest.raises(CheckpointWriteError, match="intact"):
            store.save(2, _checkpoint(2))
        assert store.steps() == [1]
        assert not list(tmp_path.glob(".step-*"))
    _assert_latest(store, 1)
    with largest_file(sizes[-1]):
        store.save(2, _checkpoint(2))
    assert store.pointed("latest") == 2


def test_bit_flips_and_truncation_are_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    folder = store.save(3, _checkpoint(3))
    files = sorted(path for path in folder.iterdir())
    assert len(files) == 6
    rng = np.random.default_rng(0)
    for trial in range(1200):
        path = files[trial % len(files)]
        content = path.read_bytes()
        bit = int(rng.integers(8 * len(content)))
        path.write_bytes(flip(content, bit) if trial < 1000 else content[: bit // 8])
        with pytest.raises(CheckpointDamagedError, match=path.name):
            store.load(3)
        path.write_bytes(content)
    # What is whole again is not refused.
    _assert_same(store.load(3), _checkpoint(3))


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json", "state.json"])
def test_damaged_latest_falls_back_and_says_so(tmp_path: Path, name: str) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, _checkpoint(1))
    path = store.save(2, _checkpoint(2)) / name
    content = path.read_bytes()
    path.write_bytes(flip(content, len(content) // 2 * 8))
    with pytest.warns(UserWarning, match=rf"going on from step 1.*{name}"):
        _assert_latest(store, 1)
    # Going on from there writes the damaged step again.
    store.save(2, _checkpoint(2))
    _assert_same(store.load(2), _checkpoint(2))


def test_nothing_intact_is_an_error(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        (store.save(step, _checkpoint(step)) / "optimizer.safetensors").unlink()
    with pytest.raises(CheckpointDamagedError, match="no intact checkpoint"):
        store.load_latest()


@pytest.mark.parametrize("pointer", [b"", b"step-00000009\n", b"\xff\xfe", b"../../etc\n", None])
def test_lost_pointer_means_the_newest(tmp_path: Path, pointer: bytes | None) -> None:
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        store.save(step, _checkpoint(step))
    if pointer is None:
        (tmp_path / "latest").unlink()
    else:
        (tmp_path / "latest").write_bytes(pointer)
    with pytest.warns(UserWarning, match="names no checkpoint"):
        _assert_latest(store, 2)


def test_leftovers_of_a_killed_save_are_ignored_and_removed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    folder = store.save(1, _checkpoint(1))
    shutil.copytree(folder, tmp_path / ".step-00000002.abc.part")
    _assert_latest(store, 1)
    store.save(2, _checkpoint(2))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["latest", "step-00000001", "step-00000002"]
