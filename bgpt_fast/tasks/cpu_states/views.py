"""Converts programs and a model's predictions for the HTML page that shows them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bgpt_fast.report.simulation_page import ProgramView, Row
from bgpt_fast.tasks.cpu_states.formatting import predicted_bytes
from bgpt_fast.tasks.cpu_states.machine import describe_instruction, state_size
from bgpt_fast.tasks.cpu_states.trace import PredictedTrace, Trace


def program_view(name: str, truth: Trace, predicted: PredictedTrace, forced: NDArray[Any]) -> ProgramView:
    """One program for `write_simulation_page`.

    Args:
        name: name of the predicted file.
        truth: the machine's trace.
        predicted: the free-running prediction.
        forced: int16 [N, C], the teacher-forced prediction.
    """
    R = truth.num_registers
    true_rows: list[Row] = truth.states.tolist()
    free_rows = _rows(np.frombuffer(predicted_bytes(predicted, truth), np.uint8), state_size(R))
    forced_rows = _rows(forced.reshape(-1), state_size(R))
    return ProgramView(
        name,
        truth=true_rows,
        free=free_rows,
        forced=forced_rows,
        truth_text=["(start)", *(_text(row, R) for row in true_rows[1:])],
        free_text=[_text(row, R) for row in free_rows],
        forced_text=[_text(row, R) for row in forced_rows],
    )


def _rows(values: NDArray[Any], C: int) -> list[Row]:
    """Splits values into rows of C; None replaces `<eop>`, and pads the last row."""
    flat: Row = [value if 0 <= value < 256 else None for value in values.tolist()]
    flat += [None] * (-len(flat) % C)
    return [flat[start : start + C] for start in range(0, len(flat), C)]


def _text(row: Row, R: int) -> str:
    code = [value for value in row[2:6] if value is not None]
    return describe_instruction(bytes(code), R) if len(code) == 4 else "–"
