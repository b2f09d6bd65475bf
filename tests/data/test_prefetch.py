"""Prefetcher: the same batches, the position of what was handed out, errors, and nothing left running."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support.batches import equal, skip

from bgpt_fast.config import BGPTConfig
from bgpt_fast.data import FileSource, Prefetcher, Source, WorkerError
from bgpt_fast.patches import PackedPatches

CONFIG = BGPTConfig(patch_size=4, patch_length=16, hidden_size=8, patch_num_layers=1, byte_num_layers=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(30):
        (tmp_path / f"{index}.bin").write_bytes(b"%d" % index * (1 + index % 9))
    return tmp_path


class CountingSource:
    """Numbers as batches; fails at one of them."""

    class Failure(Exception):
        """An error that cannot be unpickled: its arguments are not those of its constructor."""

        def __init__(self, number: int, text: str) -> None:
            super().__init__(f"{text} {number}")

    def __init__(self, fail_at: int = -1) -> None:
        self.position = 0
        self.fail_at = fail_at

    def next_batch(self) -> PackedPatches:
        if self.position == self.fail_at:
            raise self.Failure(self.position, "cannot make batch")
        self.position += 1
        return PackedPatches.from_bytes([("n", b"%d" % self.position)], CONFIG)

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]

    def describe(self) -> dict[str, Any]:
        return {"position": self.position}


def _workers() -> list[Any]:
    threads = [thread for thread in threading.enumerate() if thread.name == "bgpt-data"]
    return threads + multiprocessing.active_children()


@pytest.mark.parametrize(("process", "depth"), [(False, 1), (False, 3), pytest.param(True, 2, marks=pytest.mark.slow)])
def test_batches_and_positions_are_those_of_the_source(folder: Path, process: bool, depth: int) -> None:
    plain = FileSource(folder, CONFIG, 30, split="all")
    with Prefetcher(FileSource(folder, CONFIG, 30, split="all"), depth, process=process) as ahead:
        assert isinstance(ahead, Source)
        states = []
        for _ in range(8):
            assert ahead.state_dict() == plain.state_dict()
            assert equal(plain.next_batch(), ahead.next_batch())
            states.append(json.loads(json.dumps(ahead.state_dict())))
        assert ahead.describe()["batches"] >= 8
        after = [plain.next_batch() for _ in range(3)]
        assert all(equal(batch, ahead.next_batch()) for batch in after)
        ahead.load_state_dict(states[-1])
        assert ahead.state_dict() == states[-1]
        assert all(equal(batch, ahead.next_batch()) for batch in after)
    assert not _workers()


def test_batches_are_made_ahead_of_the_position() -> None:
    source = CountingSource()
    with Prefetcher(source, depth=3) as ahead:
        ahead.next_batch()
        deadline = time.monotonic() + 20
        while source.position < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert source.position == 4
        assert ahead.state_dict() == {"position": 1}


class PinnedBatch:
    """Counts the calls of `pin_memory`, which needs CUDA in a real batch."""

    def __init__(self, number: int) -> None:
        self.number, self.pinned = number, 0

    def pin_memory(self) -> PinnedBatch:
        self.pinned += 1
        return self


class PinnedSource(CountingSource):
    def next_batch(self) -> PinnedBatch:  # type: ignore[override]
        self.position += 1
        return PinnedBatch(self.position)


@pytest.mark.parametrize("process", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("pin_memory", [False, True])
def test_batches_are_pinned_once(process: bool, pin_memory: bool) -> None:
    with Prefetcher(PinnedSource(), process=process, pin_memory=pin_memory) as ahead:  # type: ignore[arg-type]
        batches = [ahead.next_batch() for _ in range(3)]
    assert [(batch.number, batch.pinned) for batch in batches] == [(1, pin_memory), (2, pin_memory), (3, pin_memory)]


@pytest.mark.parametrize("process", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_errors_are_raised_after_the_batches_before_them(process: bool) -> None:
    expected = WorkerError if process else CountingSource.Failure
    with Prefetcher(CountingSource(fail_at=2), depth=4, process=process) as ahead:
        skip(ahead, 2)
        assert ahead.describe()["position"] <= 2
        for _ in range(2):
            with pytest.raises(expected, match="cannot make batch 2"):
                ahead.next_batch()
        assert ahead.state_dict() == {"position": 2}
        assert not _workers()
        ahead.load_state_dict({"position": 5})
        assert ahead.next_batch().to_bytes() == [("n", b"6")]


def test_a_killed_worker_is_named() -> None:
    with Prefetcher(CountingSource(), process=True) as ahead:
        ahead.next_batch()
        (worker,) = multiprocessing.active_children()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        # What was sent before is still handed out.
        with pytest.raises(WorkerError, match="SIGKILL"):
            skip(ahead, 10)
        state = ahead.state_dict()
        assert 1 <= state["position"] <= 4
        ahead.load_state_dict(state)
        assert ahead.next_batch().to_bytes() == [("n", b"%d" % (state["position"] + 1))]
    assert not _workers()


@pytest.mark.slow
def test_signals_to_the_group_leave_the_worker_working() -> None:
    with Prefetcher(CountingSource(), process=True) as ahead:
        ahead.next_batch()
        (worker,) = multiprocessing.active_children()
        assert worker.pid is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(worker.pid, number)
        skip(ahead, 5)


@pytest.mark.slow
def test_a_script_that_does_not_close_ends(folder: Path) -> None:
    script = f"""
from bgpt_fast.config import BGPTConfig
from bgpt_fast.data import FileSource, Prefetcher
if __name__ == "__main__":
    source = FileSource({str(folder)!r}, BGPTConfig(4, 16, 8, 1, 1), 30, split="all")
    ahead = Prefetcher(source, process=True)
    print(ahead.next_batch().num_documents > 0)
"""
    path = folder / "script.py"
    path.write_text(script)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(path)], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_a_closed_or_forgotten_prefetcher_leaves_nothing_running() -> None:
    ahead = Prefetcher(CountingSource())
    ahead.next_batch()
    assert len(_workers()) == 1
    ahead.close()
    ahead.close()
    assert not _workers()
    with pytest.raises(WorkerError, match="closed"):
        ahead.next_batch()
    forgotten = Prefetcher(CountingSource())
    forgotten.next_batch()
    del forgotten
    gc.collect()
    assert not _workers()


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="depth"):
        Prefetcher(CountingSource(), 0)
    with pytest.raises(TypeError, match="source"):
        Prefetcher([1, 2, 3])  # type: ignore[arg-type]
