"""MixedSource: weights, positions and ranks over several sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.batches import equal
from support.training import RandomSource

from bgpt_fast.config import BGPTConfig
from bgpt_fast.data import DataError, FileSource, MixedSource, Source
from bgpt_fast.patches import PackedPatches

CONFIG = BGPTConfig(patch_size=4, patch_length=16, hidden_size=8, patch_num_layers=1, byte_num_layers=1)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two folders of 20 files, each file's content beginning with its folder's letter."""
    for letter in "ab":
        (tmp_path / letter).mkdir()
        for index in range(20):
            (tmp_path / letter / f"{index}.{letter}").write_bytes(letter.encode() + b"%d" % index * (1 + index % 9))
    return [tmp_path / "a", tmp_path / "b"]


def _mixed(folders: list[Path], weights: tuple[float, ...] = (3, 1), **fields: Any) -> MixedSource:
    return MixedSource([FileSource(folder, CONFIG, 30, split="all") for folder in folders], weights, **fields)


def _letter(batch: PackedPatches) -> str:
    (letter,) = {extension for extension, _ in batch.to_bytes()}
    return letter


def test_weights_are_shares_of_the_batches(folders: list[Path]) -> None:
    source = _mixed(folders)
    assert isinstance(source, Source)
    letters = [_letter(source.next_batch()) for _ in range(400)]
    # Binomial, 400 draws at 3/4: four standard deviations are 35.
    assert abs(letters.count("a") - 300) < 35
    assert source.describe()["batches"] == [letters.count("a"), letters.count("b")]
    assert {_letter(batch) for batch in [_mixed(folders, (0, 2)).next_batch() for _ in range(20)]} == {"b"}
    assert letters[:50] != [_letter(batch) for batch in map(lambda s: s.next_batch(), [_mixed(folders, seed=1)] * 50)]  # noqa: C417


def test_a_mixture_shards_sources_that_cannot_be_skipped_and_other_mixtures(folders: list[Path]) -> None:
    alone = RandomSource()
    ranks = [MixedSource([RandomSource()], [1], rank=rank, world_size=2) for rank in range(2)]
    assert all(equal(alone.next_batch(), source.next_batch()) for _ in range(4) for source in ranks)
    nested = [MixedSource([_mixed(folders)], [1], rank=rank, world_size=2) for rank in range(2)]
    flat = _mixed(folders)
    assert all(equal(flat.next_batch(), source.next_batch()) for _ in range(6) for source in nested)


def test_wrong_arguments_and_positions_are_named(folders: list[Path]) -> None:
    for weights in ((1,), (1, 2, 3), (-1, 2), (0, 0), (float("nan"), 1)):
        with pytest.raises(ValueError, match="weights"):
            _mixed(folders, weights)
    with pytest.raises(ValueError, match="weights"):
        MixedSource([], [])
    with pytest.raises(TypeError, match="sources"):
        MixedSource(["no source"], [1])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="world_size"):
        MixedSource([FileSource(folders[0], CONFIG, 30, split="all", world_size=2)], [1])
    state = _mixed(folders).state_dict()
    for foreign in ({**state, "sources": state["sources"][:1]}, state["sources"][0]):
        with pytest.raises(DataError, match="expected a position in 2 mixed sources"):
            _mixed(folders).load_state_dict(foreign)
