"""The toy machine's assembly language, and its checks (arXiv 2402.19155; semantics of the released cpu-simulation.py).

Letters: M bytes of memory, R registers, N executed instructions, C = 6 + R bytes per state.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from bgpt_fast import _C
from bgpt_fast.checks import check_int

INSTRUCTION_SIZE = 4
"""Bytes of an instruction: an opcode and three operands."""
STATE_HEADER = 6
"""Bytes of a state before its registers: PC, ACC, IR0 … IR3."""
MAX_REGISTERS = 255
MAX_MEMORY = 2**30
MAX_PC = 255

_FAULTS = _C.cpu_states_faults()


class Operation(NamedTuple):
    """An opcode and the numbers of operands that it accepts."""

    opcode: int
    name: str
    min_operands: int
    max_operands: int


OPERATIONS = tuple(Operation(opcode, *rest) for opcode, rest in enumerate(_C.cpu_states_instructions()))
"""The 21 operations by opcode."""
_BY_NAME = {operation.name: operation for operation in OPERATIONS}


class ProgramError(ValueError):
    """A program that the machine cannot run.

    Args:
        message: what was expected, what came and what to do.
        line: the line of the assembly, or the instruction of the machine code, counted from 1; None if the error has
            no line (no HLT).
    """

    def __init__(self, message: str, line: int | None = None) -> None:
        self.line = line
        super().__init__(message if line is None else f"line {line}: {message}")


def register_name(index: int) -> str:
    """The name of register `index`, counted from 1: A … Z, then on in Unicode, as in the released code."""
    return chr(ord("A") + index - 1)


def state_size(num_registers: int) -> int:
    """C, the number of bytes per state."""
    return STATE_HEADER + num_registers


def check_machine(num_registers: int, memory_size: int) -> None:
    """Raises TypeError or ValueError unless these sizes are valid."""
    check_int("num_registers", num_registers, 1, MAX_REGISTERS)
    check_int("memory_size", memory_size, INSTRUCTION_SIZE, MAX_MEMORY)


def assemble(lines: Iterable[str], *, num_registers: int = 10, memory_size: int = 1024) -> bytes:
    """Translates assembly to machine code.

    Args:
        lines: one instruction each, such as "LOADI 7", "ADD A", "SUB A B C", "HLT"; words separated by spaces or tabs.
            Lines after the first HLT are assembled too, though nothing can reach them.
        num_registers: R, the machine's registers A, B, …
        memory_size: M, bytes of the machine's memory.

    Returns:
        4 bytes per line.

    Raises:
        ProgramError: an unknown mnemonic, a wrong number of operands, an unknown register, an immediate outside 0…255,
            an empty line, more instructions than fit, or no HLT; it names the line.
        TypeError, ValueError: a wrong argument.

    Source: cpu-simulation.py of github.com/sanderwood/bgpt, `translate`.
    """
    check_machine(num_registers, memory_size)
    if isinstance(lines, str | bytes | bytearray):
        raise TypeError(f"assemble: lines: expected a sequence of lines, got {type(lines).__name__}; use .splitlines()")
    code = bytearray()
    for number, line in enumerate(lines, 1):
        if not isinstance(line, str):
            raise TypeError(f"assemble: lines[{number - 1}]: expected a str, got {type(line).__name__}")
        instruction = _assemble_line(line, number, num_registers)
        if len(code) + INSTRUCTION_SIZE > memory_size:
            raise ProgramError(
                f"a memory of {memory_size} bytes holds {memory_size // INSTRUCTION_SIZE} instructions of 4 bytes; "
                "shorten the program or enlarge the memory",
                number,
            )
        code += instruction
    check_program(bytes(code), num_registers, memory_size)
    return bytes(code)


def disassemble(program: bytes | bytearray | memoryview, *, num_registers: int = 10) -> list[str]:
    """Translates machine code to assembly, up to and including the first HLT, as the released code does.

    Args:
        program: instructions of 4 bytes, such as a complete memory.
        num_registers: R.

    Returns:
        A line for each instruction; `assemble` returns the same bytes.

    Raises:
        ProgramError: an opcode over 20, a missing, surplus or unknown register, or no HLT; it names the instruction.
        TypeError, ValueError: a wrong argument.
    """
    check_int("num_registers", num_registers, 1, MAX_REGISTERS)
    code = as_bytes("disassemble: program", program)
    check_program(code, num_registers, len(code))
    return _C.cpu_states_disassemble(code, num_registers, "\n").split("\n")


def check_program(code: bytes, num_registers: int, memory_size: int) -> int:
    """Returns the number of instructions up to and including HLT of a program in a memory of `memory_size` bytes.

    Raises:
        ProgramError: the machine cannot run it.
    """
    if len(code) > memory_size:
        raise ProgramError(
            f"a memory of {memory_size} bytes holds {memory_size // INSTRUCTION_SIZE} instructions, got {len(code)} "
            "bytes of program; shorten it or enlarge the memory",
            memory_size // INSTRUCTION_SIZE + 1,
        )
    instructions, fault = _C.cpu_states_check_program(code, num_registers, memory_size)
    if _FAULTS[fault] == "none":
        return instructions
    if _FAULTS[fault] == "no_halt":
        raise ProgramError(f"no HLT among {instructions} instructions; end the program with HLT")
    at = code[instructions * INSTRUCTION_SIZE :][:INSTRUCTION_SIZE]
    raise ProgramError(_describe(_FAULTS[fault], at, num_registers), instructions + 1)


def describe_instruction(code: bytes, num_registers: int) -> str:
    """One instruction as assembly, or its four numbers in brackets if it is invalid."""
    padded = code + bytes(INSTRUCTION_SIZE)  # followed by HLT, it is a program
    if _C.cpu_states_check_program(padded, num_registers, len(padded))[1] != 0:
        return "<" + " ".join(str(byte) for byte in code) + ">"
    return _C.cpu_states_disassemble(padded, num_registers, "\n").split("\n")[0]


def as_bytes(name: str, value: object) -> bytes:
    """`value` as bytes; raises TypeError for anything but a bytes-like object."""
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"{name}: expected bytes, got {type(value).__name__}")
    return bytes(value)


def _assemble_line(line: str, number: int, num_registers: int) -> bytes:
    # Not str.split(): some register names after Z are Unicode white space.
    name, *operands = re.split(r"[ \t]+", line.strip(" \t\r\n"))
    if not name:
        raise ProgramError("expected an instruction, got an empty line", number)
    operation = _BY_NAME.get(name)
    if operation is None:
        raise ProgramError(f"unknown mnemonic {name!r}; known are {', '.join(_BY_NAME)}", number)
    if not operation.min_operands <= len(operands) <= operation.max_operands:
        raise ProgramError(f"{name} takes {_operand_counts(operation)}, got {len(operands)}: {line.strip()!r}", number)
    if name == "LOADI":
        if re.fullmatch(r"[0-9]{1,3}", operands[0]) is None or int(operands[0]) > 255:
            raise ProgramError(f"LOADI takes an immediate in 0…255, got {operands[0]!r}", number)
        return bytes([operation.opcode, int(operands[0]), 0, 0])
    code = [operation.opcode]
    for operand in operands:
        index = ord(operand) - ord("A") + 1 if len(operand) == 1 else 0
        if not 1 <= index <= num_registers:
            raise ProgramError(f"{name}: expected a register {_registers(num_registers)}, got {operand!r}", number)
        code.append(index)
    return bytes(code).ljust(INSTRUCTION_SIZE, b"\0")


def _operand_counts(operation: Operation) -> str:
    counts = range(operation.min_operands, operation.max_operands + 1)
    if counts == range(1):
        return "no operand"
    return " or ".join(str(count) for count in counts) + (" operand" if counts[-1] == 1 else " operands")


def _registers(num_registers: int) -> str:
    return "A" if num_registers == 1 else f"A…{register_name(num_registers)} of this machine's {num_registers}"


def _describe(fault: str, code: bytes, num_registers: int) -> str:
    """Describes what is wrong with an instruction's four bytes."""
    got = f"got {' '.join(str(byte) for byte in code)}"
    if fault == "opcode":
        return f"expected an opcode in 0…{len(OPERATIONS) - 1}, {got}"
    if fault == "pc_range":
        return f"PC is one byte of a state and cannot pass {MAX_PC}; shorten the program, or use 1024 bytes of memory"
    operation = OPERATIONS[code[0]]
    if fault == "register_range":
        return f"{operation.name}: register out of range, expected 1…{num_registers}, {got}"
    if fault == "operand_missing":
        return f"{operation.name}: register 0 where one is needed, expected 1…{num_registers}, {got}"
    return f"{operation.name} takes {_operand_counts(operation)}, {got}"
