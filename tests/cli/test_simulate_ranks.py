"""`bgpt-fast simulate` on several ranks: the files and figures of one process, also after a rank has died."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import parquet
from support.cli import MACHINE, CommandLine, read_report
from support.training import child_environment

from bgpt_fast.cli import simulate
from bgpt_fast.cli.simulate_folder import check_same_plan
from bgpt_fast.tasks.cpu_states.chunk_journal import ChunkJournal
from bgpt_fast.tasks.cpu_states.programs import random_chunks

PROGRAMS = 23
CHILD = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from bgpt_fast.cli import main
from bgpt_fast.tasks.cpu_states.chunk_journal import ChunkJournal

rank_to_kill, marker, *words = sys.argv[1:]
real, left = ChunkJournal.add, 5

def add(self, *arguments):
    global left
    left -= 1
    if left == 0 and os.environ["RANK"] == rank_to_kill and not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, *arguments)

ChunkJournal.add = add
sys.exit(main.main(words))
"""


class ThreadRanks:
    """The ranks of a run as threads of this process; `world_size` of them call the same methods in the same order."""

    device = torch.device("cpu")

    def __init__(self, rank: int, world_size: int, values: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.world_size, self.is_main = rank, world_size, rank == 0
        self._values, self._barrier = values, barrier

    def all_gather(self, value: Any) -> list[Any]:
        self._values[self.rank] = value
        self._barrier.wait(60)
        values = list(self._values)
        self._barrier.wait(60)
        return values

    def broadcast(self, value: Any) -> Any:
        return self.all_gather(value)[0]


def words(checkpoint: Path, output: Path) -> list[str]:
    words = ["simulate", "--checkpoint", str(checkpoint), "--output", str(output), "--random", str(PROGRAMS)]
    return [*words, "--write", "both", "--page", "3", *MACHINE]


def run_ranks(world_size: int, words: list[str]) -> None:
    values: list[Any] = [None] * world_size
    barrier = threading.Barrier(world_size)
    options = simulate.read_options(simulate.Simulate, "simulate", words[1:])

    def rank(number: int) -> int:
        try:
            return simulate._run(options, ThreadRanks(number, world_size, values, barrier))  # type: ignore[arg-type]
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(world_size) as pool:
        assert list(pool.map(rank, range(world_size))) == [0] * world_size


def results(folder: Path) -> dict[str, Any]:
    """The content of all files, without times and what depends on the size of chunks."""
    report = read_report(folder)
    figures = {name: report[name] for name in ("teacher_forced", "free_running", "states", "files", "precision")}
    files = {path.name: path.read_bytes() for path in (folder / "predicted").iterdir()}
    table = parquet.read_table(folder / "predicted.parquet").to_pydict()
    page = re.findall(r'"name": *"([^"]*)"', (folder / "report.html").read_text())
    assert len(page) == 3
    return {"figures": figures, "files": files, "table": table, "page": page, "names": set(os.listdir(folder))}


@pytest.mark.parametrize("world_size", [2, 3, PROGRAMS + 1])
def test_ranks_write_what_one_process_writes(
    tmp_path: Path, checkpoint: Path, cli: CommandLine, world_size: int
) -> None:
    cli.run(*words(checkpoint, tmp_path / "one"))
    run_ranks(world_size, words(checkpoint, tmp_path / "ranks"))
    assert results(tmp_path / "ranks") == results(tmp_path / "one")
    assert read_report(tmp_path / "ranks")["plan"]["chunk_size"] == -(-PROGRAMS // world_size)
    # Complete for any number of ranks.
    run_ranks(2, words(checkpoint, tmp_path / "ranks"))
    assert "were simulated already" in cli.text(*words(checkpoint, tmp_path / "ranks"))


def test_another_number_of_ranks_resumes(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, cli: CommandLine
) -> None:
    out, left = tmp_path / "out", PROGRAMS - 4
    real = ChunkJournal.add

    def add(self: ChunkJournal, *arguments: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        real(self, *arguments)

    monkeypatch.setattr(ChunkJournal, "add", add)
    monkeypatch.setattr(simulate, "random_chunks", partial(random_chunks, chunk_size=5))
    cli.run(*words(checkpoint, out), code=130)
    left = 4
    run_ranks(2, words(checkpoint, out))
    assert left == 0, "no program was simulated twice"
    cli.run(*words(checkpoint, tmp_path / "one"), code=130)
    left = PROGRAMS
    cli.run(*words(checkpoint, tmp_path / "one"))
    assert results(out) == results(tmp_path / "one")


def test_ranks_with_other_options_or_another_folder_are_named(tmp_path: Path) -> None:
    plan = {"seed": 1, "registers": (1, 2)}
    with pytest.raises(ValueError, match="rank 1 and rank 0 differ in seed"):
        check_same_plan(tmp_path, plan, {**plan, "seed": 2}, 1)
    with pytest.raises(FileNotFoundError, match="rank 1 does not see the folder of rank 0"):
        check_same_plan(tmp_path, plan, plan, 1)
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished/plan.json").write_text(json.dumps(plan))
    check_same_plan(tmp_path, plan, plan, 1)


@pytest.mark.slow
def test_torchrun_survives_a_killed_rank(tmp_path: Path, checkpoint: Path, cli: CommandLine) -> None:
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "1", str(script), "1", str(tmp_path / "killed")]
    command += words(checkpoint, tmp_path / "ranks")
    ended = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "killed").exists()
    assert "resumes where it was stopped" in ended.stdout
    cli.run(*words(checkpoint, tmp_path / "one"))
    assert results(tmp_path / "ranks") == results(tmp_path / "one")
