"""One rank of the runs that tests/training/test_distributed.py starts: `python rank_child.py JOBS`, JOBS as JSON."""

from __future__ import annotations

import atexit
import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import bgpt_fast.byte_decoder
import bgpt_fast.training.checkpointer
import bgpt_fast.training.step
from bgpt_fast.data import DataError
from bgpt_fast.model import BGPT
from bgpt_fast.training import NonFiniteLossError, Trainer, TrainingInterrupted, rank_and_world_size
from support.training import CONFIG, RandomSource, make_model, make_trainer

SIGNALS = {"term": signal.SIGTERM, "kill": signal.SIGKILL, "stop": signal.SIGSTOP}


def trainer_of(job: dict[str, Any], rank: int = 0, world_size: int = 1) -> Trainer:
    """The trainer of a job, which specifies `run`, `fields` of TrainConfig, `dropout`, and which fault occurs on which
    rank at which batch."""
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

    def evaluate(model: BGPT) -> dict[str, float]:
        return {"weights": float(sum(p.abs().sum() for p in model.parameters())) if rank == 0 else -1.0}

    source = RandomSource(documents=5, before=before, rank=rank, world_size=world_size)
    fields = {"steps": 6, "threads": 1, **job.get("fields", {})}
    return make_trainer(Path(job["run"]), source, evaluate, model, **fields)


def _no_group_left() -> None:
    """Exits at once if a process group is left: its threads can end this process with SIGABRT at shutdown."""
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
        # Faults that a correct implementation must not have: each changes the run.
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
