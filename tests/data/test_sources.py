"""What all sources of documents share: positions, ranks, epochs, splits, and files that change."""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.batches import contents, equal, skip

from bgpt_fast.config import BGPTConfig
from bgpt_fast.data import (
    ArrowSource,
    DataError,
    FileSource,
    LabelledSource,
    MixedSource,
    PairSource,
    Prefetcher,
    Source,
)

CONFIG = BGPTConfig(patch_size=4, patch_length=32, hidden_size=8, patch_num_layers=1, byte_num_layers=1)
BATCH: dict[str, Any] = {"patches_per_batch": 64}
Make = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """60 files of two classes and 30 pairs, some over the context, and the same contents as rows."""
    rng = np.random.default_rng(0)
    (tmp_path / "files").mkdir()
    rows = []
    for index in range(30):
        for extension in ("abc", "mid"):
            rows.append(b"%d:" % index + rng.bytes(int(rng.integers(1, 50))))
            (tmp_path / "files" / f"cat_{index}.{extension}").write_bytes(rows[-1])
    for extension in ("abc", "mid"):
        (tmp_path / "files" / f"dog_long.{extension}").write_bytes(rng.bytes(400))
    (tmp_path / "rows").mkdir()
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        return tmp_path
    for number in range(3):
        table = pa.table({"content": [*rows[number * 20 :][:20], rng.bytes(400)]})
        parquet.write_table(table, tmp_path / "rows" / f"{number}.parquet", row_group_size=7)
    return tmp_path


def mixed(folder: Path, rank: int = 0, world_size: int = 1, **options: Any) -> MixedSource:
    sources = [FileSource(folder / "files", CONFIG, 64, seed=seed, **options) for seed in (0, 1)]
    return MixedSource(sources, (2, 1), rank=rank, world_size=world_size)


SOURCES: dict[str, Make] = {
    "files": lambda folder, **options: FileSource(folder / "files", CONFIG, **BATCH | options),
    "labelled": lambda folder, **options: LabelledSource(folder / "files", CONFIG, **BATCH | options),
    "pairs": lambda folder, **options: PairSource(folder / "files", "abc&mid", CONFIG, 64, **options),
    "arrow": lambda folder, **options: ArrowSource(
        folder / "rows", "content", CONFIG, **BATCH | {"buffer_rows": 15} | options
    ),
    "mixed": mixed,
}
PACKED = [name for name in SOURCES if name != "mixed"]


@pytest.fixture
def make(request: pytest.FixtureRequest, folder: Path) -> Make:
    name = request.param
    if name == "arrow":
        pytest.importorskip("pyarrow")
    return lambda **options: SOURCES[name](folder, **{"split": "all", **options})


every_source = pytest.mark.parametrize("make", SOURCES, indirect=True)
every_packed_source = pytest.mark.parametrize("make", PACKED, indirect=True)


@every_source
@pytest.mark.parametrize("batches", [0, 1, 5, 23, 50])
def test_positions_go_on_exactly(make: Make, batches: int) -> None:
    source = make()
    skip(source, batches)
    state = json.loads(json.dumps(source.state_dict()))
    resumed = make()
    resumed.next_batch()
    resumed.load_state_dict(state)
    pickled = pickle.loads(pickle.dumps(source))
    fresh = make()
    expected = [source.next_batch() for _ in range(30)]
    with Prefetcher(make()) as ahead:
        ahead.load_state_dict(state)
        for batch in expected:
            assert all(equal(batch, other.next_batch()) for other in (resumed, pickled, ahead))
    assert ahead.state_dict() == resumed.state_dict() == source.state_dict()
    assert batches == 0 or not all(equal(batch, fresh.next_batch()) for batch in expected)


@every_source
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_what_one_process_gets(make: Make, world_size: int) -> None:
    alone = make()
    ranks = [make(rank=rank, world_size=world_size) for rank in range(world_size)]
    for _ in range(12):
        assert all(equal(alone.next_batch(), source.next_batch()) for source in ranks)
    assert all(source.state_dict() == alone.state_dict() for source in ranks)
    # Any number of ranks goes on from the position.
    more = [make(rank=rank, world_size=world_size + 1) for rank in range(world_size + 1)]
    for source in more:
        source.load_state_dict(ranks[-1].state_dict())
    assert all(equal(alone.next_batch(), source.next_batch()) for source in more)


@every_source
def test_skipping_a_batch_changes_the_position_as_reading_it_does(make: Make) -> None:
    one, other = make(), make()
    one.next_batch()
    other.skip_batch()
    assert one.state_dict() == other.state_dict()
    assert equal(one.next_batch(), other.next_batch())


@every_packed_source
@pytest.mark.parametrize("world_size", [1, 3])
def test_one_pass_is_an_epochs_documents_once_and_leaves_the_position(make: Make, world_size: int) -> None:
    def documents(batches: list[Any]) -> list[bytes]:
        packed = [getattr(batch, "batch", batch) for batch in batches]
        return [part.numpy().tobytes() for p in packed for part in p.patches.split(p.cu_seqlens.diff().tolist())]

    source = make()
    assert hasattr(source.next_batch(), "labels") or isinstance(source, Source)
    state = source.state_dict()
    in_order = documents(list(source.one_pass()))
    assert source.state_dict() == state
    assert len(set(in_order)) == len(in_order)
    splits: dict[str, list[bytes]] = {"train": [], "eval": []}
    for split, rank in itertools.product(splits, range(world_size)):
        part = make(split=split, eval_share=0.3, rank=rank, world_size=world_size)
        splits[split] += documents(list(part.one_pass()))
    assert sorted(splits["train"] + splits["eval"]) == sorted(in_order)
    assert sorted(splits["eval"]) == sorted(documents(list(make(split="eval", eval_share=0.3).one_pass())))
    assert splits["eval"]


@every_packed_source
def test_a_position_among_other_files_goes_to_the_next_epoch_with_a_warning(make: Make, folder: Path) -> None:
    state = {**make().state_dict(), "files": "other files"}
    other = make()
    with pytest.warns(UserWarning, match="changed since"):
        other.load_state_dict(state)
    assert (other.state_dict()["epoch"], other.state_dict()["offset"]) == (1, 0)
    with pytest.raises(DataError, match="expected a position in"):
        other.load_state_dict({**state, "source": "another"})


@pytest.mark.parametrize("name", ["files", "labelled", "arrow"])
def test_training_has_windows_of_documents_over_the_context_and_a_pass_their_heads(name: str, tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(4000)
    (tmp_path / "files").mkdir()
    (tmp_path / "files/dog_long.bin").write_bytes(content)
    (tmp_path / "rows").mkdir()
    if name == "arrow":
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").table({"content": [content]}), tmp_path / "rows/a.parquet")
    source = SOURCES[name](tmp_path, split="all", patches_per_batch=CONFIG.patch_length)

    def contents_of(batches: Iterable[Any]) -> list[bytes]:
        return contents(getattr(batch, "batch", batch) for batch in batches)

    windows = contents_of(source.next_batch() for _ in range(12))
    assert all(window in content for window in windows)
    assert len(set(windows)) > 3
    assert source.describe()["documents_cut"] == 12
    (head,) = contents_of(source.one_pass())
    assert content.startswith(head)
    assert len(head) == (CONFIG.patch_length - 1) * CONFIG.patch_size
