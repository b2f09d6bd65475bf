"""What a checkpoint needs is on the disk before its folder gets its name: the log's lines, and the shards of FSDP."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import CONFIG, make_model, train

from bgpt_fast.training.checkpoint_store import CheckpointStore, RunState


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is flushed and renamed, in order."""
    recorded: list[str] = []
    real = {name: getattr(os, name) for name in ("fsync", "rename", "replace")}

    def fsync(descriptor: int) -> None:
        recorded.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        real["fsync"](descriptor)

    def renaming(name: str) -> Callable[..., None]:
        def call(source: Any, target: Any, **rest: Any) -> None:
            recorded.append(f"name {Path(target).name}")
            real[name](source, target, **rest)

        return call

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", renaming("rename"))
    monkeypatch.setattr(os, "replace", renaming("replace"))
    return recorded


def test_shards_are_flushed_before_the_manifest_has_its_name(tmp_path: Path, events: list[str]) -> None:
    names = [f"shard-{rank}.safetensors" for rank in range(2)]

    def write_shards(folder: Path) -> None:
        """Without flushing, as torch's writers do."""
        for name in names:
            (folder / name).write_bytes(b"shard")

    state = RunState(CONFIG, make_model().state_dict(), {}, {"torch": torch.get_rng_state()}, {"step": 1}, write_shards)
    CheckpointStore(tmp_path).save(1, state)
    before = events[: events.index("name manifest.json")]
    assert [event for event in before if "shard" in event] == [f"fsync {name}" for name in names]
    assert before.index("fsync optimizer") > before.index(f"fsync {names[-1]}"), "the folder of the shards, after them"


def test_the_log_is_flushed_before_each_checkpoint_has_its_name(tmp_path: Path, events: list[str]) -> None:
    train(tmp_path, steps=6, save_every=2, async_saves=False)
    named = [event for event in events if event == "fsync log.jsonl" or event.startswith("name step-")]
    steps = [event for event in named if event.startswith("name step-")]
    assert steps == [f"name step-{step:08d}" for step in (2, 4, 6)]
    for number, event in enumerate(named):
        if event in steps:
            assert named[number - 1] == "fsync log.jsonl", f"the log's lines up to this step: {named}"
