"""Accuracy of predicted traces: of all state bytes, of those that change, and of the trivial baseline.

A program is random and cannot be predicted, so memory and first state are never scored. Copying every register and
fetching correctly already scores 94.7 % with 10 registers, 90.8 % with 2 (programs of 1 to 15 instructions): hence the
separate scores of the changed bytes and of programs without an error.

Letters: n programs, N executed instructions per program, C = 6 + R bytes per state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bgpt_fast.tasks.cpu_states.formatting import predicted_bytes
from bgpt_fast.tasks.cpu_states.machine import OPERATIONS, STATE_HEADER
from bgpt_fast.tasks.cpu_states.trace import PredictedTrace, Trace, column_names

_VALUE_COLUMN = 1  # ACC; the registers begin at STATE_HEADER
ADDRESSING_MODES = ("ACC alone", "immediate", "1 register", "2 registers", "3 registers")
"""Instructions by operands: none (uses ACC only), an immediate number (LOADI), or a number of registers."""
OPERAND_SIZES = ("0…15", "16…255")
"""Arithmetic and logic of two values (ADD … XOR) by the larger of them."""
_SMALL = 16
_OPCODES = {operation.name: operation.opcode for operation in OPERATIONS}
_LOADI = _OPCODES["LOADI"]
_TWO_VALUES = [_OPCODES[name] for name in ("ADD", "SUB", "MUL", "DIV", "AND", "OR", "XOR")]


@dataclass(frozen=True)
class InstructionScore:
    """ACC and register bytes of the states that show one instruction's results.

    Args:
        count: number of such states.
        accuracy: share of their ACC and register bytes that are right.
        changed_accuracy: the same for bytes that the instruction changed; None if it changed none.
        states_right: share of the states whose ACC and registers are all right.
    """

    count: int
    accuracy: float
    changed_accuracy: float | None
    states_right: float


@dataclass(frozen=True)
class RegisterScore:
    """The bytes of ACC or of one register.

    Args:
        count: number of such bytes.
        accuracy: share of them that are right.
        changed: number of those that differ from the previous true state.
        changed_accuracy: share of the changed bytes that are right; None if there are none.
    """

    count: int
    accuracy: float
    changed: int
    changed_accuracy: float | None


@dataclass(frozen=True)
class CPUStateReport:
    """Scores of predicted traces; accuracies are shares of bytes, None if there are no such bytes.

    Args:
        programs: n.
        programs_right: programs whose every byte was predicted right, with none missing and no surplus.
        state_bytes: bytes scored: the true ones, and those predicted after the last true one, which are wrong.
        right_bytes: those that are right.
        missing_bytes: true bytes that were not predicted; wrong.
        surplus_bytes: predicted bytes after the last true one; wrong.
        accuracy: right_bytes / state_bytes.
        instruction_accuracy: accuracy of PC and IR.
        changed_accuracy: accuracy of ACC and register bytes that differ from the previous true state.
        copied_accuracy: accuracy of ACC and register bytes that do not.
        changed_bytes, copied_bytes: how many of each there are.
        copy_baseline: accuracy here if PC and IR are right and all else is copied from the previous true state.
        exact_programs: programs_right / programs.
        by_instruction: scores of the results of each instruction that ran, by mnemonic.
        by_addressing_mode: the same by the instructions' operands, see ADDRESSING_MODES.
        by_operand_size: the same of ADD … XOR by the larger of the two values, see OPERAND_SIZES.
        by_register: scores of ACC and each register, by name.
        by_column: accuracy of each byte of a state, by its name: PC, ACC, IR0 … IR3, A, B, …
        first_divergence: number of programs by the step of their first wrong byte; surplus bytes count as step N + 1.
        wrong: int64 [longest N, C], number of wrong bytes by step (from 1) and column, over all programs.
        states: int64 [longest N], number of true states at each step.
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
    by_addressing_mode: dict[str, InstructionScore]
    by_operand_size: dict[str, InstructionScore]
    by_register: dict[str, RegisterScore]
    by_column: dict[str, float]
    first_divergence: dict[int, int]
    wrong: NDArray[np.int64]
    states: NDArray[np.int64]

    def to_dict(self) -> dict[str, Any]:
        """The fields, JSON-ready."""
        fields = dict(vars(self))
        for group in ("by_instruction", "by_addressing_mode", "by_operand_size", "by_register"):
            fields[group] = {name: dict(vars(score)) for name, score in fields[group].items()}
        fields["first_divergence"] = {str(step): count for step, count in self.first_divergence.items()}
        return fields | {"wrong": self.wrong.tolist(), "states": self.states.tolist()}

    def summary(self) -> str:
        """The main scores, one per line."""
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


def operand_values(states: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The two values that each state's instruction computes with: ACC and A, or A and B (csrc/cpu_states/machine.h).

    Args:
        states: integers [n, C]; a register that the machine does not have counts as its last one.

    Returns:
        The left and the right value, [n] of the dtype of `states`; those of an instruction that has none mean nothing.
    """
    values = np.concatenate([states[:, _VALUE_COLUMN : _VALUE_COLUMN + 1], states[:, STATE_HEADER:]], 1)
    last = values.shape[1] - 1
    first = np.where(states[:, 2] == _LOADI, 0, np.minimum(states[:, 3], last))
    second = np.minimum(states[:, 4], last)
    rows = np.arange(len(states))
    return values[rows, np.where(second > 0, first, 0)], values[rows, np.where(second > 0, second, first)]


def evaluate(predicted: Sequence[Trace | PredictedTrace | bytes], truth: Sequence[Trace]) -> CPUStateReport:
    """Scores predicted traces, each a complete file: memory, first state, and the predicted bytes.

    Args:
        predicted: a `Traces`, or any sequence of traces, predictions of `simulate`, or bytes.
        truth: the machine's traces of the same programs, in the same order: a `Traces` or a sequence.

    Returns:
        The report.

    Raises:
        ValueError: different numbers of both, no traces, truths of different machines, or a prediction that does not
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
    """Scores predicted state bytes; used by `evaluate`, and for teacher-forced predictions.

    Args:
        predicted: n integer arrays [N, C] or flat: the bytes from step 1 on; anything outside 0…255, such as an
            `<eop>`, is a wrong byte. They may be shorter or longer than the truth.
        true_states: n arrays uint8 [N + 1, C]: the true states, from the first state on.

    Returns:
        The report.

    Raises:
        ValueError: different numbers of both, no traces, or states of different sizes.
    """
    _check_pairs("evaluate_bytes", len(predicted), len(true_states))
    counts = StateCounts(true_states[0].shape[1])
    counts.add(predicted, true_states)
    return counts.report()


class StateCounts:
    """Running counts from which a report is computed, in bounded memory for any number of programs.

    Args:
        state_bytes: C.
    """

    def __init__(self, state_bytes: int) -> None:
        C = self._C = state_bytes
        self._programs = self._missing = self._surplus = 0
        self._divergence: Counter[int] = Counter()
        # A row each: states, bytes right, bytes changed, of these right, states right (all of ACC and registers).
        self._by_opcode = np.zeros((len(OPERATIONS), 5), np.int64)
        self._by_mode = np.zeros((len(ADDRESSING_MODES), 5), np.int64)
        self._by_size = np.zeros((len(OPERAND_SIZES), 5), np.int64)
        # One row per column of the state: bytes right, bytes changed, of these right.
        self._columns = np.zeros((C, 3), np.int64)
        self._wrong = np.zeros((0, C), np.int64)
        self._states = np.zeros(0, np.int64)

    def add(self, predicted: Sequence[NDArray[Any]], true_states: Sequence[NDArray[np.uint8]]) -> None:
        """Counts more programs; arguments and errors are those of `evaluate_bytes`."""
        _check_pairs("evaluate_bytes", len(predicted), len(true_states))
        C = self._C
        if any(states.ndim != 2 or states.shape[1] != C or len(states) < 2 for states in true_states):
            raise ValueError(f"evaluate_bytes: true_states: expected arrays [N + 1, {C}], N ≥ 1, of one machine")
        lengths = np.array([len(states) - 1 for states in true_states])
        ends = np.cumsum(lengths)
        sizes = np.array([one.size for one in predicted])
        total = int(ends[-1])

        # −1 marks a missing byte: it differs from every true byte.
        values = np.full(total * C, -1, np.int64)
        for end, length, one in zip(ends.tolist(), lengths.tolist(), predicted, strict=True):
            flat = one.reshape(-1)[: length * C]
            values[(end - length) * C : (end - length) * C + len(flat)] = flat
        truth = np.concatenate([states[1:] for states in true_states])
        before = np.concatenate([states[:-1] for states in true_states])
        right = values.reshape(-1, C) == truth
        changed = truth != before
        steps = np.arange(total) - np.repeat(ends - lengths, lengths)
        surplus = np.maximum(sizes - lengths * C, 0)

        self._programs += len(lengths)
        self._missing += int(np.maximum(lengths * C - sizes, 0).sum())
        self._surplus += int(surplus.sum())
        self._divergence.update(_first_divergence(right.all(1), steps, ends, lengths, surplus))
        self._columns += np.stack([right.sum(0), changed.sum(0), (right & changed).sum(0)], 1)
        # The first state has no instruction before it.
        has_run = steps > 0
        self._add_instructions(before[has_run], right[has_run], changed[has_run])
        self._extend(int(lengths.max()))
        np.add.at(self._wrong, steps, ~right)
        self._states += np.bincount(steps, minlength=len(self._states))

    def merge(self, other: StateCounts) -> None:
        """Adds the counts of other programs; the report is then exactly that of all programs together.

        Raises:
            ValueError: the states are of another size.
        """
        if other._C != self._C:
            raise ValueError(f"StateCounts.merge: other: expected states of {self._C} bytes, got {other._C}")
        self._programs += other._programs
        self._missing += other._missing
        self._surplus += other._surplus
        self._divergence.update(other._divergence)
        self._by_opcode += other._by_opcode
        self._by_mode += other._by_mode
        self._by_size += other._by_size
        self._columns += other._columns
        longest = len(other._states)
        self._extend(longest)
        self._wrong[:longest] += other._wrong
        self._states[:longest] += other._states

    def _extend(self, steps: int) -> None:
        """Makes the counts by step at least `steps` long."""
        missing = max(0, steps - len(self._states))
        self._wrong = np.pad(self._wrong, ((0, missing), (0, 0)))
        self._states = np.pad(self._states, (0, missing))

    def _add_instructions(
        self, before: NDArray[np.uint8], right: NDArray[np.bool_], changed: NDArray[np.bool_]
    ) -> None:
        """Counts ACC and registers by the instruction of the previous state, `before`."""
        values = self._value_columns()
        right, changed = right[:, values], changed[:, values]
        rows = np.stack(
            [
                np.ones(len(right), np.int64),
                right.sum(1),
                changed.sum(1),
                (right & changed).sum(1),
                right.all(1).astype(np.int64),
            ],
            1,
        )
        operation = before[:, 2]
        np.add.at(self._by_opcode, operation, rows)
        named = (before[:, 3:STATE_HEADER] != 0).sum(1)
        np.add.at(self._by_mode, np.where(operation == _LOADI, 1, np.where(named == 0, 0, named + 1)), rows)
        has_two = np.isin(operation, _TWO_VALUES)
        left, right_value = operand_values(before[has_two])
        np.add.at(self._by_size, (np.maximum(left, right_value) >= _SMALL).astype(np.int64), rows[has_two])

    def _value_columns(self) -> list[int]:
        return [_VALUE_COLUMN, *range(STATE_HEADER, self._C)]

    def report(self) -> CPUStateReport:
        """The scores of all programs so far.

        Raises:
            ValueError: there are no programs.
        """
        if self._programs == 0:
            raise ValueError("StateCounts.report: expected at least one program, got none")
        C, values = self._C, self._value_columns()
        names = column_names(C - STATE_HEADER)
        total = int(self._states.sum())
        instruction = [column for column in range(C) if column not in values]
        right, changed, changed_right = self._columns[values].sum(0).tolist()
        copied = total * len(values) - changed
        state_bytes = total * C + self._surplus
        all_right = int(self._columns[:, 0].sum())
        programs_right = self._programs - sum(self._divergence.values())
        registers = {}
        for column in values:
            register_right, register_changed, register_changed_right = self._columns[column].tolist()
            registers[names[column]] = RegisterScore(
                total, register_right / total, register_changed, _ratio(register_changed_right, register_changed)
            )
        return CPUStateReport(
            programs=self._programs,
            programs_right=programs_right,
            state_bytes=state_bytes,
            right_bytes=all_right,
            missing_bytes=self._missing,
            surplus_bytes=self._surplus,
            accuracy=all_right / state_bytes,
            instruction_accuracy=int(self._columns[instruction, 0].sum()) / (total * len(instruction)),
            changed_accuracy=_ratio(changed_right, changed),
            copied_accuracy=_ratio(right - changed_right, copied),
            changed_bytes=changed,
            copied_bytes=copied,
            copy_baseline=1 - changed / (total * C),
            exact_programs=programs_right / self._programs,
            by_instruction=_scores([operation.name for operation in OPERATIONS], self._by_opcode, len(values)),
            by_addressing_mode=_scores(ADDRESSING_MODES, self._by_mode, len(values)),
            by_operand_size=_scores(OPERAND_SIZES, self._by_size, len(values)),
            by_register=registers,
            by_column=dict(zip(names, (self._columns[:, 0] / total).tolist(), strict=True)),
            first_divergence=dict(sorted(self._divergence.items())),
            wrong=self._wrong.copy(),
            states=self._states.copy(),
        )


def _scores(names: Sequence[str], rows: NDArray[np.int64], values: int) -> dict[str, InstructionScore]:
    return {
        name: InstructionScore(
            count=count,
            accuracy=right / (count * values),
            changed_accuracy=_ratio(changed_right, changed),
            states_right=states_right / count,
        )
        for name, (count, right, changed, changed_right, states_right) in zip(names, rows.tolist(), strict=True)
        if count
    }


def _first_divergence(
    rows_right: NDArray[np.bool_],
    steps: NDArray[np.int64],
    ends: NDArray[np.int64],
    lengths: NDArray[np.int64],
    surplus: NDArray[np.int64],
) -> dict[int, int]:
    """Number of programs by the step (from 1) of their first wrong byte, in ascending order."""
    never = int(lengths.max()) + 1
    # Surplus bytes count as the step after the last true one.
    behind = np.where(surplus > 0, lengths, never)
    first = np.minimum.reduceat(np.where(rows_right, never, steps), ends - lengths)
    divergences, counts = np.unique(np.minimum(first, behind), return_counts=True)
    return {step + 1: count for step, count in zip(divergences.tolist(), counts.tolist(), strict=True) if step != never}


def _ratio(right: int, count: int) -> float | None:
    return right / count if count else None


def _check_pairs(function: str, predicted: int, truth: int) -> None:
    if predicted != truth or truth == 0:
        raise ValueError(f"{function}: expected as many predictions as truths, at least 1, got {predicted} and {truth}")
