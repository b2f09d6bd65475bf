"""ArrowSource: Parquet and both Arrow formats, buffers, positions, splits, and what cannot be read."""

from __future__ import annotations

import json
import resource
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.batches import skip

from bgpt_fast.config import BGPTConfig
from bgpt_fast.data import ArrowSource, DataError, Source, arrow_files
from bgpt_fast.data.arrow_messages import unpacked_sizes
from bgpt_fast.data.file_index import SkipReport
from bgpt_fast.patches import PackedPatches

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

pytestmark = pytest.mark.filterwarnings("ignore:.*so batches shrink")
CONFIG = BGPTConfig(patch_size=4, patch_length=16, hidden_size=8, patch_num_layers=1, byte_num_layers=1)
ROWS = 210


def _write_ipc(path: Path, table: Any, *, stream: bool, rows: int) -> None:
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, make(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """3 files of 70 rows: Parquet, the Arrow file format and the streaming format; row groups of odd sizes."""
    rng = np.random.default_rng(0)
    for number in range(3):
        contents = [b"%d-%02d:" % (number, row) + rng.bytes(int(rng.integers(0, 50))) for row in range(70)]
        table = pa.table({"content": contents, "ext": ["bin" if row % 2 else ".wav" for row in range(70)]})
        if number == 0:
            pq.write_table(table, tmp_path / "a.parquet", row_group_size=23)
        else:
            _write_ipc(tmp_path / f"b{number}.arrow", table, stream=number == 2, rows=17)
    return tmp_path


def _source(folder: Path, **fields: Any) -> ArrowSource:
    return ArrowSource(folder, "content", CONFIG, 50, **{"split": "all", "buffer_rows": 40, **fields})


def _documents(batches: list[PackedPatches]) -> list[tuple[str, bytes]]:
    return [document for batch in batches for document in batch.to_bytes()]


def test_an_evaluation_scores_a_random_sample_of_the_rows(folder: Path) -> None:
    source = _source(folder, buffer_rows=8192)
    source.next_batch()
    position = source.state_dict()
    batches = list(source.evaluation_batches(150))
    assert 100 < sum(batch.num_patches for batch in batches) < 250
    names = [content[:4] for _, content in _documents(batches)]
    whole = _source(folder, seed=1, buffer_rows=8192)
    assert {name[:1] for name in names} == {b"0", b"1", b"2"}, "of every file, not of the first one"
    assert _documents(batches) == _documents(list(source.evaluation_batches(150)))
    assert source.state_dict() == position
    assert names != [content[:4] for _, content in _documents(list(whole.evaluation_batches(150)))]
    everything = _documents(list(source.evaluation_batches(100_000)))
    assert sorted(everything) == sorted(_documents(list(source.one_pass()))), "each row once"
    small = _source(folder)
    assert sorted(_documents(list(small.evaluation_batches(100_000)))) == sorted(everything), "of several buffers"


def test_an_evaluation_scores_a_window_of_a_long_row(tmp_path: Path) -> None:
    contents = [bytes([number]) * 40 + bytes([100 + number]) * 400 for number in range(20)]
    pq.write_table(pa.table({"content": contents}), tmp_path / "long.parquet")
    documents = _documents(list(_source(tmp_path).evaluation_batches(100_000)))
    assert len(documents) == 20
    assert any(content[0] >= 100 for _, content in documents), "not the heads alone"


def test_an_epoch_is_every_row_once_in_a_new_order(folder: Path) -> None:
    source = _source(folder, extension_column="ext")
    assert isinstance(source, Source)
    documents: list[tuple[str, bytes]] = []
    while len(documents) < 2 * ROWS:
        documents += _documents([source.next_batch()])
    in_order = _documents(list(source.one_pass()))
    assert len(set(in_order)) == ROWS
    assert all((extension == "bin") == (int(content[2:4]) % 2 == 1) for extension, content in in_order)
    first, second = documents[:ROWS], documents[ROWS : 2 * ROWS]
    assert sorted(first) == sorted(second) == sorted(in_order)
    assert first != second != in_order != first
    assert source.fill > 0.97


def test_splits_are_disjoint_complete_and_decided_by_content(folder: Path) -> None:
    train, held_out = (
        [content for _, content in _documents(list(_source(folder, split=split, eval_share=0.3).one_pass()))]
        for split in ("train", "eval")
    )
    assert not set(train) & set(held_out)
    assert len(train) + len(held_out) == ROWS
    assert 30 < len(held_out) < 100
    (folder / "a.parquet").rename(folder / "z.parquet")
    again = _source(folder, split="eval", eval_share=0.3, buffer_rows=7, seed=4)
    assert sorted(content for _, content in _documents(list(again.one_pass()))) == sorted(held_out)


def test_text_columns_of_every_type_become_bytes(tmp_path: Path) -> None:
    texts = ["ä", "text", "x" * 9] * 7
    for name, kind in (("a", pa.string()), ("b", pa.large_string()), ("d", pa.dictionary(pa.int32(), pa.string()))):
        _write_ipc(tmp_path / f"{name}.arrow", pa.table({"content": pa.array(texts, kind)}), stream=True, rows=5)
    documents = _documents(list(_source(tmp_path).one_pass()))
    assert documents == [("txt", text.encode()) for text in texts * 3]


def _encodings(values: list[bytes | None]) -> dict[str, Any]:
    """Bytes in columns of every type that holds them."""
    texts = [None if value is None else value.decode("latin-1") for value in values]
    numbers = [None if value is None else list(value) for value in values]
    plain = pa.array(values, pa.binary())
    return {
        "binary": plain,
        "large_binary": pa.array(values, pa.large_binary()),
        "binary_view": pa.array(values, pa.binary_view()),
        "string": pa.array(texts),
        "large_string": pa.array(texts, pa.large_string()),
        "string_view": pa.array(texts, pa.string_view()),
        "dictionary": pa.array(texts).dictionary_encode(),
        "fixed": pa.array(values, pa.binary(3)),
        "json": pa.array(texts, pa.json_()),
        "opaque": pa.ExtensionArray.from_storage(pa.opaque(pa.binary(), "kind", "vendor"), plain),
        "list": pa.array(numbers, pa.list_(pa.uint8())),
        "large_list": pa.array(numbers, pa.large_list(pa.uint8())),
        "fixed_list": pa.array(numbers, pa.list_(pa.uint8(), 3)),
    }


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_bytes_of_every_type_are_read(tmp_path: Path, kind: str) -> None:
    values: list[bytes | None] = [b"one", None, b"two", b"two", b"sos"] * 3
    columns = _encodings(values)
    columns["struct"] = pa.array([value and {"path": "x", "bytes": value} for value in values])
    if kind != "parquet":  # Parquet has no runs
        columns["runs"] = pa.array(values).to_pylist() and pa.compute.run_end_encode(pa.array(values, pa.binary()))
    table = pa.table(columns)
    if kind == "parquet":
        pq.write_table(table, tmp_path / "a.parquet")
    else:
        _write_ipc(tmp_path / "a.arrow", table, stream=kind == "stream", rows=4)
    for name in columns:
        source = ArrowSource(tmp_path, "struct.bytes" if name == "struct" else name, CONFIG, 50, split="all")
        contents = [content for _, content in _documents(list(source.one_pass()))]
        assert contents == [value for value in values if value is not None], name
        assert source.describe()["skipped"]["null"] >= 3, name


def test_files_without_the_column_are_named_and_the_others_read(folder: Path) -> None:
    other = folder / "other"
    other.mkdir()
    one = pa.array([b"one"])
    tables = {
        "absent": pa.table({"text": one}),
        "number": pa.table({"content": [1]}),
        "twice": pa.Table.from_arrays([one, one], names=["content", "content"]),
        "struct": pa.table({"content": [{"bytes": b"one"}]}),
        "list": pa.table({"content": [["one"]]}),
        "nulls": pa.table({"content": pa.nulls(5)}),
    }
    for name, table in tables.items():
        _write_ipc(other / f"{name}.arrow", table, stream=True, rows=5)
    pq.write_table(tables["nulls"], other / "nulls.parquet")
    pq.write_table(tables["twice"], other / "twice.parquet")
    source = _source(folder)
    assert len(_documents(list(source.one_pass()))) == ROWS
    skipped = source.describe()["skipped"]
    skipped.pop("empty", None)  # rows
    assert skipped == {
        "expected a column 'content', got ['text']": 1,
        "expected one column 'content', got 2 of that name": 2,
        "column 'content': expected bytes or text, got int64": 1,
        "column 'content': expected bytes or text, got struct<bytes: binary>; name a field of it, as content.bytes": 1,
        "column 'content': expected bytes or text, got list<item: string>": 1,
        "null": 10,
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.b", b"whole"),
        ("s.x.y", b"deep"),
        ("s.x", "expected bytes or text, got struct"),
        ("s.z", "expected a column 's.z'"),
        ("s.", "expected a column"),
        ("t.u", "expected a column 't.u', got a 't' of binary"),
        ("d.k", "expected one column 'd.k', got 2"),
        ("", "expected a column ''"),
    ],
)
def test_a_field_of_a_struct_is_named_by_dots(tmp_path: Path, name: str, expected: bytes | str) -> None:
    twice = pa.StructArray.from_arrays([pa.array([b"k"])] * 2, names=["k", "k"])
    columns = {
        "a": pa.array([{"b": b"field"}]),
        "a.b": pa.array([b"whole"]),
        "s": pa.array([{"x": {"y": b"deep"}}]),
        "t": pa.array([b"t"]),
        "d": twice,
    }
    _write_ipc(tmp_path / "a.arrow", pa.table(columns), stream=False, rows=1)
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            ArrowSource(tmp_path, name, CONFIG, 50, split="all")
    else:
        assert _documents(list(ArrowSource(tmp_path, name, CONFIG, 50, split="all").one_pass())) == [("txt", expected)]


def test_a_failed_allocation_is_no_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _source(folder)

    def full(*_: Any) -> Any:
        raise pa.ArrowMemoryError("malloc of size 64000 failed")

    with monkeypatch.context() as patch:
        patch.setattr(arrow_files, "_cells", full)
        with pytest.raises(MemoryError, match=r"parquet.*a file of [\d,]+ bytes.*malloc of size 64000 failed"):
            list(source.one_pass())
        patch.setattr(arrow_files, "_schema", full)
        with pytest.raises(MemoryError):
            _source(folder)
    assert not source.describe()["skipped"].keys() - {"empty"}
    assert len(_documents(list(source.one_pass()))) == ROWS, "in the same process"


@pytest.mark.parametrize(
    ("options", "limits"), [({}, 2), ({"use_dictionary": False}, 4), ({"column_encoding": "DELTA_BYTE_ARRAY"}, 2)]
)
def test_a_small_file_of_large_rows_takes_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], limits: int
) -> None:
    rows, size, limit = 48, 1 << 20, 16 << 20
    encoding = {"use_dictionary": False} if "column_encoding" in options else {}
    table = pa.table({"content": pa.array([bytes(size)]).take(pa.array([0] * rows))})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", data_page_size=1, **encoding, **options)
    del table
    assert (tmp_path / "a.parquet").stat().st_size < 1 << 17
    columns = arrow_files.Columns("content", None, "bin")

    def peak() -> int:
        before = pa.total_allocated_bytes()
        allocated = []
        for _, _, content in arrow_files.read_rows(str(tmp_path / "a.parquet"), columns, 0, SkipReport()):
            assert len(content) == size
            allocated.append(pa.total_allocated_bytes() - before)
        assert len(allocated) == rows
        return max(allocated)

    assert peak() > limits * limit, "what is decoded without a limit"
    monkeypatch.setattr(arrow_files, "_MAX_DECODED_BYTES", limit)
    assert peak() <= limits * limit


def test_a_file_made_to_fill_the_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"content": [bytes(1 << 20)] * 24})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    for name in ("_MAX_DECODED_BYTES", "_MAX_UNPACKED_BYTES"):
        monkeypatch.setattr(arrow_files, name, 1 << 20)
    with pytest.raises(DataError, match=r"unpacks to 25,[\d,]+ bytes a row group, [\d,]+ times its size.*a\.parquet"):
        ArrowSource(tmp_path, "content", CONFIG, 50, split="all")


@pytest.mark.parametrize("codec", [None, "zstd", "lz4"])
@pytest.mark.parametrize("is_stream", [False, True])
def test_sizes_of_compressed_messages_are_known_before_they_are_read(
    tmp_path: Path, codec: str | None, is_stream: bool
) -> None:
    text = pa.array([b"x" * 1000] * 500)
    table = pa.table({"a": text, "b": pa.array(["one", None, "two"] * 100 + [None] * 200).dictionary_encode()})
    make, path = pa.ipc.new_stream if is_stream else pa.ipc.new_file, tmp_path / "a.arrow"
    options = pa.ipc.IpcWriteOptions(compression=codec)
    with pa.OSFile(str(path), "wb") as file, make(file, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=200)
    with pa.OSFile(str(path)) as stream:
        sizes = list(unpacked_sizes(stream))
        assert stream.tell() == 0
    if codec is None:
        assert not sizes
        return
    assert len(sizes) == 4, "a dictionary and three record batches"
    unpacked = [size for _, size in sizes[1:]]
    contents = (200_000, 200_000, 100_000)
    assert all(size <= total <= size + 2000 for size, total in zip(contents, unpacked, strict=True))
    assert sum(packed for packed, _ in sizes) < path.stat().st_size
    for cut in range(0, path.stat().st_size, 97):
        with pa.BufferReader(path.read_bytes()[:cut]) as stream:
            assert list(unpacked_sizes(stream)) in [sizes[:count] for count in range(5)]


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_arrow_file_made_to_fill_the_memory_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_stream: bool
) -> None:
    table = pa.table({"content": [bytes(1 << 20)] * 24})
    make = pa.ipc.new_stream if is_stream else pa.ipc.new_file
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, make(file, table.schema, options=options) as writer:
        writer.write_table(table)
    arguments: dict[str, Any] = {"split": "all"}
    assert len(_documents(list(ArrowSource(tmp_path, "content", CONFIG, 50, **arguments).one_pass()))) == 24
    for name in ("_MAX_DECODED_BYTES", "_MAX_UNPACKED_BYTES"):
        monkeypatch.setattr(arrow_files, name, 1 << 20)
    with pytest.raises(DataError, match=r"unpacks to 25,[\d,]+ bytes a record batch, [\d,]+ times its size"):
        ArrowSource(tmp_path, "content", CONFIG, 50, **arguments)


def test_batches_shrink_to_a_small_file(folder: Path) -> None:
    with pytest.warns(UserWarning, match="so batches shrink to that from 100,000"):
        source = ArrowSource(folder, "content", CONFIG, 100_000, split="all")
    assert len(source.next_batch().to_bytes()) == ROWS


def test_null_and_empty_rows_and_unreadable_files_are_counted(folder: Path) -> None:
    table = pa.table({"content": [b"one", None, b"", b"two"]})
    pq.write_table(table, folder / "holes.parquet")
    (folder / "notes.txt").write_bytes(b"no rows")
    (folder / "cut.parquet").write_bytes((folder / "a.parquet").read_bytes()[:-40])
    (folder / "text.arrow").write_bytes(b"this is no Arrow file at all")
    damaged = bytearray((folder / "b2.arrow").read_bytes())
    middle = len(damaged) // 2
    (folder / "half.arrow").write_bytes(damaged[:middle])
    source = _source(folder)
    documents = _documents(list(source.one_pass()))
    assert {b"one", b"two"} <= {content for _, content in documents}
    assert ROWS + 2 < len(documents) < ROWS + 2 + 70
    description = json.loads(json.dumps(source.describe()))
    reasons = Counter(description["skipped"])
    assert reasons["null"] >= 1
    assert reasons["empty"] >= 1
    assert reasons["not a Parquet or Arrow file"] == 1
    assert reasons["damaged, or not a Parquet or Arrow file"] == 2
    assert sum(count for reason, count in reasons.items() if "in the middle" in reason) == 1
    assert any("half.arrow" in warning for warning in description["warnings"])


def test_files_that_vanish_are_skipped(folder: Path) -> None:
    source = _source(folder)
    (folder / "b1.arrow").unlink()
    (folder / "b2.arrow").unlink()
    assert len(_documents(list(source.one_pass()))) == 70
    assert source.describe()["skipped"] == {"vanished": 2}
    (folder / "a.parquet").unlink()
    with pytest.raises(DataError, match="no row of a whole epoch"):
        skip(source, 200)


@pytest.mark.parametrize(
    "fields",
    [{"split": "train"}, {"eval_share": 0.3}, {"buffer_rows": 30}, {"buffer_bytes": 99}, {"extension_column": "ext"}],
)
def test_a_position_among_other_rows_warns(folder: Path, fields: dict[str, Any]) -> None:
    before: dict[str, Any] = {"split": "eval", "eval_share": 0.9}
    source = _source(folder, **before)
    source.next_batch()
    other = _source(folder, **before | fields)
    with pytest.warns(UserWarning, match="changed since"):
        other.load_state_dict(source.state_dict())
    assert (other.state_dict()["epoch"], other.state_dict()["offset"]) == (1, 0)


def test_memory_is_bounded_by_the_buffer(tmp_path: Path) -> None:
    block = np.random.default_rng(0).bytes(1 << 20)
    schema = pa.schema({"content": pa.binary()})
    with pa.OSFile(str(tmp_path / "big.arrow"), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for _ in range(160):
            writer.write_batch(pa.record_batch({"content": [block]}, schema=schema))
    source = _source(tmp_path, buffer_bytes=4 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    skip(source, 60)
    assert source.state_dict()["epoch"] >= 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_files_are_closed_behind_the_position(tmp_path: Path) -> None:
    """Neither open files nor mappings grow with the number of files read (facebookresearch/blt#77)."""
    for index in range(60):
        pq.write_table(pa.table({"content": [b"x" * 40, b"y" * 40]}), tmp_path / f"{index:02}.parquet")
        _write_ipc(tmp_path / f"{index:02}.arrow", pa.table({"content": [b"z" * 40]}), stream=False, rows=1)
    source = _source(tmp_path, buffer_rows=4)

    def open_files() -> int:
        mappings = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").count(str(tmp_path))
        return len(list(Path("/proc/self/fd").iterdir())) + mappings

    source.next_batch()
    before = open_files()
    while source.state_dict()["epoch"] < 2:
        source.next_batch()
        assert open_files() <= before + 4


def test_other_columns_may_be_of_any_type(tmp_path: Path) -> None:
    """Such as integer ids (facebookresearch/blt#96)."""
    ids = pa.array([1, 2, 3], pa.int64())
    table = pa.table({"sample_id": ids, "content": ["a", "b", "c"], "more": [[1], [2, 3], None]})
    pq.write_table(table, tmp_path / "a.parquet")
    _write_ipc(tmp_path / "b.arrow", table, stream=True, rows=2)
    contents = {content for _, content in _documents(list(_source(tmp_path).one_pass()))}
    assert contents == {b"a", b"b", b"c"}


def test_unusable_data_is_an_error_before_the_first_step(folder: Path, tmp_path: Path) -> None:
    for fields, message in (
        ({"column": "contents"}, r"expected a column 'contents', got \['content', 'ext'\]"),
        ({"extension_column": "kind"}, "expected a column 'kind'"),
        ({"paths": folder / "nowhere"}, "No such file"),
        ({"split": "eval", "eval_share": 0.0}, "no row of a whole epoch"),
    ):
        arguments: dict[str, Any] = {"paths": folder, "column": "content", "patches_per_batch": 50, "split": "all"}
        with pytest.raises(DataError, match=message):
            ArrowSource(config=CONFIG, **{**arguments, "buffer_rows": 1000, **fields})
    numbers = tmp_path / "numbers"
    numbers.mkdir()
    with pytest.raises(DataError, match="found none"):
        _source(numbers)
    pq.write_table(pa.table({"content": [1, 2]}), numbers / "n.parquet")
    with pytest.raises(DataError, match="expected bytes or text, got int64"):
        _source(numbers)
    with pytest.raises(ValueError, match="buffer_rows"):
        _source(folder, buffer_rows=0)


def test_without_pyarrow_the_error_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install"):
        _source(folder)


@pytest.fixture
def url(folder: Path) -> Iterator[str]:
    """The folder's files behind a URL."""
    memory = pytest.importorskip("fsspec").filesystem("memory")
    for path in folder.iterdir():
        memory.pipe(f"/rows/{path.name}", path.read_bytes())
    yield "memory://rows"
    memory.rm("/rows", recursive=True)


def test_files_are_streamed_from_a_url(folder: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = ArrowSource(url, "content", CONFIG, 64, extension_column="ext")
    local = ArrowSource(folder, "content", CONFIG, 64, extension_column="ext")
    assert remote.paths == [f"memory:///rows/{Path(path).name}" for path in local.paths]
    assert remote.describe()["bytes"] == local.describe()["bytes"]
    for _ in range(5):
        assert remote.next_batch().to_bytes() == local.next_batch().to_bytes()
    again = ArrowSource(url, "content", CONFIG, 64, extension_column="ext")
    again.load_state_dict(remote.state_dict())
    assert again.next_batch().to_bytes() == local.next_batch().to_bytes()
    one = ArrowSource(remote.paths[0], "content", CONFIG, 64, extension_column="ext")
    assert one.paths == remote.paths[:1]
    monkeypatch.setattr(arrow_files, "_open", _lose_connection)
    with pytest.raises(DataError, match="the connection is gone"):
        list(remote.one_pass())
    with pytest.raises(DataError, match="FileNotFoundError"):
        ArrowSource("memory://nowhere", "content", CONFIG, 64)
    with pytest.raises(DataError, match="give a URL that fsspec can open"):
        ArrowSource("feathers://nowhere", "content", CONFIG, 64)


def test_after_a_lost_connection_the_epoch_goes_on(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ArrowSource(url, "content", CONFIG, 50, split="all", buffer_rows=40)
    # The first buffer is of the first file, the second one needs the next.
    with monkeypatch.context() as patch:
        patch.setattr(arrow_files, "_open", _lose_connection)
        with pytest.raises(DataError, match="the connection is gone"):
            skip(source, 100)
    batches = 0
    while source.state_dict()["epoch"] == 0:
        source.next_batch()
        batches += 1
    assert batches > 20


def _lose_connection(path: str) -> Any:
    raise ConnectionResetError(f"{path}: reset")
