"""`bgpt-fast simulate`: programs of every kind, in chunks, to files, figures and a page."""

from __future__ import annotations

import builtins
import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.cli import MACHINE, CommandLine, read_report

from bgpt_fast.cli import simulate
from bgpt_fast.report.simulation_page import ProgramView, write_simulation_page
from bgpt_fast.tasks import cpu_states as cpu
from bgpt_fast.tasks.cpu_states.programs import random_chunks, read_chunks
from bgpt_fast.tasks.cpu_states.views import program_view

OPTIONS = cpu.StreamOptions(2, 16, 1, 4)


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """One of each kind."""
    folder = tmp_path / "programs"
    folder.mkdir()
    (folder / "add.asm").write_text("LOADI 7\n\nADD A\nHLT\n")
    (folder / "code.bin").write_bytes(cpu.assemble(["INC B", "HLT"], num_registers=2, memory_size=16))
    traces = cpu.generate(9, num_registers=2, memory_size=16, max_program=4)
    (folder / "trace.bin").write_bytes(traces[8].to_bytes())
    cpu.write_folder(traces[:3], folder / "many")
    cpu.write_parquet(traces[3:8], folder / "five.parquet")
    return folder


def figures(folder: Path) -> dict[str, Any]:
    return {name: read_report(folder)[name] for name in ("teacher_forced", "free_running", "states", "files")}


def test_registers_never_take_a_file_for_a_number(
    tmp_path: Path, checkpoint: Path, programs: Path, cli: CommandLine
) -> None:
    common = ["--checkpoint", checkpoint, *MACHINE, "--show", "0", "--batch-invariant"]
    names = [programs / "add.asm", programs / "code.bin"]
    for index, words in enumerate((["--registers", "3", "9", *names], [*names, "--registers", "3", "9"])):
        cli.run("simulate", *words, *common, "--acc", "5", "--output", tmp_path / f"{index}")
    first, second = tmp_path / "0/predicted", tmp_path / "1/predicted"
    contents = [path.read_bytes() for path in sorted(first.iterdir())]
    assert contents == [path.read_bytes() for path in sorted(second.iterdir())]
    for content in contents:
        assert content[16:24] == bytes([0, 5, 0, 0, 0, 0, 3, 9]), "registers and ACC are in the first state"
    assert simulate._registers_last(["a", "--registers", "1", "2", "b"]) == ["a", "b", "--registers", "1", "2"]


def test_a_folder_with_brackets_is_no_markup(
    tmp_path: Path, checkpoint: Path, programs: Path, cli: CommandLine
) -> None:
    out = tmp_path / "out[/red]"
    words = ["simulate", programs / "add.asm", "--checkpoint", checkpoint, *MACHINE, "--output", out]
    assert "out[/red]/: predicted traces" in "".join(cli.run(*words).out.split("\n"))


def test_wrong_registers_are_named(tmp_path: Path, checkpoint: Path, programs: Path, cli: CommandLine) -> None:
    words = ["simulate", programs / "add.asm", "--checkpoint", checkpoint, *MACHINE]
    for more, message in (
        (["--registers", "1"], "registers: expected 2 values, one a register, got 1"),
        (["--registers", "1", "256"], "--registers: expected values of 0…255"),
        (["--page", "-1"], "--page: expected at least 0"),
        (["--random", "0"], "--random: expected at least 1"),
    ):
        cli.fails(message, *words, *more, "--output", tmp_path / "out")
    cli.fails("nowhere.asm", "simulate", "--registers", "1", "2", "nowhere.asm", *words[2:])
    assert not (tmp_path / "out").exists()


def test_every_kind_of_program_in_chunks_of_any_size(
    tmp_path: Path, checkpoint: Path, programs: Path, monkeypatch: pytest.MonkeyPatch, cli: CommandLine
) -> None:
    paths = [programs / name for name in ("add.asm", "many", "five.parquet", "code.bin", "trace.bin")]
    words = ["simulate", *map(str, paths), "--checkpoint", checkpoint, *MACHINE, "--registers", "1", "2"]
    cli.run(*words, "--write", "both", "--output", tmp_path / "whole")
    chunks = list(read_chunks(paths, OPTIONS, registers=(1, 2), chunk_size=2))
    assert [len(chunk) for chunk in chunks] == [1, 2, 1, 2, 2, 1, 2]
    monkeypatch.setattr(simulate, "read_chunks", lambda *a, **k: read_chunks(*a, **k, chunk_size=2))
    cli.run(*words, "--write", "both", "--output", tmp_path / "chunks")
    whole = figures(tmp_path / "whole")
    assert whole == figures(tmp_path / "chunks")
    assert whole["free_running"]["programs"] == 11

    from pyarrow import parquet

    for name in ("whole", "chunks"):
        table = parquet.read_table(tmp_path / name / "predicted.parquet").to_pydict()
        assert table["name"] == whole["files"]
        assert table["program"][0] == "LOADI 7\nADD A\nHLT"
        for file, data, truth, wrong, step in zip(
            *(table[column] for column in ("name", "data", "truth", "wrong_bytes", "first_wrong_step")), strict=True
        ):
            assert (tmp_path / name / "predicted" / file).read_bytes() == data
            assert (wrong == 0) == (data == truth) == (step is None)
        totals = whole["free_running"]
        assert sum(table["wrong_bytes"]) == totals["state_bytes"] - totals["right_bytes"]
        assert len([step for step in table["first_wrong_step"] if step]) == sum(totals["first_divergence"].values())


def test_the_folder_keeps_its_precision_and_its_chunks(tmp_path: Path, checkpoint: Path, cli: CommandLine) -> None:
    words = ["simulate", "--checkpoint", checkpoint, *MACHINE, "--random", "3", "--page", "0", "--output"]
    for name, option in (("half", "bfloat16"), ("auto", "auto")):
        folder = tmp_path / name
        used = "bfloat16" if option == "bfloat16" else "float32"  # a narrow model, of which nothing is measured
        assert f"precision: {used} (" in cli.text(*words, folder, "--precision", option)
        report = read_report(folder)
        assert report["precision"] == used
        assert report["plan"]["chunk_size"] == 16384
        assert report["plan"].get("precision", "float32") == used
        for again in (["--precision", "auto"], ["--max-batch", "20000"], ["--precision", used]):
            assert "were simulated already" in cli.text(*words, folder, *again)
    cli.fails("(precision differ)", *words, tmp_path / "half", "--precision", "float32")
    cli.fails("(precision differ)", *words, tmp_path / "auto", "--precision", "int8")
    # As earlier versions wrote it.
    plan = {name: value for name, value in read_report(tmp_path / "auto")["plan"].items() if name != "chunk_size"}
    path = tmp_path / "auto" / "report.json"
    path.write_text(json.dumps({**read_report(tmp_path / "auto"), "plan": plan}))
    assert "were simulated already" in cli.text(*words, tmp_path / "auto")


def test_random_programs_are_those_of_the_stream() -> None:
    whole = cpu.generate(50, seed=3, num_registers=2, memory_size=16, max_program=4, stream="philox", split="eval")
    chunks = list(random_chunks(50, OPTIONS, seed=3, chunk_size=7))
    assert [len(chunk) for chunk in chunks] == [7] * 7 + [1]
    assert [trace for chunk in chunks for trace in chunk] == list(whole)


def test_wrong_program_files_are_named(tmp_path: Path, checkpoint: Path, programs: Path, cli: CommandLine) -> None:
    words = ["simulate", "--checkpoint", checkpoint, "--output", tmp_path / "out", *MACHINE]
    (programs / "code.bin").write_bytes(bytes([99, 0, 0, 0]))
    other = cpu.generate(2, num_registers=3, memory_size=16, max_program=4)
    cpu.write_parquet(other, tmp_path / "other.parquet")
    (tmp_path / "no.parquet").write_bytes(b"PAR1 no PAR1")
    (tmp_path / "empty").mkdir()
    for name, message in (
        (programs / "code.bin", "code.bin"),
        (tmp_path / "other.parquet", "expected traces of a machine of 2 registers"),
        (tmp_path / "no.parquet", "expected a Parquet file"),
        (tmp_path / "empty", "expected .bin files"),
    ):
        cli.fails(message, *words, name)


def test_without_pyarrow_the_extra_is_named(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, cli: CommandLine
) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.delitem(sys.modules, "pyarrow", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    words = ["simulate", "--checkpoint", checkpoint, "--output", tmp_path / "out", *MACHINE, "--random", "2"]
    cli.fails('pip install ".[data]"', *words, "--write", "parquet", code=1)
    assert not (tmp_path / "out/predicted.parquet").exists()


class _Page(HTMLParser):
    """The tags of a page, what it would load from elsewhere, and the data in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []
        self.ids: set[str] = set()
        self.data, self._in_data = "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.outside += [f"{tag} {name}" for name in ("src", "href", "action", "data") if name in values]
        self.ids |= {str(values["id"])} if "id" in values else set()
        self._in_data = values.get("id") == "data"
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._in_data = False

    def handle_data(self, text: str) -> None:
        self.data += text if self._in_data else ""


def test_the_page_is_self_contained_with_wrong_programs_first(
    tmp_path: Path, checkpoint: Path, cli: CommandLine
) -> None:
    out = tmp_path / "out"
    words = ["simulate", "--checkpoint", checkpoint, "--random", "8", "--page", "5", "--output", out]
    cli.run(*words, *MACHINE)
    text = (out / "report.html").read_text()
    page = _Page(text)
    assert page.open == []
    assert page.outside == []
    assert "url(" not in text.replace("w3.org", "")
    assert "@import" not in text
    assert {"map", "heat", "histogram", "program", "tip", "scores"} <= page.ids
    data = json.loads(page.data)
    assert data["columns"] == ["PC", "ACC", "IR0", "IR1", "IR2", "IR3", "A", "B"]
    assert len(data["programs"]) == 5
    assert data["figures"]["free_running"] == read_report(out)["free_running"]
    for program in data["programs"]:
        content = (out / "predicted" / program["name"]).read_bytes()
        flat = [value for row in program["free"] for value in row if value is not None]
        assert bytes(flat) == content[24:]
        assert len(program["truth_text"]) == len(program["truth"])
        assert len(program["forced"]) == len(program["truth"]) - 1
        assert program["truth_text"][-1] == "HLT"


def test_a_name_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    truth = cpu.run(["LOADI 7", "HLT"], num_registers=2, memory_size=16)
    forced = truth.states[1:].astype(np.int16)
    forced[0, 0] = 256
    data = truth.to_bytes()[:-2]
    view = program_view("</script><b>", truth, cpu.PredictedTrace(data, False, 2, 16), forced)
    assert view.free[-1][-2:] == [None] * 2
    assert view.forced[0][0] is None
    assert view.free_text == ["LOADI 7", "HLT"]
    counts = cpu.evaluate([data], [truth]).to_dict()
    shares = {"states_per_second": 1.0, "teacher_forced_states_per_second": 2.0}
    result = {"free_running": counts, "teacher_forced": counts, **shares}
    write_simulation_page(tmp_path / "x.html", "<b>&", cpu.column_names(2), result, [view])
    page = _Page((tmp_path / "x.html").read_text())
    assert "b" not in page.open
    assert ProgramView(**json.loads(page.data)["programs"][0]) == view
