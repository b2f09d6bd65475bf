"""Trains a run in processes that are killed at chosen events: `python killed_run.py RUN STEPS PLAN [FAULT]`.

PLAN is a JSON list of events; each session dies by SIGKILL at the next one, and the last session runs to the end:

    ["save", N, K]    in the N-th system call or half-made write of the session's K-th save
    ["epoch", N, M]   when the source has planned the last batch of an epoch, for the N-th time, M batches after it
    ["update", N, 0]  in the optimiser's N-th step
    ["log", N, 0]     in the middle of the N-th line of the log
    ["time", N, 0]    N milliseconds after the start of training, from outside

Prints a JSON list of [event, resumed, step] for the kills. FAULT "pointer first" is a save that moves `latest` before
the folder is written, which the check after each kill must notice.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bgpt_fast.data import FileSource
from bgpt_fast.training import Trainer
from bgpt_fast.training.checkpoint_store import CheckpointStore
from bgpt_fast.training.logs import RunLog
from support.training import CONFIG, make_trainer
from support.write_faults import step_fails

CALLS = ("fsync", "replace", "rename", "mkdir", "chmod")
FIELDS: dict[str, Any] = {
    "save_every": 1, "accumulation": 2, "targets_per_step": 9, "threads": 1, "eval_every": 7, "prefetch": 2
}  # fmt: skip


def trainer_of(run: Path, steps: int) -> Trainer:
    """A run on the files beside it; an epoch has about four steps."""
    source = FileSource(run.parent / "files", CONFIG, 24, seed=0)

    def evaluate(model: Any) -> dict[str, float]:
        return {"weight": float(next(model.parameters()).sum())}

    return make_trainer(run, source, evaluate, steps=steps, **FIELDS)


def write_files(folder: Path) -> None:
    for index in range(60):
        folder.mkdir(exist_ok=True)
        (folder / f"{index}.bin").write_bytes(bytes((index * place) % 256 for place in range(5 + index % 40)))


def session(run: Path, steps: int, event: tuple[str, int, int] | None, report: int, fault: str) -> None:
    """Trains until the event; writes a line about the kill to the descriptor `report` right before it."""
    trainer = trainer_of(run, steps)
    resumed = trainer.resumed

    def die() -> None:
        assert event is not None
        os.write(report, json.dumps([event[0], resumed, trainer.step]).encode())
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    if fault == "pointer first":
        save = CheckpointStore.save

        def pointer_first(self: CheckpointStore, step: int, *rest: Any, **named: Any) -> Path:
            self.folder.mkdir(exist_ok=True)
            self._point("latest", self.path(step).name)
            return save(self, step, *rest, **named)

        CheckpointStore.save = pointer_first  # type: ignore[method-assign]
    if event is not None:
        arm(trainer, event, die)
    # The parent measures time from here.
    os.write(report, b"\n")
    trainer.train()


def arm(trainer: Trainer, event: tuple[str, int, int], die: Callable[[], None]) -> None:
    """Makes the event call `die`."""
    kind, number, detail = event
    count = 0

    def at_call(owner: Any, name: str, action: Callable[..., Any]) -> None:
        real = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            return action(real, *arguments, **named) if count == number else real(*arguments, **named)

        setattr(owner, name, call)

    if kind == "save":
        number, step = detail, number

        def dying(real: Any, *arguments: Any, **named: Any) -> Any:
            with step_fails(step, die, CALLS):
                return real(*arguments, **named)

        at_call(CheckpointStore, "save", dying)
    elif kind == "epoch":

        def last_batch(real: Any, *arguments: Any) -> Any:
            if detail == 0:
                die()
            at_batch(detail)
            return real(*arguments)

        def at_batch(batch: int) -> None:
            next_batch = trainer.source.next_batch

            def later() -> Any:
                nonlocal batch
                batch -= 1
                if batch < 0:
                    die()
                return next_batch()

            trainer.source.next_batch = later  # type: ignore[method-assign]

        at_call(trainer.source, "_after", last_batch)
    elif kind == "update":
        at_call(trainer._optimizers, "step", lambda real, *_: die())
    elif kind == "log":

        def half(real: Any, log: RunLog, figures: dict[str, Any]) -> None:
            assert log._file is not None
            log._file.write(json.dumps(figures)[:20])
            log._file.flush()
            die()

        at_call(RunLog, "write", half)


def check(run: Path) -> None:
    """Raises if `latest` names a checkpoint that is not intact."""
    store = CheckpointStore(run / "checkpoints")
    latest = store.pointed("latest")
    if latest is not None:
        store.load(latest)


def main(run: Path, steps: int, plan: list[tuple[str, int, int]], fault: str = "") -> list[tuple[str, bool, int]]:
    """Runs all sessions; returns event, whether the session had resumed, and its step, for each kill."""
    kills: list[tuple[str, bool, int]] = []
    for event in (*plan, None):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            code = 1
            try:
                session(run, steps, event, writing, fault)
                code = 0
            finally:
                os._exit(code)
        os.close(writing)
        with open(reading, "rb") as report:
            report.readline()
            if event is not None and event[0] == "time":
                time.sleep(event[1] / 1000)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            line = report.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code == (0 if event is None else -signal.SIGKILL), (event, code)
        if event is not None:
            kills.append(tuple(json.loads(line)) if line else (event[0], bool(kills), -1))
        check(run)
    return kills


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]), *sys.argv[4:])))
