"""Many traces of one machine in one buffer.

Letters: n traces, M bytes of memory, R registers, N executed instructions, C = 6 + R bytes per state.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

from bgpt_fast import _C
from bgpt_fast.checks import check_int
from bgpt_fast.tasks.cpu_states.machine import as_bytes, check_machine
from bgpt_fast.tasks.cpu_states.trace import Trace, run


class Traces(Sequence[Trace]):
    """Traces of one machine in one buffer; slices share it.

    Args:
        data: uint8, the traces' bytes; not checked, unlike in `Traces.from_bytes`.
        offsets: int64 [n + 1]: trace i is `data[offsets[i] : offsets[i + 1]]`.
        num_registers: R.
        memory_size: M.
        next_start: the index at which their stream continues; None if they are not from a stream.
        dropped: number of traces that were left out because their program is in another split.
    """

    def __init__(
        self,
        data: NDArray[np.uint8],
        offsets: NDArray[np.int64],
        num_registers: int,
        memory_size: int,
        *,
        next_start: int | None = None,
        dropped: int = 0,
    ) -> None:
        check_machine(num_registers, memory_size)
        if data.dtype != np.uint8 or data.ndim != 1 or not data.flags.c_contiguous:
            raise TypeError(f"Traces: data: expected contiguous uint8 [bytes], got {data.dtype} {data.shape}")
        if offsets.dtype != np.int64 or offsets.ndim != 1 or len(offsets) < 1:
            raise TypeError(f"Traces: offsets: expected int64 [n + 1], got {offsets.dtype} {offsets.shape}")
        if offsets[0] < 0 or offsets[-1] > len(data) or bool((np.diff(offsets) < 0).any()):
            raise ValueError(f"Traces: offsets: expected rising numbers in 0…{len(data)}")
        self.data = data.view()
        self.data.flags.writeable = False
        self.offsets = np.ascontiguousarray(offsets)
        self.num_registers = num_registers
        self.memory_size = memory_size
        self.next_start = next_start
        self.dropped = dropped

    @classmethod
    def from_bytes(cls, contents: Iterable[bytes], num_registers: int = 10, memory_size: int = 1024) -> Traces:
        """Traces from the contents of files as the released code writes them, each checked as by `Trace.from_bytes`.

        Raises:
            ProgramError, TraceError: as `Trace.from_bytes`; a note names the trace.
        """
        parts = [as_bytes(f"Traces.from_bytes: contents[{i}]", content) for i, content in enumerate(contents)]
        offsets = offsets_of([len(part) for part in parts])
        traces = cls(np.frombuffer(b"".join(parts), np.uint8), offsets, num_registers, memory_size)
        traces.check()
        return traces

    @classmethod
    def from_list(cls, traces: Sequence[Trace]) -> Traces:
        """Copies traces, which need no check, into one buffer.

        Raises:
            ValueError: no traces, or traces of different machines.
        """
        machines = {(trace.num_registers, trace.memory_size) for trace in traces}
        if len(machines) != 1:
            raise ValueError(f"Traces.from_list: expected traces of one machine, got {sorted(machines)}")
        parts = [trace._data for trace in traces]
        return cls(np.concatenate(parts), offsets_of([len(part) for part in parts]), *machines.pop())

    def check(self, threads: int | None = None) -> None:
        """Runs every program again and compares all states.

        Raises:
            ProgramError, TraceError: what is wrong with the first bad trace; a note names it.
        """
        invalid = _C.cpu_states_find_invalid(
            *self._native(),
            thread_count(threads),
        )
        if invalid >= 0:
            try:
                Trace.from_bytes(self[invalid].to_bytes(), self.num_registers, self.memory_size)
            except ValueError as error:
                error.add_note(f"trace {invalid} of {len(self)}")
                raise
            raise AssertionError(f"trace {invalid}: the two checks disagree")

    def program_hashes(self, threads: int | None = None) -> NDArray[np.uint64]:
        """uint64 [n]: a hash of each program, which decides its split in the Philox stream (`split_of`)."""
        hashes = np.empty(len(self), np.uint64)
        _C.cpu_states_hash_programs(
            *self._native(),
            hashes.ctypes.data,
            thread_count(threads),
        )
        return hashes

    def _native(self) -> tuple[int, int, int, int, int]:
        """The first arguments of the C++ functions: the traces."""
        return self.data.ctypes.data, self.offsets.ctypes.data, len(self), self.num_registers, self.memory_size

    @property
    def nbytes(self) -> int:
        """Total size of the traces in bytes."""
        return int(self.offsets[-1] - self.offsets[0])

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> Traces:
        """The traces at `indices`, in their order, copied."""
        chosen = np.asarray(indices, np.int64)
        sizes = np.diff(self.offsets)[chosen]
        offsets = offsets_of(sizes)
        data = np.empty(int(offsets[-1]), np.uint8)
        for i, source in enumerate(self.offsets[:-1][chosen].tolist()):
            data[offsets[i] : offsets[i + 1]] = self.data[source : source + sizes[i]]
        return Traces(data, offsets, self.num_registers, self.memory_size)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> Trace: ...
    @overload
    def __getitem__(self, index: slice) -> Traces: ...
    def __getitem__(self, index: int | slice) -> Trace | Traces:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                return self.select(range(start, stop, step))
            stop = max(start, stop)
            return Traces(self.data, self.offsets[start : stop + 1], self.num_registers, self.memory_size)
        position = range(len(self))[index]
        return Trace(
            self.data[self.offsets[position] : self.offsets[position + 1]], self.num_registers, self.memory_size
        )

    def __iter__(self) -> Iterator[Trace]:
        for position in range(len(self)):
            yield self[position]

    def __repr__(self) -> str:
        return (
            f"Traces({len(self)} traces, {self.nbytes} bytes, {self.num_registers} registers, "
            f"{self.memory_size} bytes of memory)"
        )


def split_of(
    program: Sequence[str] | bytes, num_registers: int = 10, memory_size: int = 1024
) -> Literal["train", "eval"]:
    """The split of the Philox stream that a program is in, "train" or "eval": one program in 64 is for evaluation.

    Raises:
        ProgramError: the machine cannot run the program.
    """
    trace = run(program, num_registers=num_registers, memory_size=memory_size)
    offsets = np.array([0, len(trace._data)], np.int64)
    [program_hash] = Traces(trace._data, offsets, num_registers, memory_size).program_hashes().tolist()
    return "eval" if _C.cpu_states_is_eval(program_hash) else "train"


def offsets_of(sizes: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 [n + 1]: the boundaries of traces of these sizes in one buffer."""
    offsets = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return offsets


def thread_count(threads: int | None) -> int:
    """`threads`; for None, the number of cores of this process."""
    if threads is None:
        return len(os.sched_getaffinity(0))
    check_int("threads", threads, 1)
    return threads
