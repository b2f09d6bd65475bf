"""Measures how well a model simulates programs, teacher-forced and free running."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bgpt_fast.generation import Generator
from bgpt_fast.generation.decoders.base import device_of
from bgpt_fast.generation.precision import scoring_in
from bgpt_fast.model import BGPT
from bgpt_fast.tasks.cpu_states.chunk_journal import ChunkJournal
from bgpt_fast.tasks.cpu_states.evaluation import CPUStateReport, StateCounts
from bgpt_fast.tasks.cpu_states.formatting import predicted_bytes
from bgpt_fast.tasks.cpu_states.machine import state_size
from bgpt_fast.tasks.cpu_states.simulation import simulate_iter, teacher_forced
from bgpt_fast.tasks.cpu_states.trace import PredictedTrace
from bgpt_fast.tasks.cpu_states.traces import Traces

Progress = Callable[[int, int, int], None]


@dataclass(frozen=True)
class Assessment:
    """Scores and speed of a model on programs.

    Args:
        teacher_forced: scores when each byte is predicted from the true bytes before it.
        free_running: scores when the model generates every state, given only memory and first state.
        predicted: the traces that it generated free running; empty for an `Evaluator`.
        seconds: time of the free-running generation.
        states: number of generated states.
        teacher_forced_seconds: time of the teacher-forced passes.
    """

    teacher_forced: CPUStateReport
    free_running: CPUStateReport
    predicted: list[PredictedTrace]
    seconds: float
    states: int
    teacher_forced_seconds: float

    @property
    def states_per_second(self) -> float:
        """States generated per second, free running."""
        return self.states / self.seconds

    @property
    def teacher_forced_states_per_second(self) -> float:
        """States predicted per second, teacher-forced."""
        return int(self.teacher_forced.states.sum()) / self.teacher_forced_seconds

    def to_dict(self) -> dict[str, Any]:
        """The scores and the speed, JSON-ready."""
        return {
            "teacher_forced": self.teacher_forced.to_dict(),
            "free_running": self.free_running.to_dict(),
            "states": self.states,
            "seconds": self.seconds,
            "states_per_second": self.states_per_second,
            "teacher_forced_seconds": self.teacher_forced_seconds,
            "teacher_forced_states_per_second": self.teacher_forced_states_per_second,
        }


class Scores:
    """Counts of scored programs: small, can be pickled, and add up exactly over chunks, processes and machines.

    Args:
        state_bytes: C, the bytes of a state.

    Attributes:
        states: number of generated states.
        seconds, forced_seconds: time of the free-running generation and of the teacher-forced passes.
    """

    def __init__(self, state_bytes: int) -> None:
        self.forced, self.free = StateCounts(state_bytes), StateCounts(state_bytes)
        self.states = 0
        self.seconds = self.forced_seconds = 0.0

    def merge(self, other: Scores) -> None:
        """Adds the counts and times of other programs; raises ValueError if their states are of another size."""
        self.forced.merge(other.forced)
        self.free.merge(other.free)
        self.states += other.states
        self.seconds += other.seconds
        self.forced_seconds += other.forced_seconds

    def assessment(self, predicted: list[PredictedTrace] | None = None) -> Assessment:
        """The scores of all programs so far; raises ValueError if there are none."""
        return Assessment(
            self.forced.report(),
            self.free.report(),
            [] if predicted is None else predicted,
            self.seconds,
            self.states,
            self.forced_seconds,
        )


@dataclass(frozen=True)
class Chunk:
    """A model's predictions for some programs.

    Args:
        traces: the true traces.
        forced: int16 [N, C] for each program, teacher-forced, as `teacher_forced` returns it.
        predicted: the traces that the model generated free running.
        scores: those of these programs.
    """

    traces: Traces
    forced: list[NDArray[np.int16]]
    predicted: list[PredictedTrace]
    scores: Scores


class Evaluator:
    """Scores a model on programs in chunks: any number of programs, in the memory that one chunk needs.

    Args:
        model: trained on traces of the same machine.
        num_registers: R of that machine.
        max_batch, max_memory: as in `Generator`: how many programs are generated at the same time.
        draft: as in `simulate`.
        batch_invariant, precision: as in `Generator`; the teacher-forced passes run in bfloat16 unless the precision is
            None or float32.

    Attributes:
        scores: those of all programs so far.

    Raises:
        TypeError, ValueError: a wrong argument.
    """

    def __init__(
        self,
        model: BGPT,
        num_registers: int,
        *,
        max_batch: int | None = None,
        max_memory: int | None = None,
        draft: bool = False,
        batch_invariant: bool | None = None,
        precision: str | None = None,
    ) -> None:
        self._draft = draft
        self._generator = Generator(
            model,
            max_batch=max_batch,
            max_memory=max_memory,
            batch_invariant=batch_invariant,
            precision=precision,
        )
        self._size = state_size(num_registers)
        self.scores = Scores(self._size)

    def add(self, traces: Traces, *, progress: Progress | None = None, saved: ChunkJournal | None = None) -> Chunk:
        """Runs and scores more programs.

        Args:
            traces: the true traces, at least one.
            progress: called during the free run, as by `Generator.generate`.
            saved: the chunk's journal: predictions in it are reused, and new ones are appended to it.

        Raises:
            TypeError, ValueError: a wrong argument, or a trace that the context cannot hold.
            OSError: `saved` cannot be written.
        """
        scores = Scores(self._size)
        true_states = [trace.states for trace in traces]
        forced, scores.forced_seconds = self._teacher_forced(traces, saved)
        scores.forced.add(forced, true_states)
        predicted, scores.seconds = self._free_running(traces, progress, saved)
        tails = [predicted_bytes(one, trace) for one, trace in zip(predicted, traces, strict=True)]
        scores.free.add([np.frombuffer(tail, np.uint8) for tail in tails], true_states)
        scores.states = sum(len(tail) // self._size for tail in tails)
        self.scores.merge(scores)
        return Chunk(traces, forced, predicted, scores)

    def _teacher_forced(self, traces: Traces, saved: ChunkJournal | None) -> tuple[list[NDArray[np.int16]], float]:
        """The predictions and the time that they took."""
        if saved is not None and saved.forced is not None:
            return saved.forced, saved.forced_seconds
        started = time.perf_counter()
        model = self._generator.model
        with scoring_in(self._generator.precision or "float32", device_of(model)):
            forced = teacher_forced(model, traces, batch_size=64)
        seconds = time.perf_counter() - started
        if saved is not None:
            saved.add_forced(forced, seconds)
        return forced, seconds

    def _free_running(
        self, traces: Traces, progress: Progress | None, saved: ChunkJournal | None
    ) -> tuple[list[PredictedTrace], float]:
        """The predictions and the time that they took, in earlier runs too."""
        predicted = {} if saved is None else dict(saved.predicted)
        before = 0.0 if saved is None else saved.seconds
        missing = [index for index in range(len(traces)) if index not in predicted]
        num_saved = len(predicted)

        def report(done: int, _: int, new_bytes: int) -> None:
            if progress is not None:
                progress(num_saved + done, len(traces), new_bytes)

        started = time.perf_counter()
        part = traces.select(missing) if num_saved else traces
        for index, one in simulate_iter(self._generator, part, draft=self._draft, progress=report):
            predicted[missing[index]] = one
            if saved is not None:
                saved.add(missing[index], one, before + time.perf_counter() - started)
        if saved is not None and missing:
            saved.sync()
        seconds = before + (time.perf_counter() - started if missing else 0.0)
        return [predicted[index] for index in range(len(traces))], seconds

    def assessment(self, predicted: list[PredictedTrace] | None = None) -> Assessment:
        """The scores of all programs so far; raises ValueError if there are none."""
        return self.scores.assessment(predicted)


def assess(
    model: BGPT,
    traces: Traces,
    *,
    max_batch: int | None = None,
    precision: str | None = None,
    progress: Progress | None = None,
) -> Assessment:
    """Scores a model on programs, teacher-forced and free running.

    Args:
        model: trained on traces of the same machine.
        traces: the true traces, at least one.
        max_batch: number of programs generated at the same time, as in `Generator`.
        precision: as in `Evaluator`.
        progress: called during the free run, as by `Generator.generate`.

    Raises:
        TypeError, ValueError: a wrong argument, or a trace that the context cannot hold.
    """
    evaluator = Evaluator(model, traces.num_registers, max_batch=max_batch, precision=precision)
    return evaluator.assessment(evaluator.add(traces, progress=progress).predicted)
