"""Random programs of the MOS 6502, and their traces by py65's emulator, as states of 16 bytes.

A trace has the layout of the toy machine with 10 registers: M bytes of memory, the start state, then the state after
each fetch; so `Traces`, `pack_traces`, `simulate` and `teacher_forced` of `bgpt_fast.tasks.cpu_states` accept it.
Letters: M bytes of memory, N executed instructions.
"""

from __future__ import annotations

import functools
import random
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bgpt_fast.checks import check_int
from bgpt_fast.data.file_index import is_in_split
from bgpt_fast.tasks.cpu_states import Traces

if TYPE_CHECKING:
    from py65.devices.mpu6502 import MPU

COLUMNS = (
    *("A", "X", "Y", "SP", "P", "PCL", "PCH", "opcode", "operand", "operand2"),
    *("address", "page", "value", "written_at", "written", "cycles"),
)
"""The bytes of a state: the registers before the fetched instruction; the instruction, the address that it accesses and
the value there (0 if it accesses none); of the previous instruction, the low byte of the address that it wrote to, the
value that it wrote, and its number of cycles."""
STATE_SIZE = len(COLUMNS)
TOY_REGISTERS = STATE_SIZE - 6
"""The number of registers of the toy machine whose states have the same size."""
VARIABLES = 16
"""Bytes $00 … $0F are random data; the program follows and ends with BRK."""
EVAL_SHARE = 0.02

_IMPLIED = ("INX", "INY", "DEX", "DEY", "TAX", "TAY", "TXA", "TYA", "CLC", "SEC", "PHA", "PLA", "NOP")
_SHIFTS = ("ASL", "LSR", "ROL", "ROR")
_READS = ("LDA", "LDX", "LDY", "ADC", "SBC", "AND", "ORA", "EOR", "CMP", "CPX", "CPY")
_STORES = ("STA", "STX", "STY", "INC", "DEC", *_SHIFTS)
_BRANCHES = ("BCC", "BCS", "BEQ", "BNE", "BMI", "BPL")
_INSTRUCTIONS = (
    *((name, "imp") for name in _IMPLIED),
    *((name, "acc") for name in _SHIFTS),
    *((name, "imm") for name in _READS),
    *((name, "zpg") for name in (*_READS, "BIT", *_STORES)),
    *((name, "rel") for name in _BRANCHES),
)
_SIZES = {"imp": 1, "acc": 1, "imm": 2, "zpg": 2, "rel": 2}


@dataclass(frozen=True)
class ProgramOptions:
    """Lengths and memory of random programs.

    Args:
        memory_size: M, bytes of the zero page in a trace: 16 of data, then the program.
        min_program, max_program: range of the number of instructions, BRK included; at two bytes each they must fit.

    Raises:
        TypeError, ValueError: a field has a wrong type or is out of range.
    """

    memory_size: int = 48
    min_program: int = 1
    max_program: int = 15

    def __post_init__(self) -> None:
        for name, least in (("memory_size", VARIABLES + 2), ("min_program", 1), ("max_program", self.min_program)):
            check_int(f"ProgramOptions: {name}", getattr(self, name), least)
        if self.memory_size > 256:
            raise ValueError(f"ProgramOptions: memory_size: expected at most 256, got {self.memory_size}")
        capacity = (self.memory_size - VARIABLES) // 2
        if self.max_program > capacity:
            raise ValueError(
                f"ProgramOptions: max_program: expected at most {capacity}, the capacity of {self.memory_size} bytes, "
                f"got {self.max_program}"
            )

    @property
    def max_trace_size(self) -> int:
        """Bytes of the longest trace."""
        return self.memory_size + (self.max_program + 1) * STATE_SIZE

    def to_dict(self) -> dict[str, int]:
        """The fields, JSON-ready."""
        return asdict(self)


def generate(
    count: int,
    *,
    seed: int = 0,
    split: Literal["train", "eval"] = "train",
    start: int = 0,
    options: ProgramOptions | None = None,
) -> Traces:
    """Generates traces of random programs: instance i of a seed is always the same.

    Args:
        count: number of programs.
        seed: seed of the stream.
        split: "train" or "eval". A hash of memory and program decides, so no program is in both, for any seeds.
        start: the first instance.
        options: lengths and memory; None means the defaults.

    Returns:
        The traces; `next_start` is the instance that follows them.

    Raises:
        ImportError: py65 is missing.
        TypeError, ValueError: a wrong argument.
    """
    check_int("generate: count", count, 0)
    check_int("generate: start", start, 0)
    if split not in ("train", "eval"):
        raise ValueError(f'generate: split: expected "train" or "eval", got {split!r}')
    options = options or ProgramOptions()
    parts: list[bytes] = []
    while len(parts) < count:
        stream = random.Random(f"{seed} {start}")
        start += 1
        memory = random_memory(stream, options)
        registers = [stream.randrange(256) for _ in "AXY"]
        if is_in_split(memory, split, EVAL_SHARE):
            parts.append(trace(memory, *registers))
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    data = np.frombuffer(b"".join(parts), np.uint8)
    return Traces(data, offsets, TOY_REGISTERS, options.memory_size, next_start=start)


def random_memory(stream: random.Random, options: ProgramOptions) -> bytes:
    """Returns M bytes: 16 random ones, a program, zeros.

    Branches skip the next instruction, so every program ends.
    """
    opcodes = _opcodes()
    data = stream.randbytes(VARIABLES)
    length = stream.randint(options.min_program, options.max_program)
    chosen = [stream.choice(_INSTRUCTIONS) for _ in range(length - 1)]
    code = bytearray()
    for place, (name, mode) in enumerate(chosen):
        code.append(opcodes[name, mode])
        if mode == "imm":
            code.append(stream.randrange(256))
        elif mode == "zpg":
            code.append(stream.randrange(VARIABLES))
        elif mode == "rel":
            code.append(_SIZES[chosen[place + 1][1]] if place + 1 < len(chosen) else 0)
    return (data + bytes(code)).ljust(options.memory_size, b"\0")


def trace(memory: bytes, a: int = 0, x: int = 0, y: int = 0, *, max_steps: int = 10_000) -> bytes:
    """Runs a program with py65 until BRK is fetched.

    Args:
        memory: up to 256 bytes from address 0: 16 of data, then the program.
        a, x, y: registers at the start; SP is $FF, P as after a reset.
        max_steps: maximum number of instructions.

    Returns:
        The memory, the start state, and the state after each fetch, the last one for BRK.

    Raises:
        ValueError: an opcode that the 6502 does not have, or no BRK in `max_steps` instructions.
        ImportError: py65 is missing.
    """
    processor: Any = _processor()(memory=[*memory, *bytes(65536 - len(memory))])
    processor.reset()
    processor.a, processor.x, processor.y, processor.pc = a, x, y, VARIABLES
    states = bytearray(_registers(processor) + bytes(STATE_SIZE - 7))
    last_write = bytes(3)
    for _ in range(max_steps):
        opcode = processor.memory[processor.pc]
        name, mode = processor.disassemble[opcode]
        if (name, mode) not in _opcodes():
            raise ValueError(f"trace: address {processor.pc}: expected an instruction of {__name__}, got ${opcode:02X}")
        size = 1 if name == "BRK" else _SIZES[mode]
        operands = [processor.memory[processor.pc + place] if place < size else 0 for place in (1, 2)]
        address = _accessed_address(processor, name, mode, operands[0])
        value = 0 if address is None else processor.memory[address]
        low, page = divmod(address or 0, 256)[::-1]
        states += _registers(processor) + bytes([opcode, *operands, low, page, value]) + last_write
        if name == "BRK":
            return memory + bytes(states)
        cycles = processor.processorCycles
        processor.step()
        writes = address is not None and (name in _STORES or name == "PHA")
        address_and_value = (low, processor.memory[address]) if writes else (0, 0)
        last_write = bytes([*address_and_value, processor.processorCycles - cycles])
    raise ValueError(f"trace: expected BRK within {max_steps} instructions, got none")


def _registers(processor: MPU) -> bytes:
    counter = divmod(processor.pc, 256)[::-1]
    return bytes([processor.a, processor.x, processor.y, processor.sp, processor.p, *counter])


def _accessed_address(processor: MPU, name: str, mode: str, operand: int) -> int | None:
    if mode == "zpg":
        return operand
    if name == "PHA":
        return 256 + int(processor.sp)
    if name == "PLA":
        return 256 + (int(processor.sp) + 1) % 256
    return None


@functools.cache
def _opcodes() -> dict[tuple[str, str], int]:
    """Opcodes by mnemonic and addressing mode, as py65 disassembles them: those of random programs, and BRK."""
    instructions = {*_INSTRUCTIONS, ("BRK", "imp")}
    return {pair: opcode for opcode, pair in enumerate(_processor().disassemble) if pair in instructions}


def _processor() -> type[MPU]:
    try:
        from py65.devices.mpu6502 import MPU
    except ImportError as error:
        raise ImportError("6502 programs need py65: pip install '.[realcpu]' in the repository") from error
    return MPU
