"""What the training tests share: a tiny model, a seeded source, hashes of everything a run is made of."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bgpt_fast.config import BGPTConfig
from bgpt_fast.model import BGPT
from bgpt_fast.patches import PackedPatches
from bgpt_fast.training import TrainConfig, Trainer
from support.paths import TESTS

CONFIG = BGPTConfig(
    patch_size=4, patch_length=16, hidden_size=32, patch_num_layers=1, byte_num_layers=1, dropout=0.1, num_heads=2
)


class RandomSource:
    """Seeded batches of documents of many lengths; `before` is called with the number of each batch."""

    def __init__(self, seed: int = 0, documents: int = 3, before: Callable[[int], None] | None = None) -> None:
        self.seed = seed
        self.documents = documents
        self.before = before
        self.position = 0

    def next_batch(self) -> PackedPatches:
        if self.before is not None:
            self.before(self.position)
        rng = np.random.default_rng([self.seed, self.position])
        self.position += 1
        return PackedPatches.from_bytes(
            [
                ("bin", rng.integers(0, 4, rng.integers(1, 50)).astype(np.uint8).tobytes())
                for _ in range(self.documents)
            ],
            CONFIG,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]

    def describe(self) -> dict[str, Any]:
        return {"kind": "random", "seed": self.seed}


def child_environment(**variables: str) -> dict[str, str]:
    """Variables for a Python process that finds tests and package as this one does, and computes on one thread."""
    paths = [str(TESTS), *(path for path in sys.path if path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **variables}


def make_model(config: BGPTConfig = CONFIG, seed: int = 0) -> BGPT:
    torch.manual_seed(seed)
    return BGPT(config)


def make_trainer(run_dir: Path, source: RandomSource | None = None, evaluate: Any = None, **fields: Any) -> Trainer:
    # Nothing is read ahead: what a source does at its N-th batch falls into step N.
    defaults: dict[str, Any] = {"steps": 8, "learning_rate": 3e-3, "device": "cpu", "save_every": 0, "prefetch": 0}
    defaults["tensorboard"] = False
    return Trainer(
        make_model(),
        source or RandomSource(),
        TrainConfig(**{**defaults, **fields}),
        run_dir,
        evaluate,
        show_progress=False,
    )


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
    """Step, loss, rate and gradient norm of every training line."""
    return [
        (line["step"], line["loss"], line["learning_rate"], line["grad_norm"])
        for line in log_lines(run_dir)
        if line["kind"] == "train"
    ]
