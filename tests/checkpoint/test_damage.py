"""Checkpoints: every truncation and flipped bit is refused; pipes, lack of memory and long files are named."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from support.checkpoints import (
    SMALL,
    Weights,
    assert_refused,
    is_refused,
    make_weights,
    same,
)
from support.write_faults import flip

from bgpt_fast.checkpoint.load import load_weights
from bgpt_fast.checkpoint.save import save_released
from bgpt_fast.checkpoint.schema import CheckpointError
from bgpt_fast.memory import OutOfMemoryError


def test_files_longer_than_their_header_says_are_not_read(tmp_path: Path, folder: Path) -> None:
    sparse = tmp_path / "sparse.safetensors"
    for start, message in (
        (b"", "a header of 0 bytes in a file of 1,099,511,627,776"),
        ((folder / "model.safetensors").read_bytes(), r"1,099,511,627,776 bytes, where its header says [\d,]+;"),
        ((1 << 40).to_bytes(8, "little"), "a header of 1,099,511,627,776 bytes"),
        (b"\x02" + bytes(7) + b"[]", "got damage"),
        ((10**5).to_bytes(8, "little") + b"[" * 10**5, "64 deep"),
    ):
        sparse.write_bytes(start)
        os.truncate(sparse, 1 << 40)
        assert_refused(sparse, message)
    os.truncate(folder / "model.safetensors", 1 << 40)
    with pytest.raises(CheckpointError, match="where its header says"):
        load_weights(folder)


def test_pipes_where_files_are_meant_end_at_once(tmp_path: Path, folder: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        copied = tmp_path / f"with {name}"
        shutil.copytree(folder, copied)
        (copied / name).unlink()
        os.mkfifo(copied / name)
        with pytest.raises((CheckpointError, OSError), match=name):
            load_weights(copied)
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    with (checkpoints / "latest").open("wb") as file:
        file.truncate(10 << 30)
    with pytest.raises(CheckpointError, match="latest: expected at most 4,096 bytes, got 10,737,418,240"):
        load_weights(tmp_path / "run")


def test_memory_that_runs_out_is_no_damage(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_released(tmp_path / "a.pth", SMALL, make_weights())

    def full(*_: Any, **__: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes.")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "load", full)
        patch.setattr(torch, "load", full)
        for path in (folder, folder / "model.safetensors", tmp_path / "a.pth"):
            with pytest.raises(OutOfMemoryError, match=rf"weights in .*{path.name}, [\d,]+ bytes: 64 bytes more"):
                load_weights(path)
    assert same(load_weights(folder).state_dict, load_weights(tmp_path / "a.pth").state_dict)


def spells_the_same(damaged: bytes, content: bytes) -> bool:
    """Whether the JSON has the same values, as "\\udcE9" and "\\udce9"."""
    with contextlib.suppress(ValueError):
        return json.loads(damaged) == json.loads(content)
    return False


def assert_damage_is_refused(path: Path, damage: Callable[[bytes], Iterable[bytes]]) -> None:
    """Checks that each damaged content of a file of a checkpoint folder is refused, and its own is not."""
    content = path.read_bytes()
    for number, damaged in enumerate(damage(content)):
        path.write_bytes(damaged)
        is_spelling = path.name == "config.json" and spells_the_same(damaged, content)
        assert is_spelling or is_refused(path.parent), number
    path.write_bytes(content)
    assert not is_refused(path.parent)


def truncations(content: bytes) -> Iterator[bytes]:
    stream = random.Random(0)
    last = len(content) - 1
    for size in {0, 1, 7, 8, last, *(stream.randrange(last) for _ in range(200))}:
        yield content[:size]


def bit_flips(content: bytes) -> Iterator[bytes]:
    stream = random.Random(1)
    return (flip(content, stream.randrange(8 * len(content))) for _ in range(1000))


def damaged_labels(content: bytes) -> Iterator[bytes]:
    stream = random.Random(0)
    start = 8 * content.index(b"a.bin")
    yield content[:-2]
    for _ in range(100):
        yield flip(content, stream.randrange(start, start + 8 * 40))
        yield flip(content, stream.randrange(8 * len(content)))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("damage", [truncations, bit_flips])
def test_damage_is_refused(folder: Path, name: str, damage: Callable[[bytes], Iterable[bytes]]) -> None:
    assert_damage_is_refused(folder / name, damage)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_damage_to_a_classifier_is_refused(classifier: Path, name: str) -> None:
    assert_damage_is_refused(classifier / name, damaged_labels)


def test_the_flips_escape_a_file_without_its_checksum(tmp_path: Path, folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (tmp_path / "lone.safetensors").write_bytes(flip(content, 8 * len(content) - 8))
    assert not is_refused(tmp_path / "lone.safetensors"), "so it is the SHA-256 that finds them"


def test_damaged_released_files_never_give_other_weights(tmp_path: Path, weights: Weights) -> None:
    path = tmp_path / "a.pth"
    save_released(path, SMALL, weights)
    content = path.read_bytes()
    stream = random.Random(2)
    for offset in (stream.randrange(len(content)) for _ in range(100)):
        path.write_bytes(content[:offset])
        assert is_refused(path), offset
    refusals = 0
    for _ in range(300):
        path.write_bytes(flip(content, stream.randrange(8 * len(content))))
        if is_refused(path):
            refusals += 1
        else:
            assert same(load_weights(path).state_dict, weights), "only padding of the archive may change unseen"
    assert refusals > 150
