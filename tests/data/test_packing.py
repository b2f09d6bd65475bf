"""Packing: the best fit, how full batches are, nothing lost or twice, and ranks that share the work."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support.batches import contents, equal, skip

from bgpt_fast.config import BGPTConfig
from bgpt_fast.data import DataError, FileSource, best_fit, files

CONFIG = BGPTConfig(patch_size=4, patch_length=64, hidden_size=8, patch_num_layers=1, byte_num_layers=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """300 files: small, middling, and a few over the context; the content begins with the file's number."""
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for index in range(300):
        size = int(rng.choice([rng.integers(1, 20), rng.integers(20, 240), rng.integers(240, 400)], p=[0.3, 0.6, 0.1]))
        (tmp_path / "data" / f"{index:03d}.bin").write_bytes(b"%03d" % index + rng.bytes(size))
    return tmp_path / "data"


def test_best_fit_equals_trying_every_subset() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        lengths = rng.integers(1, 30, rng.integers(0, 9)).tolist()
        capacity = int(rng.integers(0, 90))
        chosen = best_fit(lengths, capacity)
        subsets = itertools.chain.from_iterable(
            itertools.combinations(lengths, count) for count in range(len(lengths) + 1)
        )
        assert sum(lengths[i] for i in chosen) == max(sum(s) for s in subsets if sum(s) <= capacity)
        assert chosen == sorted(set(chosen))


def test_best_fit_prefers_early_documents() -> None:
    assert best_fit([3, 3, 3, 6], 6) == [0, 1]
    assert best_fit([7, 8], 6) == []
    assert best_fit([], 6) == []
    assert best_fit([1], 0) == []


@pytest.mark.parametrize("patches_per_batch", [128, 512])
def test_batches_of_mixed_files_are_full(folder: Path, patches_per_batch: int) -> None:
    source = FileSource(folder, CONFIG, patches_per_batch, split="all")
    assert source.fill == 0
    batches = [source.next_batch() for _ in range(2 * 8000 // patches_per_batch)]
    fill = sum(batch.num_patches for batch in batches) / (len(batches) * patches_per_batch)
    assert fill == source.fill == source.describe()["fill"]
    assert fill >= 0.98
    # Without a look-ahead the same files leave more room empty: the window is what fills it.
    narrow = FileSource(folder, CONFIG, patches_per_batch, split="all", look_ahead=1)
    skip(narrow, len(batches))
    assert narrow.fill < fill - 0.01


def test_an_epoch_has_every_document_once_and_none_is_cut(folder: Path) -> None:
    source = FileSource(folder, CONFIG, 128, split="all")
    documents: list[bytes] = []
    while len(documents) < 600:
        documents += contents([source.next_batch()])
    uncut = {Path(path).read_bytes() for path in source.paths if Path(path).stat().st_size <= 62 * 4}
    for epoch in (documents[:300], documents[300:600]):
        short = [document for document in epoch if len(document) <= 62 * 4]
        assert uncut <= set(short)
        assert max(Counter(epoch).values()) == 1


@pytest.mark.parametrize("patches_per_batch", [64, 512])
def test_an_epochs_batches_are_estimated_without_reading_or_moving(folder: Path, patches_per_batch: int) -> None:
    source = FileSource(folder, CONFIG, patches_per_batch, rank=0, world_size=2)
    source.next_batch()
    state = source.state_dict()
    estimate = source.epoch_batches
    assert source.state_dict() == state
    counted = FileSource(folder, CONFIG, patches_per_batch)
    batches = 0
    while counted.state_dict()["epoch"] < 8:
        counted.skip_batch()
        batches += 1
    assert estimate == pytest.approx(batches / 8, rel=0.02)
    assert estimate > source.total_patches / patches_per_batch


def test_positions_include_the_window(folder: Path) -> None:
    source = FileSource(folder, CONFIG, 128)
    skip(source, 9)
    state = json.loads(json.dumps(source.state_dict()))
    assert state["window"]
    expected = [source.next_batch() for _ in range(70)]
    resumed = FileSource(folder, CONFIG, 128)
    resumed.load_state_dict(state)
    assert all(equal(batch, resumed.next_batch()) for batch in expected)
    forgetful = FileSource(folder, CONFIG, 128)
    forgetful.load_state_dict({**state, "window": state["window"][1:]})
    assert not all(equal(batch, forgetful.next_batch()) for batch in expected)


def test_damaged_and_foreign_positions_are_named(folder: Path) -> None:
    source = FileSource(folder, CONFIG, 128)
    state = source.state_dict()
    with pytest.raises(DataError, match="damaged"):
        source.load_state_dict({**state, "offset": 5, "window": [7]})
    for foreign in ({**state, "source": "arrow"}, {"source": "cpu_states", "any_start": 0}):
        with pytest.raises(DataError, match="expected a position in files"):
            source.load_state_dict(foreign)


def test_skipping_a_batch_reads_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = FileSource(folder, CONFIG, 128), FileSource(folder, CONFIG, 128)
    one.next_batch()
    with monkeypatch.context() as patch:
        patch.setattr(files, "read_entry", None)
        other.skip_batch()
    assert one.state_dict() == other.state_dict()
    assert equal(one.next_batch(), other.next_batch())


def test_a_rank_that_cannot_read_its_batch_goes_on_to_its_next(folder: Path) -> None:
    ranks = [FileSource(folder, CONFIG, 128, split="all", rank=rank, world_size=2) for rank in range(2)]
    alone = FileSource(folder, CONFIG, 128, split="all")
    first, second, third = (contents([alone.next_batch()]) for _ in range(3))
    for path in folder.iterdir():
        if any(path.read_bytes().startswith(document[:3]) for document in first):
            path.unlink()
    assert contents([ranks[0].next_batch()]) == third
    assert contents([ranks[1].next_batch()]) == second
    assert ranks[0].describe()["skipped"] == {"vanished": len(first)}


def test_a_file_that_grew_has_its_planned_size(tmp_path: Path) -> None:
    for index in range(10):
        (tmp_path / f"{index}.txt").write_bytes(b"%d" % index * 20)
    source = FileSource(tmp_path, CONFIG, 64, split="all")
    with (tmp_path / "1.txt").open("ab") as file:
        file.write(b"!" * 300)
    batches = [source.next_batch() for _ in range(2)]
    assert [batch.num_patches for batch in batches] == [63, 63]
    assert set(contents(batches)) == {b"%d" % index * 20 for index in range(10)}


@pytest.mark.parametrize("fields", [{"rank": 1}, {"rank": -1}, {"world_size": 0}, {"look_ahead": 0}])
def test_wrong_arguments_are_named(folder: Path, fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        FileSource(folder, CONFIG, 128, **fields)
