"""Reads programs as chunks of traces, from assembly, machine code, traces, folders, or Parquet files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from bgpt_fast.files import read_file, read_text
from bgpt_fast.parsing import MAX_BYTES
from bgpt_fast.tasks.cpu_states.export import (
    MAX_TRACE_BYTES,
    count_folder,
    count_parquet,
    read_folder_chunks,
    read_parquet_chunks,
)
from bgpt_fast.tasks.cpu_states.options import StreamOptions
from bgpt_fast.tasks.cpu_states.streams import generate
from bgpt_fast.tasks.cpu_states.trace import Trace, run
from bgpt_fast.tasks.cpu_states.traces import Traces

CHUNK_SIZE = 16384
"""Programs per chunk: enough for full batches of 4,096; some 50 MB of traces of the released machine."""


def random_chunks(
    count: int, machine: StreamOptions, *, seed: int = 0, chunk_size: int = CHUNK_SIZE
) -> Iterator[Traces]:
    """Yields programs of the Philox stream's evaluation split.

    Args:
        count: number of programs.
        machine: the machine and its programs.
        seed: 0…2⁶⁴ − 1.
        chunk_size: maximum number of programs in a chunk; does not change the programs.

    Raises:
        TypeError, ValueError: a wrong argument.
    """
    start = 0
    for done in range(0, count, chunk_size):
        traces = generate(
            min(chunk_size, count - done), seed=seed, stream="philox", split="eval", start=start, **asdict(machine)
        )
        assert traces.next_start is not None
        start = traces.next_start
        yield traces


def read_chunks(
    paths: Sequence[Path],
    machine: StreamOptions,
    *,
    acc: int = 0,
    registers: Sequence[int] = (),
    chunk_size: int = CHUNK_SIZE,
) -> Iterator[Traces]:
    """Yields programs from files, in the order of the paths.

    Args:
        paths: assembly (one instruction per line; any extension but the following), `.bin` files (a trace, or only
            machine code, no larger than the memory), folders of traces, `.parquet` files of traces.
        machine: the machine's sizes; traces must have them.
        acc: ACC at the start of assembly and machine code.
        registers: the registers at the start; empty means zeros.
        chunk_size: maximum number of programs in a chunk.

    Raises:
        ProgramError, TraceError: what is wrong with a file; a note names it.
        ValueError: traces of another machine.
        OSError: a file could not be read.
    """
    R, M = machine.num_registers, machine.memory_size
    single: list[Trace] = []
    for path in paths:
        try:
            if path.is_dir() or path.suffix == ".parquet":
                if single:
                    yield Traces.from_list(single)
                    single = []
                many = (
                    read_folder_chunks(path, R, M, rows=chunk_size)
                    if path.is_dir()
                    else read_parquet_chunks(path, rows=chunk_size)
                )
                for traces in many:
                    _check_machine(traces, R, M)
                    if len(traces):
                        yield traces
                continue
            if path.suffix == ".bin":
                content = read_file(path, MAX_TRACE_BYTES)
                is_code = len(content) <= M
                one = run(content, acc, registers, R, M) if is_code else Trace.from_bytes(content, R, M)
            else:
                lines = re.split(r"\r\n|\r|\n", read_text(path, MAX_BYTES))
                one = run(lines, acc, registers, R, M)
        except ValueError as error:
            if not any(str(path) in note for note in getattr(error, "__notes__", ())):
                kind = "assembly, a .bin file of code or a trace, or a .parquet file of traces"
                hint = "" if path.suffix in (".asm", ".bin", ".parquet") else f", which should be {kind}"
                error.add_note(f"in {path}{hint}")
            raise
        single.append(one)
        if len(single) == chunk_size:
            yield Traces.from_list(single)
            single = []
    if single:
        yield Traces.from_list(single)


def count_programs(paths: Sequence[Path]) -> int:
    """The number of programs in files, without reading them all.

    Raises:
        TraceError: what is wrong with a file.
        OSError: a file or folder could not be read.
    """
    return sum(
        count_folder(path) if path.is_dir() else count_parquet(path) if path.suffix == ".parquet" else 1
        for path in paths
    )


def _check_machine(traces: Traces, R: int, M: int) -> None:
    if (traces.num_registers, traces.memory_size) != (R, M):
        raise ValueError(
            f"expected traces of a machine of {R} registers and {M} bytes of memory, got {traces.num_registers} and "
            f"{traces.memory_size}; give the machine's sizes"
        )
