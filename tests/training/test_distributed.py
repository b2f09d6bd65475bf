"""Several ranks are one run: the same losses and weights, one checkpoint, one end."""

from __future__ import annotations

import json
import math
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.rank_child import trainer_of
from support.training import RANK_CHILD, child_environment, fingerprint, log_lines, losses, make_trainer, torchrun
from support.write_faults import flip

from bgpt_fast.model import BGPT
from bgpt_fast.training import CheckpointDamagedError, TrainConfig
from bgpt_fast.training.checkpoint_store import CheckpointStore


class Launch:
    """Ranks of one run on this machine."""

    def __init__(self, jobs: list[dict[str, Any]], folder: Path, world_size: int = 2) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        common = child_environment(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(world_size))
        self.errors = [folder / f"stderr-{rank}-{port}" for rank in range(world_size)]
        self.processes = [
            subprocess.Popen(
                [sys.executable, RANK_CHILD, json.dumps(jobs)],
                env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stderr=error.open("wb"),
            )
            for rank, error in enumerate(self.errors)
        ]

    def wait(self, timeout: float = 240.0) -> list[int]:
        """Exit codes; kills what is left at the end."""
        deadline = time.monotonic() + timeout
        try:
            return [process.wait(max(deadline - time.monotonic(), 0.1)) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
                process.wait()

    def text(self, rank: int) -> str:
        return self.errors[rank].read_text()


def _job(run: Path, **fields: Any) -> dict[str, Any]:
    return {"run": str(run), "fields": fields}


HARD: dict[str, Any] = {"accumulation": 2, "targets_per_step": 40, "steps": 8}


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two ranks, by folder; the last one was stopped by a SIGTERM to rank 1."""
    root = tmp_path_factory.mktemp("launched")
    jobs = [
        _job(root / "ddp", accumulation=2),
        {**_job(root / "chunked"), "chunk": 7},
        {**_job(root / "unweighted"), "fault": "unweighted"},
        _job(root / "fsdp", parallel="fsdp", accumulation=2),
        {**_job(root / "fsdp-chunked", parallel="fsdp", activation_checkpointing=True), "chunk": 7},
        {**_job(root / "nan"), "fault": "nan", "on": 1, "at": 3},
        {**_job(root / "straight", **HARD), "dropout": 0.1},
        {**_job(root / "stopped", **HARD), "dropout": 0.1, "fault": "term", "on": 1, "at": 9},
    ]
    launch = Launch(jobs, root)
    assert launch.wait() == [143, 143], launch.text(0) + launch.text(1)
    return root


def _single(run: Path, **fields: Any) -> list[float]:
    """Losses and gradient norms of one process on the whole batches."""
    trainer_of(_job(run, **fields)).train()
    return _figures(run)


def _figures(run: Path) -> list[float]:
    return [figure for _, loss, _, norm in losses(run) for figure in (loss, norm)]


def test_two_ranks_are_one_process(launched: Path, tmp_path: Path) -> None:
    twice = _single(tmp_path / "twice", accumulation=2)
    once = _single(tmp_path / "once")
    for run, expected in (("ddp", twice), ("fsdp", twice), ("chunked", once), ("fsdp-chunked", once)):
        assert _figures(launched / run) == pytest.approx(expected, rel=2e-5), run
    assert _figures(launched / "unweighted") != pytest.approx(once, rel=1e-3)
    expected_model = BGPT.from_pretrained(CheckpointStore(tmp_path / "twice" / "checkpoints").path(6))
    for run in ("ddp", "fsdp"):
        loaded = BGPT.from_pretrained(CheckpointStore(launched / run / "checkpoints").path(6))
        for (name, ours), theirs in zip(loaded.named_parameters(), expected_model.parameters(), strict=True):
            # AdamW's first steps divide by gradients of any size: a few weights tell rounding apart.
            assert (ours - theirs).abs().mean() < 1e-5, name


def test_rank_zero_alone_logs_global_figures(launched: Path) -> None:
    weights = []
    for run in ("ddp", "fsdp"):
        lines = log_lines(launched / run)
        assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
        weights += [line["weights"] for line in lines if line["kind"] == "eval"]
    assert weights == [pytest.approx(weights[0], rel=1e-4)] * 2
    assert weights[0] > 0


def test_nan_on_one_rank_stops_all_before_the_update(launched: Path) -> None:
    run = launched / "nan"
    for rank in (0, 1):
        batch = Path((run / f"caught-{rank}").read_text())
        assert batch.name == f"nonfinite-step-00000004-rank{rank}.safetensors"
        assert batch.exists()
    assert [step for step, *_ in losses(run)] == [1, 2, 3]
    assert all(math.isfinite(figure) for figure in _figures(run))


@pytest.fixture(scope="module")
def relaunched(launched: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Launch]:
    """Runs that two ranks went on with; in the last one, rank 1 failed."""
    root = tmp_path_factory.mktemp("relaunched")
    for name in ("resumed", "control"):
        shutil.copytree(launched / "stopped", root / name)
    for name in ("fsdp", "ddp"):
        shutil.copytree(launched / name, root / f"from-{name}")
    trainer_of(_job(root / "from-one", accumulation=2)).train()
    jobs = [
        {**_job(root / "resumed", **HARD), "dropout": 0.1},
        {**_job(root / "control", **HARD), "dropout": 0.1, "fault": "rank 0's rng"},
        _job(root / "from-fsdp", steps=9, accumulation=2, parallel="ddp"),
        _job(root / "from-ddp", steps=9, accumulation=2, parallel="fsdp"),
        _job(root / "from-one", steps=9, accumulation=2, parallel="fsdp"),
        {**_job(root / "failed", save_every=2), "fault": "error", "on": 1, "at": 3},
    ]
    launch = Launch(jobs, root)
    assert launch.wait() == [1, 1], launch.text(0) + launch.text(1)
    return root, launch


def test_resumed_ranks_go_on_each_with_its_own_state(launched: Path, relaunched: tuple[Path, Launch]) -> None:
    _, stopped = CheckpointStore(launched / "stopped" / "checkpoints").load_latest() or (0, None)
    assert stopped is not None
    assert stopped.state["step"] == 5
    assert not torch.equal(stopped.rng["torch"], stopped.rng["rank1/torch"])
    root, _ = relaunched
    assert _saved(root / "resumed") == _saved(launched / "straight")
    assert losses(root / "resumed") == losses(launched / "straight")
    assert losses(root / "control")[-1] != losses(launched / "straight")[-1]


def test_two_ranks_go_on_from_any_run(relaunched: tuple[Path, Launch]) -> None:
    root, launch = relaunched
    ends = [_figures(root / f"from-{name}")[-6:] for name in ("fsdp", "ddp", "one")]
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)
    assert ends[0] == pytest.approx(ends[2], rel=1e-4)
    assert "had 1 ranks and goes on with 2" in launch.text(0)


def test_a_rank_that_fails_is_named_by_the_others(relaunched: tuple[Path, Launch]) -> None:
    root, launch = relaunched
    assert "RankFailedError: rank 0 cannot go on: rank 1: DataError: the disk is gone" in launch.text(0)
    assert "DataError: the disk is gone" in launch.text(1)
    assert CheckpointStore(root / "failed" / "checkpoints").pointed("latest") == 2


def _saved(run: Path) -> str:
    return fingerprint(type("Saved", (), {"store": CheckpointStore(run / "checkpoints")})())


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_process_goes_on_from_two_ranks(launched: Path, tmp_path: Path, parallel: str) -> None:
    shutil.copytree(launched / parallel, tmp_path / "two")
    trainer_of(_job(tmp_path / "one", accumulation=2)).train()
    with pytest.warns(UserWarning, match="other settings") as warned:
        trainers = [trainer_of(_job(tmp_path / name, steps=9, accumulation=2)) for name in ("two", "one")]
    assert sum("had 2 ranks and goes on with 1" in str(warning.message) for warning in warned) == 1
    for trainer in trainers:
        trainer.train()
    assert _figures(tmp_path / "two") == pytest.approx(_figures(tmp_path / "one"), rel=1e-4)


@pytest.mark.parametrize("damage", ["flip", "missing", "extra"])
def test_damaged_parts_are_refused(launched: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(launched / "fsdp", tmp_path / "run")
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    parts = sorted((store.path(6) / "optimizer").iterdir())
    assert len(parts) == 2
    assert len(store.load(6).optimizer) > 60
    if damage == "flip":
        data = parts[1].read_bytes()
        parts[1].write_bytes(flip(data, len(data) // 2 * 8))
    elif damage == "missing":
        parts[1].unlink()
    else:
        shutil.copy(parts[1], parts[1].with_name("other.safetensors"))
    with pytest.raises(CheckpointDamagedError):
        store.load(6)


def test_activation_checkpointing_changes_no_gradient(tmp_path: Path) -> None:
    calls: list[int] = []
    gradients = []
    for enabled in (False, True):
        trainer = make_trainer(tmp_path / str(enabled), steps=2, activation_checkpointing=enabled)
        calls.append(0)

        def count(*_: Any) -> None:
            calls[-1] += 1

        trainer.model.patch_level_decoder.base.h[0].attn.register_forward_hook(count)
        trainer.train()
        gradients.append([p.grad for p in trainer.model.parameters() if p.grad is not None])
    assert calls == [2, 4]
    assert losses(tmp_path / "True") == losses(tmp_path / "False")
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_muon_is_not_sharded() -> None:
    with pytest.raises(ValueError, match="parallel"):
        TrainConfig(optimizer="muon", parallel="fsdp")


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    ("fault", "lost", "at"), [("kill", 1, 3), ("kill", 0, 4), ("stop", 1, 5), ("stop", 0, 3), ("kill", 1, 7)]
)
def test_lost_ranks_are_named_and_a_restart_loses_nothing(
    tmp_path: Path, parallel: str, fault: str, lost: int, at: int
) -> None:
    timeout = 6.0
    fields = {**HARD, "save_every": 1, "timeout_seconds": timeout, "parallel": parallel}
    job = {**_job(tmp_path / "run", **fields), "dropout": 0.1}
    launch = Launch([{**job, "fault": fault, "on": lost, "at": at}], tmp_path)
    survivor = launch.processes[1 - lost]
    _wait_for(lambda: _is_gone(launch.processes[lost]))
    begin = time.monotonic()
    code = survivor.wait(timeout=120)
    assert time.monotonic() - begin < timeout + 10
    assert code not in (0, None)
    launch.processes[lost].send_signal(signal.SIGKILL)
    launch.wait()
    assert f"rank {1 - lost} cannot go on: rank {lost}: killed or stopped" in launch.text(1 - lost)
    again = Launch([job, {**job, "run": str(tmp_path / "straight")}], tmp_path)
    assert again.wait() == [0, 0], again.text(0)
    assert _saved(tmp_path / "run") == _saved(tmp_path / "straight")
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")


def _is_gone(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process was killed or stopped."""
    state = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    return state in ("Z", "T")


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_torchrun_starts_ranks(tmp_path: Path) -> None:
    process = torchrun([_job(tmp_path / "run")])
    assert process.returncode == 0, process.stderr
    assert _figures(tmp_path / "run") == pytest.approx(_single(tmp_path / "one"), rel=2e-5)
