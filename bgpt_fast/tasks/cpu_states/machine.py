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
# None of ";", "#", "/" and "," is in the name of a register, as these begin at "A".
_COMMENT = re.compile(r"(?:;|#|//).*", re.DOTALL)
_MARK = "\ufeff"
"""The byte-order mark, as it is decoded."""


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
        self.message, self.line = message, line
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
    """Translates assembly to machine code; docs/assembly.md has the instructions.

    Args:
        lines: one instruction each, such as "LOADI 7", "ADD A", "sub a, b, c ; C = A − B", "HLT". Operands are
            separated by spaces, tabs or a comma; case does not matter; a comment begins with ";", "#" or "//". Empty
            lines and comment lines have no instruction. Lines after the first HLT are assembled too, though nothing
            can reach them.
        num_registers: R, the machine's registers A, B, … With more than 32, whose names include lower-case letters,
            the case of a register's name matters.
        memory_size: M, bytes of the machine's memory.

    Returns:
        4 bytes per instruction.

    Raises:
        ProgramError: an unknown mnemonic, a wrong number of operands, an unknown register, an immediate outside 0…255,
            more instructions than fit, or no HLT; it names the line.
        TypeError, ValueError: a wrong argument.

    Source: cpu-simulation.py of github.com/sanderwood/bgpt, `translate`.
    """
    check_machine(num_registers, memory_size)
    if isinstance(lines, str | bytes | bytearray):
        raise TypeError(f"assemble: lines: expected a sequence of lines, got {type(lines).__name__}; use .splitlines()")
    code = bytearray()
    numbers = []
    for number, line in enumerate(lines, 1):
        if not isinstance(line, str):
            raise TypeError(f"assemble: lines[{number - 1}]: expected a str, got {type(line).__name__}")
        instruction = _assemble_line(line.removeprefix(_MARK) if number == 1 else line, number, num_registers)
        if len(code) + len(instruction) > memory_size:
            raise ProgramError(
                f"a memory of {memory_size} bytes holds {memory_size // INSTRUCTION_SIZE} instructions of 4 bytes; "
                "shorten the program or enlarge the memory",
                number,
            )
        if instruction:
            numbers.append(number)
        code += instruction
    try:
        check_program(bytes(code), num_registers, memory_size)
    except ProgramError as error:
        raise error if error.line is None else ProgramError(error.message, numbers[error.line - 1]) from error
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
    """Returns the 4 bytes of a line's instruction; none for an empty line or a comment."""
    # Not str.split() and str.strip(): some register names after Z are Unicode white space.
    text = _COMMENT.sub("", line).strip(" \t\r\n")
    if not text:
        return b""
    name, rest = re.fullmatch(r"([^ \t,]*)[ \t]*(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    operands = re.split(r"[ \t]*,[ \t]*|[ \t]+", rest) if rest else []
    operation = _BY_NAME.get(_upper(name))
    if operation is None:
        raise ProgramError(f"unknown mnemonic {name!r:.40}; known are {', '.join(_BY_NAME)}", number)
    name = operation.name
    if "" in operands:
        raise ProgramError(f"expected an operand before and after each comma, got {text!r:.80}", number)
    if not operation.min_operands <= len(operands) <= operation.max_operands:
        raise ProgramError(f"{name} takes {_operand_counts(operation)}, got {len(operands)}: {text!r:.80}", number)
    if name == "LOADI":
        if re.fullmatch(r"[0-9]{1,3}", operands[0]) is None or int(operands[0]) > 255:
            raise ProgramError(f"LOADI takes an immediate in 0…255, got {operands[0]!r:.40}", number)
        return bytes([operation.opcode, int(operands[0]), 0, 0])
    indices = [_register_index(operand, num_registers) for operand in operands]
    for operand, index in zip(operands, indices, strict=True):
        if index is None:
            raise ProgramError(f"{name}: expected a register {_registers(num_registers)}, got {operand!r:.40}", number)
    return bytes([operation.opcode, *filter(None, indices)]).ljust(INSTRUCTION_SIZE, b"\0")


def _upper(name: str) -> str:
    """The name in upper case; not str.upper(), by which other letters become those of ASCII, too."""
    return name.upper() if name.isascii() else name


def _register_index(name: str, num_registers: int) -> int | None:
    """The register of a name, counted from 1; that of the upper-case name if the machine has none of this one."""
    for spelling in (name, _upper(name)):
        index = ord(spelling) - ord("A") + 1 if len(spelling) == 1 else 0
        if 1 <= index <= num_registers:
            return index
    return None


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
