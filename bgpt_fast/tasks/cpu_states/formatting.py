"""Traces as text tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bgpt_fast.tasks.cpu_states.machine import describe_instruction, register_name, state_size
from bgpt_fast.tasks.cpu_states.trace import PredictedTrace, Trace

_CHANGED = "*"
_DIFFERENT = "!"
_ABSENT = "—"


def format_trace(trace: Trace | PredictedTrace) -> str:
    """Formats a trace as a table, one line per state: PC, ACC, the instruction fetched, the registers.

    `*` marks an ACC or register that differs from the state before. A state shows the results of the instruction on the
    line above, since it is recorded between fetch and execution.
    """
    rows = []
    before: NDArray[np.uint8] | None = None
    for step, state in enumerate(trace.states):
        changed = np.zeros(len(state), bool) if before is None else state != before
        rows.append([str(step), *_cells(state, trace.num_registers, changed, step == 0)])
        before = state
    return _table([["step", *_headings(trace.num_registers)]], rows)


def format_difference(predicted: PredictedTrace | Trace | bytes, truth: Trace) -> str:
    """Formats prediction and truth side by side, one line per state: `!` marks different values, `≠` different lines.

    Args:
        predicted: a model's prediction, with the memory and first state of the truth.
        truth: the machine's trace.

    Returns:
        The table, followed by a line with the number of wrong bytes and the step of the first.

    Raises:
        ValueError: `predicted` does not begin with the truth's memory and first state.
    """
    R, C = truth.num_registers, state_size(truth.num_registers)
    tail = np.frombuffer(predicted_bytes(predicted, truth), np.uint8)
    true_states = truth.states
    states = np.concatenate([true_states[:1], tail[: len(tail) // C * C].reshape(-1, C)])
    headings = _headings(R)
    absent = [_ABSENT] * len(headings)
    rows = []
    for step in range(max(len(states), len(true_states))):
        expected = true_states[step] if step < len(true_states) else None
        actual = states[step] if step < len(states) else None
        differs = np.ones(C, bool) if expected is None or actual is None else expected != actual
        rows.append(
            [
                str(step),
                *(absent if expected is None else _cells(expected, R, np.zeros(C, bool), step == 0)),
                "≠" if differs.any() else "│",
                *(absent if actual is None else _cells(actual, R, differs, step == 0, _DIFFERENT)),
            ]
        )
    table = _table(
        [["", "truth", *[""] * (len(headings) - 1), "", "predicted"], ["step", *headings, "│", *headings]], rows
    )
    count, first_step = first_wrong_step(predicted, truth)
    total = max(len(tail), true_states[1:].size)
    where = "every state is right" if first_step is None else f"the first difference is at step {first_step}"
    rest = f"; {len(tail) % C} bytes at the end are no full state" if len(tail) % C else ""
    return f"{table}\n{count} of {total} predicted bytes are wrong: {where}{rest}"


def first_wrong_step(predicted: PredictedTrace | Trace | bytes, truth: Trace) -> tuple[int, int | None]:
    """The number of wrong bytes (with missing and surplus ones), and the step of the first; None if there are none."""
    tail = np.frombuffer(predicted_bytes(predicted, truth), np.uint8)
    true = truth.states[1:].reshape(-1)
    both = min(len(tail), len(true))
    surplus = max(len(tail), len(true)) - both
    wrong = np.flatnonzero(np.append(tail[:both] != true[:both], np.ones(surplus, bool)))
    return len(wrong), int(wrong[0]) // state_size(truth.num_registers) + 1 if len(wrong) else None


def predicted_bytes(predicted: PredictedTrace | Trace | bytes, truth: Trace) -> bytes:
    """Returns the bytes of a prediction after the memory and the first state.

    Raises:
        TypeError: `predicted` is neither bytes nor a trace.
        ValueError: it does not begin with the truth's memory and first state.
    """
    if isinstance(predicted, Trace | PredictedTrace):
        content = predicted.to_bytes()
    elif isinstance(predicted, bytes | bytearray | memoryview):
        content = bytes(predicted)
    else:
        raise TypeError(f"predicted: expected a Trace, a PredictedTrace or bytes, got {type(predicted).__name__}")
    prompt = truth.to_bytes()[: truth.memory_size + state_size(truth.num_registers)]
    if not content.startswith(prompt):
        raise ValueError(
            f"predicted: expected the truth's memory and first state, {len(prompt)} bytes, then the predicted ones, "
            f"got {len(content)} bytes that begin otherwise; compare each prediction with its own truth"
        )
    return content[len(prompt) :]


def _headings(num_registers: int) -> list[str]:
    return ["PC", "ACC", "IR", *(register_name(i) for i in range(1, num_registers + 1))]


def _cells(
    state: NDArray[np.uint8], num_registers: int, marked: NDArray[np.bool_], is_start: bool, mark: str = _CHANGED
) -> list[str]:
    """PC, ACC, IR as assembly, registers; marked values are followed by `mark` (PC and IR only in predictions)."""
    strict = mark == _DIFFERENT
    code = state[2:6].tobytes()
    text = "(start)" if is_start and not any(code) else describe_instruction(code, num_registers)
    cells = [
        str(state[0]) + (mark if strict and marked[0] else " "),
        str(state[1]) + (mark if marked[1] else " "),
        text + (mark if strict and marked[2:6].any() else " "),
    ]
    return cells + [f"{value}{mark if flag else ' '}" for value, flag in zip(state[6:], marked[6:], strict=True)]


def _table(headings: Sequence[Sequence[str]], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as the last heading line and the rows; instructions left-aligned, numbers right-aligned."""
    last = headings[-1]
    padded = [[cell + " " if cell not in ("step", "│") else cell for cell in last], *rows]
    widths = [max(len(row[column]) for row in padded) for column in range(len(last))]
    is_text = [cell == "IR" for cell in last]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if text else cell.rjust(width)
            for cell, width, text in zip(row, widths, is_text, strict=True)
        ]
        return " ".join(cells).rstrip()

    above = []
    for heading in headings[:-1]:
        starts = [sum(widths[:column]) + column for column in range(len(widths))]
        text = ""
        for column, cell in enumerate(heading):
            if cell:
                text = text.ljust(starts[column]) + cell
        above.append(text)
    return "\n".join([*above, *(line(row) for row in padded)])
