"""A model put to the whole test on held-out programs: teacher-forced, and free running."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bgpt_fast.generation import Generator
from bgpt_fast.model import BGPT
from bgpt_fast.tasks.cpu_states.evaluation import CPUStateReport, evaluate, evaluate_bytes
from bgpt_fast.tasks.cpu_states.machine import state_size
from bgpt_fast.tasks.cpu_states.simulation import simulate, teacher_forced
from bgpt_fast.tasks.cpu_states.trace import PredictedTrace
from bgpt_fast.tasks.cpu_states.traces import Traces


@dataclass(frozen=True)
class Assessment:
    """How a model does on programs.

    Args:
        teacher_forced: scores when each byte is predicted from the true bytes before it.
        free_running: scores when the model writes every state itself, from memory and first state alone.
        predicted: what it wrote, a trace a program.
        seconds: the free run's time.
        states: states that it wrote.
    """

    teacher_forced: CPUStateReport
    free_running: CPUStateReport
    predicted: list[PredictedTrace]
    seconds: float
    states: int

    @property
    def states_per_second(self) -> float:
        """States written a second, free running."""
        return self.states / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """The scores and the speed, JSON-ready."""
        return {
            "teacher_forced": self.teacher_forced.to_dict(),
            "free_running": self.free_running.to_dict(),
            "states": self.states,
            "seconds": self.seconds,
            "states_per_second": self.states_per_second,
        }


def assess(
    model: BGPT,
    traces: Traces,
    *,
    max_batch: int = 256,
    progress: Callable[[int, int, int], None] | None = None,
) -> Assessment:
    """Scores a model on programs, teacher-forced and free running.

    Args:
        model: trained on traces of the same machine.
        traces: the truths, at least one.
        max_batch: programs under way at once.
        progress: of the free run, as `Generator.generate` calls it.

    Raises:
        TypeError, ValueError: a wrong argument, or a trace that the context cannot hold.
    """
    forced = evaluate_bytes(teacher_forced(model, traces, batch_size=64), [trace.states for trace in traces])
    started = time.perf_counter()
    predicted = simulate(Generator(model, max_batch=max_batch), traces, progress=progress)
    seconds = time.perf_counter() - started
    size = state_size(traces.num_registers)
    given = traces.memory_size + size
    states = sum((len(trace.to_bytes()) - given) // size for trace in predicted)
    return Assessment(forced, evaluate(predicted, traces), predicted, seconds, states)
