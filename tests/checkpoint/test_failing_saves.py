"""Checkpoints: a save that fails or is killed in any step leaves a whole checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
from support.checkpoints import (
    LABELS,
    OTHER,
    SMALL,
    Weights,
    is_refused,
    make_classifier_weights,
    make_weights,
    same,
)
from support.write_faults import dies_in_step, disk_full, step_fails

from bgpt_fast import BGPTConfig
from bgpt_fast.checkpoint.load import load_weights
from bgpt_fast.checkpoint.save import save_released, save_weights


def save_attempts(
    folder: Path, config: BGPTConfig, weights: Weights, labels: dict[str, int] | None = None
) -> Iterator[int]:
    """Saves again and again, a later step failing each time, until a save succeeds."""
    for number in range(100):
        with step_fails(number, disk_full) as steps, contextlib.suppress(OSError):
            save_weights(folder, config, weights, labels=labels)
        yield number
        if len(steps) <= number:
            return


@pytest.mark.parametrize(
    ("config", "new", "labels"),
    [(OTHER, make_weights(OTHER, seed=1), None), (SMALL, make_classifier_weights(), LABELS)],
    ids=["another config", "another kind"],
)
def test_every_failing_step_leaves_a_whole_checkpoint(
    folder: Path, weights: Weights, config: BGPTConfig, new: Weights, labels: dict[str, int] | None
) -> None:
    is_new = []
    for number in save_attempts(folder, config, new, labels):
        loaded = load_weights(folder)
        is_new.append((loaded.config, loaded.labels) == (config, labels))
        assert is_new[-1] or (loaded.config, loaded.labels) == (SMALL, None), number
        assert same(loaded.state_dict, new if is_new[-1] else weights), number
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"], number
    assert is_new.count(False) >= 8, "the old one stays through the writing of both files"
    assert is_new[-1]
    assert is_new == sorted(is_new)


def test_a_failing_save_is_named(folder: Path, weights: Weights, tmp_path: Path) -> None:
    with step_fails(1, disk_full), pytest.raises(OSError, match=r"No space left.*not saved.*model") as caught:
        save_weights(folder, SMALL, weights)
    assert caught.value.filename == str(folder)
    with step_fails(1, disk_full), pytest.raises(OSError, match=r"No space left.*not saved.*a\.pth"):
        save_released(tmp_path / "a.pth", SMALL, weights)
    assert not (tmp_path / "a.pth").exists()


def test_a_first_save_that_fails_leaves_nothing_that_loads_wrongly(tmp_path: Path, weights: Weights) -> None:
    loads = []
    for _ in save_attempts(tmp_path / "model", SMALL, weights):
        loads.append(not is_refused(tmp_path / "model"))
    assert loads == sorted(loads), "refused until it is whole"
    assert loads.count(False) >= 8
    assert same(load_weights(tmp_path / "model").state_dict, weights)


def test_a_crash_in_every_step_leaves_a_whole_checkpoint(folder: Path, weights: Weights) -> None:
    old, new = weights, make_weights(seed=1)
    got_through, saves = False, 0
    for number in range(100):
        # Each round saves over what the crash before left, leftovers included.
        if not same(load_weights(folder).state_dict, old):
            old, new = new, old
        got_through = not dies_in_step(number, lambda new=new: save_weights(folder, SMALL, new))
        loaded = load_weights(folder).state_dict
        assert same(loaded, new) or (not got_through and same(loaded, old)), number
        saves += same(loaded, new)
        if got_through:
            break
    assert got_through
    assert number >= 12, "both files' steps were gone through"
    assert saves >= 2


def test_the_crash_test_catches_weights_that_config_json_does_not_know(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(safetensors.torch.save(make_weights(seed=1)))
    assert is_refused(folder)
