"""`bgpt-fast simulate`, `generate` and `convert` killed midway and run again: the bytes of one run, nothing made twice.

Each child kills itself, by SIGKILL, after so many files, or in the middle of writing one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cli import CONFIG, MACHINE, CommandLine

from bgpt_fast import BGPT, folder_lock
from bgpt_fast.cli import common, simulate
from bgpt_fast.folder_lock import FolderInUseError, FolderLock
from bgpt_fast.tasks import cpu_states as cpu
from bgpt_fast.tasks.cpu_states.chunk_journal import ChunkJournal
from bgpt_fast.tasks.cpu_states.programs import random_chunks

PROGRAMS, CHUNK_SIZE = 70, 16
TIMES = ("seconds", "per_second", "options", "made_now", "there_already", "bytes_per_second", "new_bytes")

CHILD = """
import functools, os, signal, sys
import torch
torch.set_num_threads(1)
from bgpt_fast.cli import main, outputs, simulate
from bgpt_fast.tasks.cpu_states.chunk_journal import ChunkJournal

count, chunk_size, *words = sys.argv[1:]
left = int(count)
simulate.random_chunks = functools.partial(simulate.random_chunks, chunk_size=int(chunk_size))

def dying(real, torn):
    @functools.wraps(real)
    def after(self, *arguments, **named):
        global left
        result = real(self, *arguments, **named)
        left -= 1
        if left == 0:
            if torn:
                os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - 3)
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return after

ChunkJournal.add = dying(ChunkJournal.add, torn=True)
outputs.OutputFolder.add = dying(outputs.OutputFolder.add, torn=False)
sys.exit(main.main(words))
"""


def kill_after(count: int, words: list[str]) -> None:
    """Runs the command in a child that dies after `count` files."""
    command = [sys.executable, "-c", CHILD, str(count), str(CHUNK_SIZE), *words]
    child = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()


def contents(folder: Path) -> dict[str, Any]:
    """All files; of the reports, what is not a time."""
    files: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files[str(path.relative_to(folder))] = path.read_bytes()
    files["report.json"] = _lasting(json.loads(files["report.json"]))
    files.pop("report.html", None)
    files.pop("made.jsonl", None)
    return files


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _lasting(item) for name, item in value.items() if not name.endswith(TIMES)}
    return [_lasting(item) for item in value] if isinstance(value, list) else value


def simulating(checkpoint: Path, output: Path) -> list[str]:
    words = ["simulate", "--checkpoint", str(checkpoint), "--output", str(output), "--random", str(PROGRAMS)]
    return [*words, "--write", "both", "--page", "2", "--max-batch", "8", *MACHINE]


def other_model(folder: Path) -> Path:
    torch.manual_seed(1)
    BGPT(CONFIG).save_pretrained(folder / "other")
    return folder / "other"


@pytest.mark.parametrize(
    "kills", [(21,), pytest.param((1, 15, 16, 1, 30), marks=pytest.mark.slow)], ids=["once", "often"]
)
def test_a_killed_simulation_resumes_after_the_last_program(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, cli: CommandLine, kills: tuple[int, ...]
) -> None:
    out = tmp_path / "out"
    for count in kills:
        kill_after(count, simulating(checkpoint, out))
    assert not (out / "report.json").exists()
    assert not (out / "predicted.parquet").exists()
    added: list[int] = []
    real = ChunkJournal.add

    def add(self: ChunkJournal, place: int, *rest: Any) -> None:
        added.append(place)
        real(self, place, *rest)

    monkeypatch.setattr(ChunkJournal, "add", add)
    monkeypatch.setattr(simulate, "random_chunks", partial(random_chunks, chunk_size=CHUNK_SIZE))
    assert "resumes where it was stopped" in cli.text(*simulating(checkpoint, out))
    assert len(added) == PROGRAMS - sum(count - 1 for count in kills), "a record that was cut is made again"
    cli.run(*simulating(checkpoint, tmp_path / "whole"))
    assert contents(out) == contents(tmp_path / "whole")
    assert len(list((out / "predicted").iterdir())) == PROGRAMS
    assert {path.name for path in out.iterdir()} == {"predicted", "predicted.parquet", "report.json", "report.html"}

    # It is there: nothing is made again, and what was not asked for then is told.
    added.clear()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert "all 70 programs were simulated already" in cli.text(*simulating(checkpoint, out))
    assert added == []
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    next((out / "predicted").iterdir()).unlink()
    cli.fails("the simulation is complete, but predicted/", *simulating(checkpoint, out))


def test_only_the_same_simulation_is_resumed(tmp_path: Path, checkpoint: Path, cli: CommandLine) -> None:
    out = tmp_path / "out"
    words = simulating(checkpoint, out)
    lock = FolderLock(out, "a simulation")
    cli.fails(f"process {os.getpid()}", *words, code=1)
    lock.release()
    cli.run(*words)
    cli.fails("made by other options or another model (seed differ)", *words, "--seed", "2")
    cli.fails("(model differ)", *simulating(other_model(tmp_path), out))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_bytes(b"x")
    cli.fails("expected a new or empty folder", *simulating(checkpoint, tmp_path / "mine"))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]


def test_changed_programs_are_another_simulation(tmp_path: Path, checkpoint: Path, cli: CommandLine) -> None:
    program = tmp_path / "p.asm"
    program.write_text("CLR\nHLT\n")
    words = ["simulate", str(program), "--checkpoint", str(checkpoint), "--output", str(tmp_path / "out"), *MACHINE]
    cli.run(*words)
    assert "simulated already" in cli.text(*words)
    program.write_text("HLT\n")
    cli.fails(f"holds the simulation of other programs than are in {program} now", *words)


def test_every_cut_and_every_flip_of_a_chunk_journal_is_detected(tmp_path: Path) -> None:
    traces = cpu.generate(5, num_registers=2, memory_size=16, max_program=4)
    path = tmp_path / "journal"
    predicted = [cpu.PredictedTrace(trace.to_bytes(), index % 2 == 0, 2, 16) for index, trace in enumerate(traces)]
    with ChunkJournal(path, traces) as saved:
        saved.add_forced([trace.states[1:].astype("<i2") for trace in traces], 0.5)
        for index, one in enumerate(predicted):
            saved.add(index, one, index + 1.0)
        assert saved.complete
    whole = path.read_bytes()
    with ChunkJournal(path, traces) as saved:
        assert saved.complete
        assert saved.predicted == dict(enumerate(predicted))
        assert (saved.seconds, saved.forced_seconds) == (5.0, 0.5)
        assert saved.forced is not None
        assert [one.tolist() for one in saved.forced] == [trace.states[1:].tolist() for trace in traces]
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        place, bit = (int(torch.randint(most, (), generator=generator)) for most in (len(whole), 8))
        flipped = bytearray(whole)
        flipped[place] ^= 1 << bit
        for content in (whole[:place], bytes(flipped)):
            path.write_bytes(content)
            with ChunkJournal(path, traces) as saved:
                assert not saved.complete
                assert saved.predicted.items() <= dict(enumerate(predicted)).items()
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="made of other programs"):
        ChunkJournal(path, traces[1:])


@pytest.mark.parametrize("command", [pytest.param("generate", marks=pytest.mark.slow), "convert"])
def test_a_killed_command_generates_only_missing_files(
    tmp_path: Path, checkpoint: Path, cli: CommandLine, command: str
) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    for index in range(9):
        (sources / f"{index}.abc").write_bytes(b"X:%d" % index)
    more = {"generate": ["--count", "9", "--ext", "mid"], "convert": [str(sources), "--to", "mid", "--keep-cut"]}
    words = [command, *more[command], "--checkpoint", str(checkpoint), "--temperature", "1", "--max-batch", "2"]
    out = tmp_path / "out"

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bgpt_fast.cli.generation_options.generate_files", stop)
        cli.run(*words, "--output", out, code=128 + signal.SIGINT)
    assert [path.name for path in out.iterdir()] == ["made.jsonl"], "the lock goes with a command that is stopped"
    kill_after(4, [*words, "--output", str(out)])
    assert not (out / "report.json").exists()
    cli.run(*words, "--output", out)
    report = json.loads((out / "report.json").read_text())
    assert (report["made_now"], report["there_already"]) == (5, 4)
    cli.run(*words, "--output", tmp_path / "whole")
    outputs = {path.name: path.read_bytes() for path in out.glob("*.mid")}
    assert outputs == {path.name: path.read_bytes() for path in (tmp_path / "whole").glob("*.mid")}
    assert len(outputs) == 9
    again = [str(other_model(tmp_path)) if word == str(checkpoint) else word for word in words]
    cli.fails("made by other options", *again, "--output", out)
    if command == "convert":
        (sources / "3.abc").write_bytes(b"K:G and another tune")
        cli.run(*words, "--output", out)
        report = json.loads((out / "report.json").read_text())
        assert (report["made_now"], report["there_already"]) == (1, 8), "a source that has changed is converted again"
        assert (out / "3.mid").read_bytes() != outputs["3.mid"]


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "run", "a run")
    with pytest.raises(FolderInUseError, match=rf"run: process {os.getpid()} on .* is at work here .a run."):
        FolderLock(tmp_path / "run", "a run")
    lock.release()
    lock.release()
    assert not lock.is_held
    assert list((tmp_path / "run").iterdir()) == []
    code = (
        f"import runpy, sys; FolderLock = runpy.run_path({folder_lock.__file__!r})['FolderLock']\n"
        "lock = FolderLock(sys.argv[1], 'a run'); print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(FolderInUseError, match=f"process {child.pid} on"):
            FolderLock(tmp_path / "run", "a run")
        child.kill()
    assert (tmp_path / "run/.lock").exists(), "what it left stops nobody"
    FolderLock(tmp_path / "run", "a run").release()


def test_a_file_system_without_locks_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.warns(UserWarning, match="has no locks"):
        FolderLock(tmp_path, "a run").release()


def test_progress_lines_leave_out_files_of_an_earlier_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(common.time, "monotonic", lambda: now[0])
    with common.generation_progress("simulating") as progress:
        for seconds, done, new_bytes in ((50, 900, 0), (55, 900, 40), (90, 910, 400), (95, 920, 450), (150, 950, 1000)):
            now[0] = seconds
            progress(done, 1000, new_bytes)
    assert capsys.readouterr().err.splitlines() == [
        "simulating: 900 of 1,000, 0 B/s",
        "simulating: 910 of 1,000, 10 B/s, 0:06:00 left",
        "simulating: 950 of 1,000, 10 B/s, 0:01:40 left",
    ]
