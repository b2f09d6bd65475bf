"""FileSource: order, packing, split, positions, and files that cannot be read."""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.batches import contents, equal

from bgpt_fast.config import BGPTConfig
from bgpt_fast.data import DataError, FileSource, Source
from bgpt_fast.data.file_index import SkipReport, find_files, read_content

CONFIG = BGPTConfig(patch_size=4, patch_length=16, hidden_size=8, patch_num_layers=1, byte_num_layers=1)
FITS = (CONFIG.patch_length - 2) * CONFIG.patch_size


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 files of 1…56 bytes, two folders deep, each with content of its own."""
    rng = np.random.default_rng(0)
    for index in range(40):
        path = tmp_path / "data" / f"d{index % 3}" / f"{index:03d}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([index]) + rng.bytes(int(rng.integers(FITS))))
    return tmp_path / "data"


def _contents(source: FileSource) -> list[bytes]:
    return [Path(path).read_bytes() for path in source.paths]


def test_an_epoch_is_every_file_once(folder: Path) -> None:
    source = FileSource(folder, CONFIG, 50, split="all")
    assert isinstance(source, Source)
    documents: list[bytes] = []
    batches = []
    while len(documents) < 80:
        batches.append(source.next_batch())
        documents += contents(batches[-1:])
    assert all(35 <= batch.num_patches <= 50 for batch in batches)
    assert contents(source.one_pass()) == _contents(source), "a pass is in the order of the paths"
    everything = sorted(_contents(source))
    assert sorted(documents[:40]) == sorted(documents[40:80]) == everything


def test_each_epoch_has_a_new_order(folder: Path) -> None:
    # With no choice among the next documents to fill a batch, their order is the epoch's.
    source = FileSource(folder, CONFIG, 50, split="all", look_ahead=1)
    documents: list[bytes] = []
    while len(documents) < 80:
        documents += contents([source.next_batch()])
    first, second, paths = documents[:40], documents[40:80], _contents(source)
    assert sorted(first) == sorted(second) == sorted(paths)
    assert first != second != paths != first


def test_the_seed_decides_the_order(folder: Path) -> None:
    one, same, other = (FileSource(folder, CONFIG, 50, seed=seed, split="all") for seed in (0, 0, 1))
    batch = one.next_batch()
    assert equal(batch, same.next_batch())
    assert not equal(batch, other.next_batch())


def test_a_position_among_changed_files_warns(folder: Path) -> None:
    source = FileSource(folder, CONFIG, 50)
    source.next_batch()
    state = source.state_dict()
    (folder / "new.bin").write_bytes(b"new")
    other = FileSource(folder, CONFIG, 50)
    with pytest.warns(UserWarning, match="changed since"):
        other.load_state_dict(state)
    assert (other.state_dict()["epoch"], other.state_dict()["offset"]) == (1, 0)


@pytest.mark.parametrize("split_by", ["path", "content"])
def test_splits_never_overlap_and_depend_on_the_file_alone(folder: Path, tmp_path: Path, split_by: Any) -> None:
    fields: dict[str, Any] = {"eval_share": 0.3, "split_by": split_by}
    train = FileSource(folder, CONFIG, 50, split="train", **fields)
    held_out = FileSource(folder, CONFIG, 50, split="eval", **fields)
    assert sorted(train.paths + held_out.paths) == sorted(str(path) for path in folder.rglob("*.bin"))
    assert 3 <= len(held_out) <= 25
    before = {Path(path).name for path in held_out.paths}
    for index in range(40, 60):
        (folder / f"{index}.bin").write_bytes(bytes([index]) * 10)
    moved = folder.rename(tmp_path / "elsewhere")
    again = FileSource(moved, CONFIG, 50, split="eval", seed=9, **fields)
    assert {Path(path).name for path in again.paths if "/d" in path} == before


def test_copies_stay_on_one_side_when_split_by_content(tmp_path: Path) -> None:
    for index in range(60):
        for copy in "ab":
            (tmp_path / f"{copy}{index}.bin").write_bytes(b"content %d" % index)
    sides = {
        split_by: [
            {
                Path(path).read_bytes()
                for path in FileSource(tmp_path, CONFIG, 20, split=split, eval_share=0.5, split_by=split_by).paths
            }  # type: ignore[arg-type]
            for split in ("train", "eval")
        ]
        for split_by in ("path", "content")
    }
    assert not sides["content"][0] & sides["content"][1]
    assert sides["path"][0] & sides["path"][1]


def test_every_name_is_a_document_once_or_is_named(folder: Path) -> None:
    path = folder / "d0" / "000.bin"
    (folder / "link.bin").symlink_to(path)
    os.link(path, folder / "hard.bin")
    (folder / "loop").symlink_to(folder)
    roots = [folder, folder / "d0", folder / "d1" / ".." / "d0", folder / "loop" / "d0", path]
    source = FileSource(roots, CONFIG, 50, split="all")
    names = [str(path) for path in folder.glob("d*/*.bin")]
    assert sorted(source.paths) == sorted([*names, str(folder / "link.bin"), str(folder / "hard.bin")])
    assert source.describe()["skipped"] == {
        "link to a folder, not followed": 1,
        "reached twice, used once": 3 * len(list((folder / "d0").iterdir())) + 1,
    }
    assert FileSource(folder / "loop", CONFIG, 50, split="all").paths[0].startswith(str(folder / "loop"))


def test_files_written_at_equal_size_are_noticed(folder: Path, recwarn: pytest.WarningsRecorder) -> None:
    def resumed(state: dict[str, Any]) -> FileSource:
        source = FileSource(folder, CONFIG, 50)
        source.load_state_dict(state)
        return source

    source = FileSource(folder, CONFIG, 50)
    source.next_batch()
    state = json.loads(json.dumps(source.state_dict()))
    assert resumed(state).state_dict() == state
    assert not recwarn.list
    edited = folder / "d1" / "001.bin"
    size, status = edited.stat().st_size, edited.stat()
    edited.write_bytes(bytes(size))
    os.utime(edited, ns=(status.st_atime_ns, status.st_mtime_ns))  # as `touch -r` sets it back
    with pytest.warns(UserWarning, match=r"changed since the position was saved, last .*/d1/001\.bin"):
        again = resumed(state)
    assert {**again.state_dict(), "modified": None} == {**state, "modified": None}, "the position is the same"
    del state["modified"]
    assert resumed(state).state_dict()["offset"] == state["offset"], "positions of earlier versions have no times"


def test_batches_shrink_to_small_data(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"holds \d+ patches, so batches shrink to that from 100,000"):
        source = FileSource(folder, CONFIG, 100_000, split="all")
    assert source.patches_per_batch == source.total_patches
    for _ in range(2):
        assert sorted(contents([source.next_batch()])) == sorted(_contents(source)), "a batch is an epoch"
    only = folder / "only.bin"
    only.write_bytes(b"x")
    with pytest.warns(UserWarning, match="holds 3 patches"):
        one = FileSource(only, CONFIG, 50, split="all")
    assert contents([one.next_batch()]) == [b"x"]
    held_out = FileSource(folder, CONFIG, 100_000, split="eval", eval_share=1.0)
    assert held_out.patches_per_batch == 100_000


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_shortage_is_not_taken_for_an_unreadable_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    source = FileSource(folder, CONFIG, 50, split="all")

    def no_more(path: str, flags: int) -> int:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, "open", no_more)
    with pytest.raises(OSError, match=os.strerror(number)):
        source.next_batch()
    assert not source.describe()["skipped"]


def test_unusable_files_are_counted_and_skipped(folder: Path) -> None:
    (folder / "empty.bin").write_bytes(b"")
    (folder / "dangling.bin").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.bin")
    source = FileSource(folder, CONFIG, 50, split="all")
    assert len(source) == 40
    deleted, swapped = (Path(path) for path in source.paths[:2])
    deleted.unlink()
    swapped.unlink()
    os.mkfifo(swapped)
    documents = []
    while source.state_dict()["epoch"] == 0:
        documents += contents([source.next_batch()])
    assert max(Counter(documents[:38]).values()) == 1
    description = json.loads(json.dumps(source.describe()))
    assert description["skipped"] == {
        "empty": 1,
        "not a regular file": 1,
        "vanished": 2,
        "changed while read, or no longer a file": 1,
    }
    assert len(description["warnings"]) == 5
    assert any(str(deleted) in warning for warning in description["warnings"])
    assert len(contents(list(source.one_pass()))) == 38


def test_unreadable_files_are_skipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = FileSource(folder, CONFIG, 50, split="all")
    original = os.open

    def deny(path: str, flags: int) -> int:
        if "/d1/" in path:
            raise PermissionError(13, "Permission denied", path)
        return original(path, flags)

    monkeypatch.setattr(os, "open", deny)
    assert len(contents(list(source.one_pass()))) == 27
    assert source.describe()["skipped"] == {"unreadable": 13}


def test_names_that_are_not_utf8_and_no_extensions(tmp_path: Path) -> None:
    for name in (b"\xff\xfe.b\xffn", b"README", b".hidden", b"a.b.tar"):
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
            file.write(name * 3)
    source = FileSource(tmp_path, CONFIG, 16, split="all")
    documents = contents([source.next_batch() for _ in range(4)])
    assert {b"README" * 3, b"\xff\xfe.b\xffn" * 3} <= set(documents)
    assert source.state_dict()["files"] == FileSource(tmp_path, CONFIG, 16, split="all").state_dict()["files"]
    os.rename(os.fsencode(tmp_path) + b"/\xff\xfe.b\xffn", os.fsencode(tmp_path) + b"/\xff\xfd.b\xffn")
    assert source.state_dict()["files"] != FileSource(tmp_path, CONFIG, 16, split="all").state_dict()["files"]


def test_growing_and_huge_sparse_files_take_bounded_memory(tmp_path: Path) -> None:
    growing = tmp_path / "growing.log"
    growing.write_bytes(b"ab")
    with (tmp_path / "sparse.bin").open("wb") as file:
        file.truncate(10 << 30)
    source = FileSource(tmp_path, CONFIG, 18, split="all")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(20):
        with growing.open("ab") as file:
            file.write(b"more " * 7)
        assert source.next_batch().num_patches <= 18
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10
    assert not source.describe()["skipped"]


def test_nothing_to_read_is_an_error_before_the_first_step(tmp_path: Path, folder: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert stat.S_ISFIFO(os.stat(pipe).st_mode)
    for paths, message in (
        (empty, "found none"),
        ([], "found none"),
        (pipe, "not a regular file"),
        (tmp_path / "nowhere", "No such file"),
    ):
        with pytest.raises(DataError, match=message):
            FileSource(paths, CONFIG, 50)
    with pytest.raises(DataError, match="eval split"):
        FileSource(folder, CONFIG, 50, split="eval", eval_share=0.0)
    (folder / "only.bin").write_bytes(b"x")
    source = FileSource(folder / "only.bin", CONFIG, 16, split="eval", eval_share=1.0)
    (folder / "only.bin").unlink()
    with pytest.raises(DataError, match="none of the 1 files"):
        source.next_batch()


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"patches_per_batch": 15}, ValueError),
        ({"patches_per_batch": 16.0}, TypeError),
        ({"seed": -1}, ValueError),
        ({"split": "test"}, ValueError),
        ({"eval_share": 1.5}, ValueError),
        ({"split_by": "size"}, ValueError),
        ({"config": None}, TypeError),
    ],
)
def test_wrong_arguments_are_named(folder: Path, fields: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(fields))):
        FileSource(folder, **{"config": CONFIG, "patches_per_batch": 50, **fields})


def test_of_each_reason_one_is_named_before_a_second() -> None:
    skips = SkipReport()
    for number in range(30):
        skips.count(f"copy {number}", "copy")
        skips.add(f"cut {number}", "cut short")
    skips.add("last", "rejected")
    skips.count("other", "rejected")
    assert skips.by_reason == {"copy": 30, "cut short": 30, "rejected": 2}
    assert skips.examples[:5] == [
        "cut short: 'cut 0'",
        "rejected: 'last'",
        "copy: 'copy 0'",
        "cut short: 'cut 1'",
        "rejected: 'other'",
    ]
    assert len(skips.examples) == 20


def test_whole_files_are_read_up_to_the_limit(tmp_path: Path) -> None:
    for name in ("small", "sparse", "vanished", "pipe"):
        (tmp_path / name).write_bytes(name.encode())
    skipped = SkipReport()
    entries = {Path(entry.path).name: entry for entry in find_files([str(tmp_path)], skipped)}
    os.truncate(tmp_path / "sparse", 10 << 30)
    (tmp_path / "vanished").unlink()
    (tmp_path / "pipe").unlink()
    os.mkfifo(tmp_path / "pipe")
    contents = {name: read_content(entry, skipped) for name, entry in entries.items()}
    assert contents == {"small": b"small", "sparse": None, "vanished": None, "pipe": None}
    assert skipped.by_reason == {"unreadable": 1, "too large": 1, "vanished": 1}
