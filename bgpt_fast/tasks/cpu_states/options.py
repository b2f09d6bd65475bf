"""The machine and the lengths of its random programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, TypedDict

from bgpt_fast import _C
from bgpt_fast.checks import check_int
from bgpt_fast.tasks.cpu_states.machine import INSTRUCTION_SIZE, MAX_PC, check_machine, state_size


class MachineOptions(TypedDict, total=False):
    """The fields of `StreamOptions` as keyword arguments."""

    num_registers: int
    memory_size: int
    min_program: int
    max_program: int


@dataclass(frozen=True)
class StreamOptions:
    """A machine and the lengths of its random programs; the defaults are the paper's.

    Args:
        num_registers: R, 1…255.
        memory_size: M in bytes.
        min_program: minimum number of instructions of a program, HLT included; 0 means only HLT, as 1 does.
        max_program: maximum number of instructions; they must fit the memory.

    Raises:
        TypeError, ValueError: a field has a wrong type or is out of range.
    """

    num_registers: int = 10
    memory_size: int = 1024
    min_program: int = 1
    max_program: int = 255

    def __post_init__(self) -> None:
        check_machine(self.num_registers, self.memory_size)
        check_int("min_program", self.min_program, 0)
        check_int("max_program", self.max_program, 0)
        if self.max_program < self.min_program:
            raise ValueError(f"max_program: expected at least min_program {self.min_program}, got {self.max_program}")
        slots = self.memory_size // INSTRUCTION_SIZE
        if self.max_program > slots:
            raise ValueError(
                f"max_program: expected at most {slots}, the instructions that {self.memory_size} bytes of memory "
                f"hold, got {self.max_program}; pass a smaller max_program or a larger memory_size"
            )
        if min(self.max_program, slots - 1) > MAX_PC:
            raise ValueError(
                f"max_program: expected at most {MAX_PC}, since PC is one byte of a state, got {self.max_program}"
            )

    @property
    def max_trace_size(self) -> int:
        """Bytes of the longest trace."""
        return self.memory_size + (max(self.max_program, 1) + 1) * state_size(self.num_registers)

    def to_native(self, small_values: float = 0.0) -> Any:
        """The same as an object of the C++ extension; `small_values` as in `generate`."""
        if not 0.0 <= small_values <= 1.0:
            raise ValueError(f"small_values: expected a share from 0 to 1, got {small_values}")
        return _C.CpuStatesOptions(
            self.num_registers, self.memory_size, self.min_program, self.max_program, float(small_values)
        )

    def to_dict(self) -> dict[str, int]:
        """The fields, JSON-ready."""
        return asdict(self)


SMALL_MACHINE = StreamOptions(num_registers=2, memory_size=64, min_program=1, max_program=15)
"""The machine of the shipped model, which the preset "cpu-states" learns in minutes; the default of all commands."""
