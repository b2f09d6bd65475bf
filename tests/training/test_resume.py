"""Stopped and resumed is the same as run through, bit for bit, whatever stopped it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from support.training import (
    RandomSource,
    child_environment,
    fingerprint,
    interrupt,
    log_lines,
    losses,
    make_trainer,
    train,
)

from bgpt_fast.checkpoint.schema import PATCH_EMBEDDING
from bgpt_fast.model import BGPT
from bgpt_fast.training import TrainingInterrupted, checkpoint_store

HARD: dict[str, Any] = {"steps": 12, "accumulation": 2, "targets_per_step": 9, "threads": 1}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(("schedule", "precision"), [("cosine", "fp32"), ("wsd", "bf16")])
def test_resumed_run_is_the_same_run(tmp_path: Path, optimizer: str, schedule: str, precision: str) -> None:
    fields = {**HARD, "optimizer": optimizer, "schedule": schedule, "precision": precision}
    straight = train(tmp_path / "straight", **fields)
    for at in (5, 14):
        interrupt(tmp_path / "resumed", at, **fields)
    resumed = make_trainer(tmp_path / "resumed", **fields)
    assert resumed.resumed
    assert resumed.step == 8
    torch.rand(3)
    resumed.train()
    assert fingerprint(resumed) == fingerprint(straight)
    assert losses(tmp_path / "resumed") == losses(tmp_path / "straight")
    assert [line["step"] for line in log_lines(tmp_path / "resumed")] == list(range(1, 13))


@pytest.mark.parametrize("damage", [None, "not transposed"])
def test_a_checkpoint_of_format_1_goes_on(tmp_path: Path, damage: str | None) -> None:
    """There AdamW's averages for the patch embedding are [D, S·V], as in released checkpoints."""
    straight = train(tmp_path / "straight", **HARD)
    interrupt(tmp_path / "resumed", 9, **HARD)
    (folder,) = (tmp_path / "resumed" / "checkpoints").glob("step-*")
    state = safetensors.torch.load_file(folder / "optimizer.safetensors")
    averages = [name for name in state if name.startswith(PATCH_EMBEDDING) and not name.endswith("/step")]
    assert len(averages) == 2
    if damage is None:
        state |= {name: state[name].t().contiguous() for name in averages}
    safetensors.torch.save_file(state, folder / "optimizer.safetensors")
    digests = json.loads((folder / "manifest.json").read_bytes())["sha256"]
    digests["optimizer.safetensors"] = hashlib.sha256((folder / "optimizer.safetensors").read_bytes()).hexdigest()
    (folder / "manifest.json").write_bytes(checkpoint_store._manifest(digests, version=1))
    if damage is not None:
        with pytest.raises(ValueError, match="expected shape"):
            make_trainer(tmp_path / "resumed", **HARD)
        return
    assert fingerprint(train(tmp_path / "resumed", **HARD)) == fingerprint(straight)


@pytest.mark.parametrize("forgotten", ["optimizer", "rng", "source"])
def test_each_part_of_the_state_counts(tmp_path: Path, forgotten: str) -> None:
    train(tmp_path / "straight", **HARD)
    interrupt(tmp_path / "resumed", 9, **HARD)
    resumed = make_trainer(tmp_path / "resumed", **HARD)
    if forgotten == "optimizer":
        for optimizer in resumed._optimizers._all():
            optimizer.state.clear()
    elif forgotten == "rng":
        resumed._checkpointer._rng = {}
    else:
        resumed.source.load_state_dict({"position": 0})
    resumed.train()
    assert losses(tmp_path / "resumed")[-1] != losses(tmp_path / "straight")[-1]


def test_lost_steps_are_made_again_and_logged_once(tmp_path: Path) -> None:
    def crash(position: int) -> None:
        if position == 7:
            raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        make_trainer(tmp_path / "run", RandomSource(before=crash), steps=10, save_every=3).train()
    with (tmp_path / "run" / "log.jsonl").open("a") as log:
        log.write('{"kind": "train", "step": 8, "lo')
    for name in ("run", "straight"):
        train(tmp_path / name, steps=10, save_every=3)
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_finish_the_step_and_save(tmp_path: Path, number: int) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    trainer = interrupt(tmp_path, 3, number, steps=10)
    assert trainer.step == trainer.store.pointed("latest") == 4
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


def test_signal_in_an_evaluation_cuts_it_short_and_resume_repeats_it(tmp_path: Path) -> None:
    done: list[int] = []

    def evaluate(model: BGPT) -> dict[str, float]:
        if not done:
            done.append(0)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        done.append(1)
        return {"loss": 1.0}

    started = time.monotonic()
    with pytest.raises(TrainingInterrupted):
        make_trainer(tmp_path / "run", evaluate=evaluate, steps=4, eval_every=2).train()
    assert time.monotonic() - started < 30
    train(tmp_path / "run", evaluate=evaluate, steps=4, eval_every=2)
    assert [(line["kind"], line["step"]) for line in log_lines(tmp_path / "run")] == [
        ("train", 1), ("train", 2), ("eval", 2), ("train", 3), ("train", 4), ("eval", 4),
    ]  # fmt: skip


def test_a_signal_right_before_an_evaluation_is_not_waited_out(tmp_path: Path) -> None:
    evaluated: list[int] = []

    def evaluate(model: BGPT) -> dict[str, float]:
        evaluated.append(trainer.step)
        return {"loss": 1.0}

    trainer = make_trainer(tmp_path, evaluate=evaluate, steps=4, eval_every=2)
    whole_model = trainer._parallel.whole_model

    def signalled() -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return whole_model()

    trainer._parallel.whole_model = signalled  # type: ignore[method-assign]
    with pytest.raises(TrainingInterrupted):
        trainer.train()
    assert (trainer.step, evaluated) == (2, [])


def test_other_threads_train_without_handlers(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, steps=2)
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert trainer.step == 2


CHILD = """
import sys
from pathlib import Path
from support.training import make_trainer
from bgpt_fast.training import TrainingInterrupted
try:
    make_trainer(Path(sys.argv[1]), steps=10**6, save_every=int(sys.argv[2]), threads=1).train()
except TrainingInterrupted as error:
    sys.exit(error.exit_code)
"""


def _start(run_dir: Path, save_every: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CHILD, str(run_dir), str(save_every)], env=child_environment())


def test_signalled_processes_exit_with_their_codes(tmp_path: Path) -> None:
    expected = {"term": (signal.SIGTERM, 143), "int": (signal.SIGINT, 130), "kill": (signal.SIGKILL, -9)}
    children = {name: _start(tmp_path / name, 2 if name == "kill" else 0) for name in expected}
    try:
        for name in expected:
            log = tmp_path / name / "log.jsonl"
            deadline = time.monotonic() + 120
            while not (log.exists() and log.read_bytes().count(b"\n") > 5):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        for name, (number, code) in expected.items():
            children[name].send_signal(number)
            assert children[name].wait(timeout=30) == code
    finally:
        for child in children.values():
            child.kill()
            child.wait()
    for name in expected:
        with pytest.warns(UserWarning, match="steps 1000000"):
            resumed = make_trainer(tmp_path / name, steps=10, threads=1)
        assert resumed.step >= 4


def _resources() -> tuple[int, int, int]:
    """Resident kilobytes, threads, descriptors."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]), int(status["Threads"]), len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("steps", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_long_runs_hold_on_to_nothing(tmp_path: Path, steps: int) -> None:
    resources: dict[int, tuple[int, int, int]] = {}

    def watch(position: int) -> None:
        if position >= 100 and position % 20 == 0:
            resources[position] = _resources()
            # A save under way has a thread and an open file; what is leaked stays.
            _, first_threads, first_descriptors = resources[min(resources)]
            for _ in range(100):
                if resources[position][1] <= first_threads and resources[position][2] <= first_descriptors:
                    break
                time.sleep(0.02)
                resources[position] = _resources()

    train(tmp_path, RandomSource(before=watch), steps=100 + steps, save_every=100, eval_every=50)
    _, threads, descriptors = zip(*resources.values(), strict=True)
    assert max(threads) == threads[0]
    assert max(descriptors) == descriptors[0]
    if steps >= 1000:
        positions = torch.tensor([float(position) for position in resources])
        kilobytes = torch.tensor([float(resident) for resident, _, _ in resources.values()])
        centred = positions - positions.mean()
        slope = float((centred * (kilobytes - kilobytes.mean())).sum() / (centred**2).sum())
        assert slope * 1000 < 1024


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_gpu_runs_train_and_resume(tmp_path: Path, optimizer: str) -> None:
    fields: dict[str, Any] = {**HARD, "optimizer": optimizer, "precision": "bf16", "device": "cuda"}
    interrupt(tmp_path, 9, **fields)
    stopped = torch.cuda.get_rng_state()
    resumed = make_trainer(tmp_path, **fields)
    assert torch.equal(resumed._checkpointer._rng["cuda"], stopped)
    result = resumed.train()
    assert result.steps == 12
    assert result.loss < losses(tmp_path)[0][1]
