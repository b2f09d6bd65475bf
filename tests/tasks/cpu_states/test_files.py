"""Traces as folders and as Parquet: the same traces back, and nothing half-written."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tasks.cpu_states.test_streams import golden_sets

import bgpt_fast.tasks.cpu_states as cpu

pytest.importorskip("pyarrow")


@pytest.fixture
def traces() -> cpu.Traces:
    return cpu.generate(30, seed=1, num_registers=3, memory_size=40, max_program=10)


@pytest.mark.parametrize("tag", ["default_seed0", "r3_m16_p3_seed0"])
def test_a_folder_is_the_released_one(tmp_path: Path, tag: str) -> None:
    for golden, traces in golden_sets(tag):
        folder = tmp_path / str(golden["n_instances"])
        assert cpu.write_folder(traces, folder) == golden["n_files"]
        digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
        assert digests == {file["name"]: file["sha256"] for file in golden["files"]}
        again = cpu.read_folder(folder, traces.num_registers, traces.memory_size)
        assert [trace.name for trace in again] == sorted(digests)
        assert [again[i].to_bytes() for i in range(3)] == [(folder / name).read_bytes() for name in sorted(digests)[:3]]


def test_a_folder_is_complete_or_absent(tmp_path: Path, traces: cpu.Traces) -> None:
    def broken() -> Iterator[cpu.Trace]:
        yield from traces[:5]
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="broke"):
        cpu.write_folder(broken(), tmp_path / "data" / "train")
    assert os.listdir(tmp_path / "data") == []
    (tmp_path / "empty").mkdir()
    cpu.write_folder(traces, tmp_path / "empty")
    before = sorted(os.listdir(tmp_path / "empty"))
    for path in (tmp_path / "empty", tmp_path / "empty" / before[0]):
        with pytest.raises(FileExistsError, match="expected no folder or an empty one"):
            cpu.write_folder(traces, path)
    assert sorted(os.listdir(tmp_path / "empty")) == before
    assert os.listdir(tmp_path / "data") == []


def test_a_folder_with_a_bad_file_is_refused_by_name(tmp_path: Path, traces: cpu.Traces) -> None:
    cpu.write_folder(traces, tmp_path / "d")
    victim = sorted((tmp_path / "d").iterdir())[4]
    content = bytearray(victim.read_bytes())
    content[-1] ^= 255
    victim.write_bytes(content)
    with pytest.raises(cpu.TraceError, match=r"step \d+: expected C") as caught:
        cpu.read_folder(tmp_path / "d", 3, 40)
    assert caught.value.__notes__ == [f"in {victim}"]
    with pytest.raises(ValueError):
        cpu.read_folder(tmp_path / "d", 4, 40)
    (tmp_path / "none").mkdir()
    for missing in (tmp_path / "none", tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError):
            cpu.read_folder(missing)


@pytest.mark.parametrize("part", [slice(0, 30), slice(0, 0), slice(7, 8), slice(5, 29), slice(20, 3, -2)])
def test_parquet_round_trip(tmp_path: Path, traces: cpu.Traces, part: slice) -> None:
    from pyarrow import parquet

    chosen = traces[part]
    path = tmp_path / "traces.parquet"
    cpu.write_parquet(chosen, path)
    again = cpu.read_parquet(path)
    assert (again.num_registers, again.memory_size) == (3, 40)
    assert list(again) == list(chosen)
    table = parquet.read_table(path)
    assert table.column_names == ["name", "program", "data"]
    assert table["name"].to_pylist() == [trace.name for trace in chosen]
    assert table["program"].to_pylist() == ["\n".join(trace.program) for trace in chosen]
    assert table["data"].to_pylist() == [trace.to_bytes() for trace in chosen]


def test_parquet_with_several_row_groups(tmp_path: Path, traces: cpu.Traces, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow import parquet

    monkeypatch.setattr("bgpt_fast.tasks.cpu_states.export._ROWS_A_GROUP", 7)
    cpu.write_parquet(traces, tmp_path / "t.parquet")
    assert parquet.ParquetFile(tmp_path / "t.parquet").num_row_groups == 5
    assert list(cpu.read_parquet(tmp_path / "t.parquet")) == list(traces)


def test_a_failed_parquet_write_leaves_the_old_file(
    tmp_path: Path, traces: cpu.Traces, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(b"old")
    monkeypatch.setattr(cpu.Trace, "name", property(lambda self: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        cpu.write_parquet(traces, path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["t.parquet"]


def test_damaged_and_foreign_parquet_files_are_refused(tmp_path: Path, traces: cpu.Traces) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "t.parquet"
    cpu.write_parquet(traces, path)
    content = path.read_bytes()
    (tmp_path / "cut.parquet").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.parquet").write_bytes(b"no parquet at all")
    for name in ("cut.parquet", "text.parquet"):
        with pytest.raises(cpu.TraceError, match="expected a Parquet file"):
            cpu.read_parquet(tmp_path / name)
    table = parquet.read_table(path)
    parquet.write_table(table.replace_schema_metadata(None), tmp_path / "plain.parquet")
    with pytest.raises(cpu.TraceError, match=r"expected a Parquet file of write_parquet"):
        cpu.read_parquet(tmp_path / "plain.parquet")
    wrong = table["data"].to_pylist()
    wrong[3] = wrong[3][:-1] + bytes([wrong[3][-1] ^ 1])
    column = pyarrow.array(wrong, pyarrow.large_binary())
    parquet.write_table(table.set_column(2, "data", column), tmp_path / "wrong.parquet")
    with pytest.raises(cpu.TraceError) as caught:
        cpu.read_parquet(tmp_path / "wrong.parquet")
    assert caught.value.__notes__ == ["trace 3 of 30", f"in {tmp_path / 'wrong.parquet'}"]
    short = pyarrow.array(wrong, pyarrow.binary())
    parquet.write_table(table.set_column(2, "data", short), tmp_path / "short.parquet")
    with pytest.raises(cpu.TraceError, match="large_binary"):
        cpu.read_parquet(tmp_path / "short.parquet")
    with pytest.raises(FileNotFoundError):
        cpu.read_parquet(tmp_path / "nowhere.parquet")


def test_without_pyarrow_the_extra_is_named(
    tmp_path: Path, traces: cpu.Traces, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r'pip install "\.\[data\]"'):
        cpu.write_parquet(traces, tmp_path / "t.parquet")
    assert os.listdir(tmp_path) == []
