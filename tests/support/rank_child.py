"""One rank of the runs that `test_training_distributed.py` asks for: `python rank_child.py JOBS`, JOBS as JSON."""

from __future__ import annotations

import atexit
import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import bgpt_fast.byte_decoder
import bgpt_fast.training.checkpointer
import bgpt_fast.training.step
from bgpt_fast.data import DataError
from bgpt_fast.patches import PackedPatches
from bgpt_fast.training import NonFiniteLossError, TrainConfig, Trainer, TrainingInterrupted, rank_and_world_size
from support.training import CONFIG, RandomSource, make_model

SIGNALS = {"term": signal.SIGTERM, "kill": signal.SIGKILL, "stop": signal.SIGSTOP}


class SharedSource(RandomSource):
    """A global batch of five documents of unequal lengths, of which each rank takes every `world_size`-th."""

    def __init__(self, rank: int = 0, world_size: int = 1, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.rank, self.world_size = rank, world_size

    def next_batch(self) -> PackedPatches:
        if self.before is not None:
            self.before(self.position)
        rng = np.random.default_rng([self.seed, self.position])
        self.position += 1
        documents = [("bin", rng.integers(0, 4, rng.integers(1, 50)).astype(np.uint8).tobytes()) for _ in range(5)]
        return PackedPatches.from_bytes(documents[self.rank :: self.world_size], CONFIG)


def trainer_of(job: dict[str, Any], rank: int = 0, world_size: int = 1) -> Trainer:
    """The trainer of a job: `run`, `fields` of TrainConfig, `dropout`, and what goes wrong on which rank at which
    batch."""
    model = make_model(dataclasses.replace(CONFIG, dropout=job.get("dropout", 0.0), patch_num_layers=2), seed=rank)

    def poison(module: Any, arguments: Any, output: Any) -> Any:
        return output._replace(loss=output.loss * torch.nan, nats=output.nats * torch.nan)

    def before(position: int) -> None:
        if position == job.get("at") and rank == job.get("on"):
            if job["fault"] in SIGNALS:
                os.kill(os.getpid(), SIGNALS[job["fault"]])
            elif job["fault"] == "nan":
                model.register_forward_hook(poison)
            elif job["fault"] == "error":
                raise DataError("the disk is gone")

    fields: dict[str, Any] = {"steps": 6, "learning_rate": 3e-3, "device": "cpu", "save_every": 0, "threads": 1}
    fields |= {"prefetch": 0, "tensorboard": False}
    evaluate = (lambda model: {"weights": float(sum(p.abs().sum() for p in model.parameters()))}) if rank == 0 else None
    evaluate = evaluate or (lambda model: {"weights": -1.0})
    source = SharedSource(rank, world_size, before=before)
    config = TrainConfig(**{**fields, **job.get("fields", {})})
    return Trainer(model, source, config, job["run"], evaluate, show_progress=False)


def _no_group_left() -> None:
    """Threads of a process group that outlive the interpreter can end this process with SIGABRT."""
    if dist.is_initialized():
        os._exit(70)


def main(jobs: list[dict[str, Any]]) -> None:
    atexit.register(_no_group_left)
    rank, world_size = rank_and_world_size()
    resuming = bgpt_fast.training.checkpointer
    update = bgpt_fast.training.step
    weighted = update.accumulate_gradients
    own_states = resuming.states_of
    chunk = bgpt_fast.byte_decoder.CHUNK

    def unweighted(parallel: Any, objective: Any, batches: Any, targets: Any, total: int, rest: str) -> torch.Tensor:
        return weighted(parallel, objective, batches, targets, world_size * sum(map(len, targets)), rest)

    for job in jobs:
        # Faults that a right implementation must not have: each makes another run.
        update.accumulate_gradients = unweighted if job.get("fault") == "unweighted" else weighted
        shared = job.get("fault") == "rank 0's rng"
        resuming.states_of = (lambda rng, _: own_states(rng, 0)) if shared else own_states
        bgpt_fast.byte_decoder.CHUNK = job.get("chunk", chunk)
        try:
            trainer_of(job, rank, world_size).train()
        except NonFiniteLossError as error:
            Path(job["run"], f"caught-{rank}").write_text(str(error.batch_path))
        except TrainingInterrupted as error:
            sys.exit(error.exit_code)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
