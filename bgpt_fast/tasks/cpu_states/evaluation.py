"""How right predicted traces are: state bytes only, the changed ones apart, beside the trivial baseline.

A program is random and cannot be predicted, so memory and first state are given and never scored. Copying every
register and fetching right already scores 94.7 % with 10 registers, 90.8 % with 2 (programs of 1 to 15 instructions):
hence the changed bytes and the whole programs beside the total.

Letters: n programs, N executed instructions of one, C = 6 + R bytes a state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bgpt_fast.tasks.cpu_states.formatting import predicted_bytes
from bgpt_fast.tasks.cpu_states.machine import OPERATIONS, STATE_HEADER
from bgpt_fast.tasks.cpu_states.trace import PredictedTrace, Trace, column_names

_VALUE_COLUMN = 1  # ACC; the registers begin at STATE_HEADER


@dataclass(frozen=True)
class InstructionScore:
    """ACC and register bytes of the states that show one instruction's results.

    Args:
        count: such states.
        accuracy: share of their ACC and register bytes that are right.
        changed_accuracy: the same of those that the instruction changed; None where it changed none.
        states_right: share of the states whose ACC and registers are all right.
    """

    count: int
    accuracy: float
    changed_accuracy: float | None
    states_right: float


@dataclass(frozen=True)
class CPUStateReport:
    """Scores of predicted traces; shares are of bytes in 0…1, None where there was no such byte.

    Args:
        programs: n.
        programs_right: programs whose every predicted byte is right, with none missing and none too many.
        state_bytes: bytes scored: the true ones, and those predicted behind the last true one, which are wrong.
        right_bytes: those that are right.
        missing_bytes: true bytes that were not predicted; wrong.
        surplus_bytes: predicted bytes behind the last true one; wrong.
        accuracy: right_bytes / state_bytes.
        instruction_accuracy: of PC and IR.
        changed_accuracy: of ACC and registers that differ from the true state before.
        copied_accuracy: of ACC and registers that do not.
        changed_bytes, copied_bytes: how many of each there are.
        copy_baseline: accuracy, on these traces, of PC and IR right and all else copied from the true state before.
        exact_programs: programs_right / programs.
        by_instruction: scores of the results of each instruction, by mnemonic; those that never ran are left out.
        by_column: accuracy of each byte of a state, by its name: PC, ACC, IR0 … IR3, A, B, …
        first_divergence: number of programs by the step of their first wrong byte; a surplus counts for step N + 1.
        wrong: int64 [longest N, C], wrong bytes by step (1 first) and column, over all programs.
        states: int64 [longest N], the true states at each step.
    """

    programs: int
    programs_right: int
    state_bytes: int
    right_bytes: int
    missing_bytes: int
    surplus_bytes: int
    accuracy: float
    instruction_accuracy: float
    changed_accuracy: float | None
    copied_accuracy: float | None
    changed_bytes: int
    copied_bytes: int
    copy_baseline: float
    exact_programs: float
    by_instruction: dict[str, InstructionScore]
    by_column: dict[str, float]
    first_divergence: dict[int, int]
    wrong: NDArray[np.int64]
    states: NDArray[np.int64]

    def to_dict(self) -> dict[str, Any]:
        """The fields, JSON-ready."""
        fields = dict(vars(self))
        fields["by_instruction"] = {name: dict(vars(score)) for name, score in self.by_instruction.items()}
        fields["first_divergence"] = {str(step): count for step, count in self.first_divergence.items()}
        return fields | {"wrong": self.wrong.tolist(), "states": self.states.tolist()}

    def summary(self) -> str:
        """The scores that matter, a line each."""
        lines = [
            ("state bytes right", self.accuracy, f"{self.right_bytes} of {self.state_bytes}"),
            ("… by copying alone", self.copy_baseline, "PC and IR right, ACC and registers as they were"),
            ("PC and IR", self.instruction_accuracy, ""),
            ("changed ACC and registers", self.changed_accuracy, f"{self.changed_bytes} bytes"),
            ("copied ACC and registers", self.copied_accuracy, f"{self.copied_bytes} bytes"),
            ("programs right to the last byte", self.exact_programs, f"{self.programs_right} of {self.programs}"),
        ]
        return "\n".join(
            f"{name:<32} {'–' if share is None else f'{share:.4%}':>9}  {note}".rstrip() for name, share, note in lines
        )


def evaluate(predicted: Sequence[Trace | PredictedTrace | bytes], truth: Sequence[Trace]) -> CPUStateReport:
    """Scores predicted traces, each a whole file: memory, first state, and the predicted bytes.

    Args:
        predicted: a `Traces`, or any sequence of traces, predictions of `simulate`, or bytes.
        truth: the machine's traces of the same programs, in the same order: a `Traces` or a sequence.

    Returns:
        The report.

    Raises:
        ValueError: different numbers of both, none at all, truths of different machines, or a prediction that does not
            begin with its truth's memory and first state.
        TypeError: a prediction that is neither bytes nor a trace.
    """
    _check_pairs("evaluate", len(predicted), len(truth))
    tails = []
    for index, (one, trace) in enumerate(zip(predicted, truth, strict=True)):
        try:
            tails.append(np.frombuffer(predicted_bytes(one, trace), np.uint8))
        except (TypeError, ValueError) as error:
            error.add_note(f"predicted[{index}]")
            raise
    return evaluate_bytes(tails, [trace.states for trace in truth])


def evaluate_bytes(predicted: Sequence[NDArray[Any]], true_states: Sequence[NDArray[np.uint8]]) -> CPUStateReport:
    """Scores predicted state bytes; the core of `evaluate`, and for teacher-forced predictions.

    Args:
        predicted: n integer arrays [N, C] or flat: the bytes from step 1 on; anything outside 0…255, such as an
            `<eop>`, is a wrong byte. They may be shorter or longer than the truth.
        true_states: n arrays uint8 [N + 1, C]: the true states, the given one first.

    Returns:
        The report.

    Raises:
        ValueError: different numbers of both, none at all, or states of different sizes.
    """
    _check_pairs("evaluate_bytes", len(predicted), len(true_states))
    C = true_states[0].shape[1]
    if any(states.ndim != 2 or states.shape[1] != C or len(states) < 2 for states in true_states):
        raise ValueError(f"evaluate_bytes: true_states: expected arrays [N + 1, {C}], N ≥ 1, of one machine")
    lengths = np.array([len(states) - 1 for states in true_states])
    ends = np.cumsum(lengths)
    sizes = np.array([one.size for one in predicted])
    total = int(ends[-1])

    # −1 is no byte: what was not predicted stays so, and differs from every true byte.
    given = np.full(total * C, -1, np.int64)
    for end, length, one in zip(ends.tolist(), lengths.tolist(), predicted, strict=True):
        flat = one.reshape(-1)[: length * C]
        given[(end - length) * C : (end - length) * C + len(flat)] = flat
    truth = np.concatenate([states[1:] for states in true_states])
    before = np.concatenate([states[:-1] for states in true_states])
    right = given.reshape(-1, C) == truth
    steps = np.arange(total) - np.repeat(ends - lengths, lengths)

    values = [_VALUE_COLUMN, *range(STATE_HEADER, C)]
    instruction = [column for column in range(C) if column not in values]
    changed = (truth != before)[:, values]
    value_right = right[:, values]
    surplus = np.maximum(sizes - lengths * C, 0)
    missing = np.maximum(lengths * C - sizes, 0)
    state_bytes = total * C + int(surplus.sum())
    divergence = _first_divergence(right.all(1), steps, ends, lengths, surplus)
    wrong = np.zeros((int(lengths.max()), C), np.int64)
    np.add.at(wrong, steps, ~right)
    programs_right = len(lengths) - sum(divergence.values())
    return CPUStateReport(
        programs=len(lengths),
        programs_right=programs_right,
        state_bytes=state_bytes,
        right_bytes=int(right.sum()),
        missing_bytes=int(missing.sum()),
        surplus_bytes=int(surplus.sum()),
        accuracy=int(right.sum()) / state_bytes,
        instruction_accuracy=float(right[:, instruction].mean()),
        changed_accuracy=_share(value_right[changed]),
        copied_accuracy=_share(value_right[~changed]),
        changed_bytes=int(changed.sum()),
        copied_bytes=int((~changed).sum()),
        copy_baseline=1 - int(changed.sum()) / (total * C),
        exact_programs=programs_right / len(lengths),
        by_instruction=_by_instruction(before[:, 2], steps > 0, value_right, changed),
        by_column=dict(zip(column_names(C - STATE_HEADER), right.mean(0).tolist(), strict=True)),
        first_divergence=divergence,
        wrong=wrong,
        states=np.bincount(steps),
    )


def _by_instruction(
    opcodes: NDArray[np.uint8], has_run: NDArray[np.bool_], right: NDArray[np.bool_], changed: NDArray[np.bool_]
) -> dict[str, InstructionScore]:
    """Scores of ACC and registers by the opcode of the state before; the first state fetches and shows no result."""
    scores = {}
    for operation in OPERATIONS:
        rows = (opcodes == operation.opcode) & has_run
        if rows.any():
            scores[operation.name] = InstructionScore(
                count=int(rows.sum()),
                accuracy=float(right[rows].mean()),
                changed_accuracy=_share(right[rows][changed[rows]]),
                states_right=float(right[rows].all(1).mean()),
            )
    return scores


def _first_divergence(
    rows_right: NDArray[np.bool_],
    steps: NDArray[np.int64],
    ends: NDArray[np.int64],
    lengths: NDArray[np.int64],
    surplus: NDArray[np.int64],
) -> dict[int, int]:
    """Programs by the step (1 first) of their first wrong byte, rising; programs without one are in none."""
    never = int(lengths.max()) + 1
    # Surplus bytes come a step behind the last true one.
    behind = np.where(surplus > 0, lengths, never)
    first = np.minimum.reduceat(np.where(rows_right, never, steps), ends - lengths)
    found, counts = np.unique(np.minimum(first, behind), return_counts=True)
    return {step + 1: count for step, count in zip(found.tolist(), counts.tolist(), strict=True) if step != never}


def _share(right: NDArray[np.bool_]) -> float | None:
    return float(right.mean()) if right.size else None


def _check_pairs(function: str, predicted: int, truth: int) -> None:
    if predicted != truth or truth == 0:
        raise ValueError(f"{function}: expected as many predictions as truths, at least 1, got {predicted} and {truth}")
