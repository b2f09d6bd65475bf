"""SIGKILL at any moment of training, and the run goes on as if nothing had been (RELIABILITY R7)."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.killed_run import trainer_of, write_files
from support.paths import TESTS
from support.training import child_environment, fingerprint, losses

Event = tuple[str, int, int]
SCRIPT = str(TESTS / "support" / "killed_run.py")


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where there is such a file system: SIGKILL loses no page of a file, and flushing costs time."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        write_files(Path(name) / "files")
        yield Path(name)


def run_killed(run: Path, steps: int, plan: list[Event], *fault: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, SCRIPT, str(run), str(steps), json.dumps(plan), *fault]
    return subprocess.run(command, env=child_environment(), capture_output=True)


def assert_as_if_nothing_had_been(folder: Path, steps: int, plan: list[Event]) -> list[tuple[str, bool, int]]:
    """Runs with these kills and without, compares, and returns the kills."""
    done = run_killed(folder / "killed", steps, plan)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    straight = trainer_of(folder / "straight", steps)
    straight.train()
    assert fingerprint(trainer_of(folder / "killed", steps)) == fingerprint(straight)
    assert losses(folder / "killed") == losses(folder / "straight")
    return [tuple(kill) for kill in json.loads(done.stdout)]


def test_a_kill_of_each_kind_changes_nothing(folder: Path) -> None:
    plan: list[Event] = [("save", 9, 1), ("save", 20, 2), ("epoch", 1, 0), ("update", 3, 0), ("log", 2, 0)]
    kills = assert_as_if_nothing_had_been(folder, 16, plan)
    assert [event for event, _, _ in kills] == [event for event, _, _ in plan]
    assert [resumed for _, resumed, _ in kills] == [False, False, True, True, True], "the first falls before any save"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_kills_change_nothing(folder: Path) -> None:
    stream = random.Random(0)
    plan: list[Event] = [
        *(("save", number, stream.randint(1, 3)) for number in range(1, 23)),
        *(("epoch", stream.randint(1, 2), batch) for batch in (0, 0, 0, 1, 1, 2, 3)),
        *(("update", stream.randint(1, 5), 0) for _ in range(6)),
        *(("log", stream.randint(1, 5), 0) for _ in range(5)),
        *(("time", stream.randint(0, 100), 0) for _ in range(10)),
    ]
    stream.shuffle(plan)
    kills = assert_as_if_nothing_had_been(folder, 300, plan)
    counts = Counter(event for event, _, _ in kills)
    assert len(kills) == 50
    assert counts["save"] >= 15
    assert counts["epoch"] >= 5
    assert sum(resumed for _, resumed, _ in kills) >= 10
    assert max(step for _, _, step in kills) > 20, "the kills fall all along the run, not at its start"


def test_a_pointer_that_moves_before_its_folder_is_noticed(folder: Path) -> None:
    """The negative control."""
    done = run_killed(folder / "killed", 16, [("save", 12, 2)], "pointer first")
    assert done.returncode != 0
    assert b"CheckpointDamagedError" in done.stderr
