"""How right predicted states of the 6502 are: all bytes, and those that changed apart.

Letters: N executed instructions, C = 16 bytes a state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bgpt_fast.generation import Generator
from bgpt_fast.model import BGPT
from bgpt_fast.tasks.cpu_states import Traces, simulate
from bgpt_fast.tasks.cpu_states.simulation import teacher_forced
from bgpt_fast.tasks.mos6502.tracing import COLUMNS, STATE_SIZE


@dataclass(frozen=True)
class Mos6502Report:
    """Shares of state bytes behind the first state that are right; missing and surplus bytes are wrong.

    Args:
        programs: how many.
        state_bytes: bytes scored.
        accuracy: of all of them.
        changed_accuracy: of those that differ from the true state before; None where none does.
        copy_baseline: what repeating the true state before would score.
        exact_programs: share of the programs of which every byte is right.
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
        predicted: of each program integers, [N, C] or flat: the bytes behind the first state; any number of them.
        traces: the truths.

    Raises:
        ValueError: different numbers of both, or none.
    """
    if len(predicted) != len(traces) or not len(traces):
        raise ValueError(
            f"score: expected a prediction for each program, at least one, got {len(predicted)} and {len(traces)}"
        )
    right: list[NDArray[np.bool_]] = []
    changed: list[NDArray[np.bool_]] = []
    surplus = exact = 0
    for one, trace in zip(predicted, traces, strict=True):
        truth, before = trace.states[1:], trace.states[:-1]
        # −1 is no byte: what was not predicted stays so, and differs from every true byte.
        given = np.full(truth.size, -1, np.int64)
        flat = one.reshape(-1)
        given[: len(flat)] = flat[: truth.size]
        right.append(given.reshape(truth.shape) == truth)
        changed.append(truth != before)
        more = max(len(flat) - truth.size, 0)
        surplus += more
        exact += bool(right[-1].all()) and not more
    hits, moves = np.concatenate(right), np.concatenate(changed)
    return Mos6502Report(
        programs=len(traces),
        state_bytes=hits.size + surplus,
        accuracy=float(hits.sum()) / (hits.size + surplus),
        changed_accuracy=float(hits[moves].mean()) if moves.any() else None,
        copy_baseline=float((~moves).mean()),
        exact_programs=exact / len(traces),
        by_column=dict(zip(COLUMNS, hits.mean(0).tolist(), strict=True)),
    )


def evaluate(model: BGPT, traces: Traces, *, batch_size: int = 64) -> dict[str, Mos6502Report]:
    """A model put to the test on programs: "teacher_forced", and "free_running" from memory and first state alone.

    Args:
        model: trained on traces with as much memory.
        traces: the truths, at least one.
        batch_size: programs under way at once.

    Raises:
        TypeError, ValueError: a wrong argument, or a trace that the context cannot hold.
    """
    forced = teacher_forced(model, traces, batch_size=batch_size)
    written = simulate(Generator(model, max_batch=batch_size), traces)
    given = traces.memory_size + STATE_SIZE
    free = [np.frombuffer(one.data, np.uint8)[given:] for one in written]
    return {"teacher_forced": score(forced, traces), "free_running": score(free, traces)}
