"""A trace: a program's memory, its start state, and the state after each fetch.

Letters: M bytes of memory, R registers, N executed instructions, C = 6 + R bytes per state.
A trace is M + (N + 1)·C bytes.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bgpt_fast import _C
from bgpt_fast.checks import check_int
from bgpt_fast.tasks.cpu_states.machine import (
    INSTRUCTION_SIZE,
    as_bytes,
    assemble,
    check_machine,
    check_program,
    register_name,
    state_size,
)


class TraceError(ValueError):
    """Bytes that are not a trace of this machine."""


class Trace:
    """One run of the machine; created by `run`, `Trace.from_bytes` or `generate`.

    Attributes:
        num_registers: R.
        memory_size: M.
    """

    __slots__ = ("_data", "memory_size", "num_registers")

    def __init__(self, data: NDArray[np.uint8], num_registers: int, memory_size: int) -> None:
        """`data`: uint8 [M + (N + 1)·C], not checked, unlike in `from_bytes`."""
        self._data = data
        self.num_registers = num_registers
        self.memory_size = memory_size

    @classmethod
    def from_bytes(
        cls, data: bytes | bytearray | memoryview, num_registers: int = 10, memory_size: int = 1024
    ) -> Trace:
        """A trace from the content of a file as the released code writes it, checked against the machine.

        Raises:
            ProgramError: the memory holds no program that the machine can run.
            TraceError: the size is wrong, or a state differs from the machine's; the message names the step.
            TypeError, ValueError: a wrong argument.
        """
        check_machine(num_registers, memory_size)
        content = as_bytes("Trace.from_bytes: data", data)
        C = state_size(num_registers)
        if len(content) < memory_size + 2 * C:
            raise TraceError(
                f"expected at least {memory_size + 2 * C} bytes, {memory_size} of memory and two states of {C}, got "
                f"{len(content)}; check num_registers and memory_size"
            )
        memory = content[:memory_size]
        first_state = content[memory_size : memory_size + C]
        N = check_program(memory, num_registers, memory_size)
        expected = memory_size + (N + 1) * C
        if len(content) != expected:
            raise TraceError(f"expected {expected} bytes for a program of {N} instructions, got {len(content)}")
        if first_state[0] or any(first_state[2:6]):
            raise TraceError(
                f"expected a start state with PC 0 and IR 0 0 0 0, got {' '.join(map(str, first_state[:6]))}"
            )
        trace = cls(np.frombuffer(content, np.uint8), num_registers, memory_size)
        truth = _C.cpu_states_run(memory, first_state[1:2] + first_state[6:])
        if truth != content[memory_size:]:
            true_states = np.frombuffer(truth, np.uint8).reshape(-1, C)
            step, column = np.argwhere(trace.states != true_states)[0].tolist()
            raise TraceError(
                f"step {step}: expected {column_names(num_registers)[column]} {true_states[step, column]}, got "
                f"{trace.states[step, column]}; this machine did not write these states"
            )
        return trace

    @property
    def memory(self) -> bytes:
        """The M bytes of memory: the program and zeros."""
        return self._data[: self.memory_size].tobytes()

    @property
    def states(self) -> NDArray[np.uint8]:
        """uint8 [N + 1, C], read-only: row 0 is the start state, row k has instruction k and the results of k − 1."""
        return self._data[self.memory_size :].reshape(-1, state_size(self.num_registers))

    @property
    def program(self) -> list[str]:
        """The assembly lines up to and including HLT."""
        return self._text("\n").split("\n")

    @property
    def program_bytes(self) -> bytes:
        """The machine code up to and including HLT."""
        return self.memory[: (len(self.states) - 1) * INSTRUCTION_SIZE]

    @property
    def name(self) -> str:
        """The released file's name: the MD5 of the concatenated assembly lines, and ".bin"."""
        return hashlib.md5(self._text("").encode(), usedforsecurity=False).hexdigest() + ".bin"

    def to_bytes(self) -> bytes:
        """The released file's content."""
        return self._data.tobytes()

    def _text(self, separator: str) -> str:
        return _C.cpu_states_disassemble(self.memory, self.num_registers, separator)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Trace):
            return NotImplemented
        return (self.num_registers, self.memory_size) == (other.num_registers, other.memory_size) and np.array_equal(
            self._data, other._data
        )

    def __hash__(self) -> int:
        return hash((self.num_registers, self.memory_size, self.to_bytes()))

    def __repr__(self) -> str:
        return (
            f"Trace({self.name}, {len(self.states) - 1} instructions, {self.num_registers} registers, "
            f"{self.memory_size} bytes of memory)"
        )


@dataclass(frozen=True)
class PredictedTrace:
    """A model's prediction of a trace: any bytes after the prompt, which is the memory and the first state.

    Args:
        data: the complete file: memory, first state, predicted bytes.
        finished: whether the model ended the file.
        num_registers: R.
        memory_size: M.
    """

    data: bytes
    finished: bool
    num_registers: int
    memory_size: int

    @property
    def memory(self) -> bytes:
        """The M bytes of memory."""
        return self.data[: self.memory_size]

    @property
    def states(self) -> NDArray[np.uint8]:
        """uint8 [n, C]: the first state and the complete states among the predicted bytes."""
        C = state_size(self.num_registers)
        count = (len(self.data) - self.memory_size) // C
        return np.frombuffer(self.data, np.uint8, count * C, self.memory_size).reshape(count, C)

    def to_bytes(self) -> bytes:
        """The complete file."""
        return self.data


def run(
    program: Sequence[str] | bytes | bytearray | memoryview,
    acc: int = 0,
    registers: Sequence[int] = (),
    num_registers: int = 10,
    memory_size: int = 1024,
) -> Trace:
    """Runs a program to its HLT.

    Args:
        program: assembly lines, or machine code; the memory includes what follows the first HLT, but it never runs.
        acc: ACC at the start, 0…255.
        registers: the R registers at the start, 0…255 each; empty means all 0.
        num_registers: R, 1…255.
        memory_size: M in bytes.

    Returns:
        The trace.

    Raises:
        ProgramError: the machine cannot run the program; it names the line.
        TypeError, ValueError: a wrong argument.

    Source: arXiv 2402.19155; cpu-simulation.py of github.com/sanderwood/bgpt.
    """
    check_machine(num_registers, memory_size)
    values = [operator.index(acc), *(operator.index(value) for value in registers)]
    if len(values) == 1:
        values += [0] * num_registers
    if len(values) != num_registers + 1:
        raise ValueError(f"run: registers: expected {num_registers} values, one a register, got {len(values) - 1}")
    for index, value in enumerate(values):
        check_int("run: acc" if index == 0 else f"run: register {register_name(index)}", value, 0, 255)
    if isinstance(program, bytes | bytearray | memoryview):
        code = bytes(program)
        check_program(code, num_registers, memory_size)
    else:
        code = assemble(program, num_registers=num_registers, memory_size=memory_size)
    memory = code.ljust(memory_size, b"\0")
    content = memory + _C.cpu_states_run(memory, bytes(values))
    return Trace(np.frombuffer(content, np.uint8), num_registers, memory_size)


def column_names(num_registers: int) -> list[str]:
    """The names of a state's C bytes: PC, ACC, IR0 … IR3, A, B, …"""
    return ["PC", "ACC", "IR0", "IR1", "IR2", "IR3"] + [register_name(i) for i in range(1, num_registers + 1)]
