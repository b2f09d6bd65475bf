"""Helpers of the training tests: a tiny model, a seeded source, hashes of a run's whole state."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bgpt_fast.config import BGPTConfig
from bgpt_fast.model import BGPT
from bgpt_fast.patches import PackedPatches
from bgpt_fast.training import TrainConfig, Trainer, TrainingInterrupted
from support.paths import TESTS

CONFIG = BGPTConfig(
    patch_size=4, patch_length=16, hidden_size=32, patch_num_layers=1, byte_num_layers=1, dropout=0.1, num_heads=2
)


RANK_CHILD = str(TESTS / "support" / "rank_child.py")


class RandomSource:
    """Seeded batches of documents of many lengths; each rank takes every `world_size`-th document.

    `before` is called with the number of each batch.
    """

    def __init__(
        self,
        seed: int = 0,
        documents: int = 3,
        before: Callable[[int], None] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.seed, self.documents, self.before = seed, documents, before
        self.rank, self.world_size = rank, world_size
        self.position = 0

    def next_batch(self) -> PackedPatches:
        if self.before is not None:
            self.before(self.position)
        rng = np.random.default_rng([self.seed, self.position])
        self.position += 1
        sizes = (rng.integers(1, 50) for _ in range(self.documents))
        documents = [("bin", rng.integers(0, 4, size).astype(np.uint8).tobytes()) for size in sizes]
        return PackedPatches.from_bytes(documents[self.rank :: self.world_size], CONFIG)

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]

    def describe(self) -> dict[str, Any]:
        return {"kind": "random", "seed": self.seed}


def child_environment(**variables: str) -> dict[str, str]:
    """Environment of a Python process that has this process's import paths and computes on one thread."""
    paths = [str(TESTS), *(path for path in sys.path if path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **variables}


def torchrun(jobs: list[dict[str, Any]]) -> subprocess.CompletedProcess[bytes]:
    """Runs the jobs of rank_child.py on two ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [RANK_CHILD, json.dumps(jobs)]
    return subprocess.run(command, env=child_environment(), capture_output=True, timeout=240)


def make_model(config: BGPTConfig = CONFIG, seed: int = 0) -> BGPT:
    torch.manual_seed(seed)
    return BGPT(config)


def make_trainer(run_dir: Path, source: Any = None, evaluate: Any = None, model: Any = None, **fields: Any) -> Trainer:
    # No read-ahead, so that what a source does at its N-th batch happens in step N.
    defaults: dict[str, Any] = {"steps": 8, "learning_rate": 3e-3, "device": "cpu", "save_every": 0, "prefetch": 0}
    config = TrainConfig(**{**defaults, "tensorboard": False, **fields})
    return Trainer(model or make_model(), source or RandomSource(), config, run_dir, evaluate, show_progress=False)


def train(run_dir: Path, source: Any = None, **fields: Any) -> Trainer:
    """The trainer of `make_trainer`, after its run."""
    trainer = make_trainer(run_dir, source, **fields)
    trainer.train()
    return trainer


def interrupt(run_dir: Path, at: int, number: int = signal.SIGTERM, **fields: Any) -> Trainer:
    """The trainer of a run that was interrupted by a signal to this process before batch `at`."""

    def send(position: int) -> None:
        if position == at:
            os.kill(os.getpid(), number)

    trainer = make_trainer(run_dir, RandomSource(before=send), **fields)
    with pytest.raises(TrainingInterrupted, match="saved in") as caught:
        trainer.train()
    assert caught.value.exit_code == 128 + number
    assert caught.value.step == trainer.step
    assert caught.value.checkpoint == trainer.store.path(trainer.step)
    return trainer


def fingerprint(trainer: Trainer) -> str:
    """SHA-256 of weights, optimiser state, random state and the source's position."""
    _, checkpoint = trainer.store.load_latest() or (0, None)
    assert checkpoint is not None
    digest = hashlib.sha256()
    for tensors in (checkpoint.weights, checkpoint.optimizer, checkpoint.rng):
        for name in sorted(tensors):
            digest.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    digest.update(json.dumps([checkpoint.state["source"], checkpoint.state["step"]]).encode())
    return digest.hexdigest()


def log_lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


def losses(run_dir: Path) -> list[tuple[int, float, float, float]]:
    """Step, loss, learning rate and gradient norm of every training line in the log."""
    return [
        (line["step"], line["loss"], line["learning_rate"], line["grad_norm"])
        for line in log_lines(run_dir)
        if line["kind"] == "train"
    ]
