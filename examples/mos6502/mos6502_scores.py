"""Accuracy of predicted states of the 6502: of all bytes, and of those that an instruction changed.

Letters: N executed instructions, C = 16 bytes per state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mos6502_traces import COLUMNS, STATE_SIZE
from numpy.typing import NDArray

from bgpt_fast.generation import Generator
from bgpt_fast.model import BGPT
from bgpt_fast.tasks.cpu_states import Traces, simulate
from bgpt_fast.tasks.cpu_states.simulation import teacher_forced


@dataclass(frozen=True)
class Mos6502Report:
    """Accuracy of the states after the first one; missing and surplus bytes count as wrong.

    Args:
        programs: number of programs.
        state_bytes: number of bytes scored.
        accuracy: share of these bytes that are right.
        changed_accuracy: the same for bytes that differ from the true previous state; None if there are none.
        copy_baseline: the accuracy of repeating the true previous state.
        exact_programs: share of the programs whose bytes are all right.
        by_column: accuracy of each byte of a state.
    """

    programs: int
    state_bytes: int
    accuracy: float
    changed_accuracy: float | None
    copy_baseline: float
    exact_programs: float
    by_column: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """The fields, JSON-ready."""
        return dict(vars(self))


def score(predicted: Sequence[NDArray[Any]], traces: Traces) -> Mos6502Report:
    """Scores predicted states.

    Args:
        predicted: for each program integers, [N, C] or flat: the bytes after the first state; any number of them.
        traces: the true traces.

    Raises:
        ValueError: the numbers of predictions and traces differ, or are 0.
    """
    if len(predicted) != len(traces) or not len(traces):
        raise ValueError(
            f"score: expected a prediction for each program, at least one, got {len(predicted)} and {len(traces)}"
        )
    right_parts: list[NDArray[np.bool_]] = []
    changed_parts: list[NDArray[np.bool_]] = []
    surplus = exact = 0
    for states, trace in zip(predicted, traces, strict=True):
        truth, before = trace.states[1:], trace.states[:-1]
        # −1 marks a missing byte: it differs from every true byte.
        padded = np.full(truth.size, -1, np.int64)
        flat = states.reshape(-1)
        padded[: len(flat)] = flat[: truth.size]
        right_parts.append(padded.reshape(truth.shape) == truth)
        changed_parts.append(truth != before)
        extra = max(len(flat) - truth.size, 0)
        surplus += extra
        exact += bool(right_parts[-1].all()) and not extra
    right, changed = np.concatenate(right_parts), np.concatenate(changed_parts)
    return Mos6502Report(
        programs=len(traces),
        state_bytes=right.size + surplus,
        accuracy=float(right.sum()) / (right.size + surplus),
        changed_accuracy=float(right[changed].mean()) if changed.any() else None,
        copy_baseline=float((~changed).mean()),
        exact_programs=exact / len(traces),
        by_column=dict(zip(COLUMNS, right.mean(0).tolist(), strict=True)),
    )


def evaluate(model: BGPT, traces: Traces, *, batch_size: int = 64) -> dict[str, Mos6502Report]:
    """Scores a model on programs: "teacher_forced", and "free_running" from only memory and first state.

    Args:
        model: trained on traces with the same memory size.
        traces: the true traces, at least one.
        batch_size: programs simulated at once.

    Raises:
        TypeError, ValueError: a wrong argument, or a trace that the context cannot hold.
    """
    forced = teacher_forced(model, traces, batch_size=batch_size)
    prefix_size = traces.memory_size + STATE_SIZE
    simulated = simulate(Generator(model, max_batch=batch_size), traces)
    free = [np.frombuffer(trace.data, np.uint8)[prefix_size:] for trace in simulated]
    return {"teacher_forced": score(forced, traces), "free_running": score(free, traces)}
