"""PairSource: the document of a pair, both directions, and what is no pair."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from bgpt_fast.config import EOP, BGPTConfig
from bgpt_fast.data import DataError, LabelledSource, PairSource, Source
from bgpt_fast.data.pairs import parse_conversion
from bgpt_fast.patches import PackedPatches

CONFIG = BGPTConfig(patch_size=4, patch_length=32, hidden_size=8, patch_num_layers=1, byte_num_layers=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """30 pairs of .abc and .mid with odd sizes, in two folders with equal names."""
    rng = np.random.default_rng(0)
    for index in range(30):
        stem = tmp_path / "tunes" / f"d{index % 2}" / f"t{index // 2}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        stem.with_suffix(".abc").write_bytes(b"a%d:" % index + rng.bytes(int(rng.integers(1, 30))))
        stem.with_suffix(".mid").write_bytes(b"m%d:" % index + rng.bytes(int(rng.integers(1, 60))))
    return tmp_path / "tunes"


def _split(batch: PackedPatches) -> list[tuple[bytes, bytes, bytes, bytes]]:
    """(source extension, source, target extension, target) of each document of one batch, from its patches alone."""
    pairs = []
    offsets = batch.cu_seqlens.tolist()
    for start, stop in itertools.pairwise(offsets):
        rows = [bytes(row[row != EOP].to(torch.uint8).tolist()) for row in batch.patches[start:stop]]
        (middle,) = (i for i, row in enumerate(rows) if i and row in (b"abc", b"mid"))
        assert rows[-1] == b""
        assert all(rows[:-1])
        pairs.append((rows[0], b"".join(rows[1:middle]), rows[middle], b"".join(rows[middle + 1 : -1])))
    return pairs


def _on_disk(source: PairSource) -> list[tuple[bytes, bytes, bytes, bytes]]:
    return sorted(
        (Path(a).suffix[1:].encode(), Path(a).read_bytes(), Path(b).suffix[1:].encode(), Path(b).read_bytes())
        for a, b in source.paths
    )


@pytest.mark.parametrize(("conversion", "documents"), [("abc->mid", 30), ("mid->abc", 30), ("abc&mid", 60)])
def test_an_epoch_is_every_pair_once_in_every_direction(folder: Path, conversion: str, documents: int) -> None:
    source = PairSource(folder, conversion, CONFIG, 64, split="all")
    assert isinstance(source, Source)
    assert len(source) == documents
    pairs: list[tuple[bytes, bytes, bytes, bytes]] = []
    while len(pairs) < documents:
        pairs += _split(source.next_batch())
    assert sorted(pairs[:documents]) == _on_disk(source)
    assert sorted(pair for batch in source.one_pass() for pair in _split(batch)) == _on_disk(source)
    directions = {(pair[0], pair[2]) for pair in pairs}
    assert len(directions) == (2 if "&" in conversion else 1)


def test_every_patch_but_the_first_is_in_the_loss(folder: Path) -> None:
    batch = PairSource(folder, "abc->mid", CONFIG, 64, split="all").next_batch()
    assert len(batch.target_indices()) == batch.num_patches - batch.num_documents


def test_over_long_pairs_are_skipped_and_named_or_an_error(folder: Path) -> None:
    (folder / "long.abc").write_bytes(b"x" * 60)
    (folder / "long.mid").write_bytes(b"y" * 56)
    # 1 + 15 + 1 + 14 + 1 patches are just the context; a byte more is over it.
    assert len(PairSource(folder, "abc&mid", CONFIG, 64, split="all", truncation="error")) == 62
    (folder / "long.mid").write_bytes(b"y" * 57)
    source = PairSource(folder, "abc&mid", CONFIG, 64, split="all")
    assert len(source) == 60
    description = json.loads(json.dumps(source.describe()))
    assert description["skipped"] == {"pair over the context": 1}
    assert "long.mid" in description["warnings"][0]
    with pytest.raises(DataError, match=r"long.*at most 32 patches, got 33"):
        PairSource(folder, "abc&mid", CONFIG, 64, split="all", truncation="error")
    with pytest.warns(DeprecationWarning, match="overlong is now called truncation"), pytest.raises(DataError):
        PairSource(folder, "abc&mid", CONFIG, 64, split="all", overlong="error")  # type: ignore[call-arg]


def test_files_without_a_partner_are_counted(folder: Path) -> None:
    (folder / "alone.abc").write_bytes(b"a")
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "alone.mid").write_bytes(b"b")
    (folder / "notes.txt").write_bytes(b"c")
    source = PairSource(folder, "abc->mid", CONFIG, 64, split="all")
    assert len(source) == 30
    assert source.describe()["skipped"] == {"no partner": 2, "extension of no pair": 1}
    with pytest.raises(DataError, match="no partner"):
        PairSource(folder / "elsewhere", "abc->mid", CONFIG, 64)


def test_both_directions_are_on_one_side_of_the_split(folder: Path) -> None:
    train, held_out = (
        {frozenset(pair) for pair in PairSource(folder, "abc&mid", CONFIG, 64, split=split, eval_share=0.4).paths}
        for split in ("train", "eval")
    )
    assert not train & held_out
    assert len(train | held_out) == 30
    assert held_out


def test_pairs_that_vanish_are_left_out(folder: Path) -> None:
    source = PairSource(folder, "abc&mid", CONFIG, 64, split="all")
    deleted = Path(source.paths[0][0])
    deleted.unlink()
    pairs = [pair for batch in source.one_pass() for pair in _split(batch)]
    assert len(pairs) == 58
    assert source.describe()["skipped"] == {"vanished": 1}


def test_a_position_in_other_directions_warns(folder: Path) -> None:
    both = PairSource(folder, "abc&mid", CONFIG, 64, split="all")
    both.next_batch()
    one = PairSource(folder, "abc->mid", CONFIG, 64, split="all")
    with pytest.warns(UserWarning, match="changed since"):
        one.load_state_dict(both.state_dict())
    assert (one.state_dict()["epoch"], one.state_dict()["offset"]) == (1, 0)


@pytest.mark.parametrize("conversion", ["abc", "abc->", "&mid", "abc->abc", "a->b->c", "a&b&c"])
def test_wrong_conversions_are_named(conversion: str, folder: Path) -> None:
    with pytest.raises(ValueError, match="conversion"):
        PairSource(folder, conversion, CONFIG, 64)
    assert parse_conversion(".abc -> mid") == [("abc", "mid")]


@pytest.mark.filterwarnings("ignore:.*so batches shrink")
def test_pairs_and_classes_of_hard_links_lose_no_member(tmp_path: Path) -> None:
    for name in ("one.abc", "one.mid", "cat_1.bin", "dog_1.bin"):
        (tmp_path / name).write_bytes(b"the same size")
    for name in ("two.abc", "three.abc"):
        os.link(tmp_path / "one.abc", tmp_path / name)
    for name in ("two.mid", "four.mid"):
        os.link(tmp_path / "one.mid", tmp_path / name)
    os.link(tmp_path / "cat_1.bin", tmp_path / "dog_2.bin")
    pairs = PairSource(tmp_path, "abc->mid", CONFIG, 50, split="all")
    assert [tuple(Path(path).name for path in pair) for pair in pairs.paths] == [
        ("one.abc", "one.mid"), ("two.abc", "two.mid"),
    ]  # fmt: skip
    assert {Path(name).name: reason for name, reason in pairs.skipped.items()} == {
        "three.abc": "no partner",
        "four.mid": "no partner",
        **dict.fromkeys(("cat_1.bin", "dog_1.bin", "dog_2.bin"), "extension of no pair"),
    }
    labelled = LabelledSource(tmp_path, CONFIG, 50, split="all")
    assert [Path(path).name for path in labelled.paths] == ["cat_1.bin", "dog_1.bin", "dog_2.bin"]
    assert labelled.describe()["skipped"] == {"no label": 6}
