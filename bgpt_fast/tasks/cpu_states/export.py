"""Reads and writes traces: folders of `.bin` files in the released format, and Parquet files."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from bgpt_fast.files import atomic_write, fsync_folder, naming, open_regular, read_file
from bgpt_fast.memory import is_shortage
from bgpt_fast.tasks.cpu_states.machine import ProgramError, check_machine
from bgpt_fast.tasks.cpu_states.trace import Trace, TraceError
from bgpt_fast.tasks.cpu_states.traces import Traces

MAX_TRACE_BYTES = 64 << 20
"""Most bytes of a trace's file; the longest of the machine has far fewer."""
_ROWS_A_GROUP = 8192
METADATA = b"bgpt_fast.cpu_states"
_Path = str | os.PathLike[str]


def write_folder(traces: Iterable[Trace], directory: _Path) -> int:
    """Writes a new folder of files as the released code does, each named by the MD5 of its program.

    Of equal programs the last one overwrites the others, as in the released code. The folder is complete or absent.

    Args:
        traces: a `Traces` or any iterable of traces.
        directory: must not exist, or be empty. Missing parents are created.

    Returns:
        The number of files.

    Raises:
        FileExistsError: `directory` is not empty.
        OSError: a file could not be written; the folder does not exist then.
    """
    target = Path(directory)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(
            f"write_folder: expected no folder or an empty one, got {target}; choose another or remove it"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name[:64]}.{secrets.token_hex(8)}.part"
    temporary.mkdir()
    try:
        names = set()
        for trace in traces:
            name = trace.name
            names.add(name)
            with naming(target / name), open(temporary / name, "wb") as file:
                file.write(trace.to_bytes())
        os.sync()  # one call: an fsync for each file would take minutes
        fsync_folder(temporary)
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_folder(target.parent)
    return len(names)


def read_folder(directory: _Path, num_registers: int = 10, memory_size: int = 1024) -> Traces:
    """Reads the `.bin` files of a folder, in the order of their names, and checks each against the machine.

    Raises:
        FileNotFoundError: no such folder, or no `.bin` file in it.
        ProgramError, TraceError: a file is not a trace of this machine; a note names it.
        OSError: a file could not be read.
    """
    return Traces.from_list(
        [trace for chunk_size in read_folder_chunks(directory, num_registers, memory_size) for trace in chunk_size]
    )


def read_folder_chunks(
    directory: _Path, num_registers: int = 10, memory_size: int = 1024, *, rows: int = _ROWS_A_GROUP
) -> Iterator[Traces]:
    """As `read_folder`, at most `rows` traces at a time, so that the folder may be larger than memory."""
    check_machine(num_registers, memory_size)
    paths = _trace_files(directory)
    if not paths:
        raise FileNotFoundError(f"read_folder: expected .bin files, got none in {directory}")
    for start in range(0, len(paths), rows):
        traces = []
        for path in paths[start : start + rows]:
            try:
                traces.append(Trace.from_bytes(read_file(path, MAX_TRACE_BYTES), num_registers, memory_size))
            except ValueError as error:
                error.add_note(f"in {path}")
                raise
        yield Traces.from_list(traces)


def count_folder(directory: _Path) -> int:
    """The number of traces in a folder."""
    return len(_trace_files(directory))


def _trace_files(directory: _Path) -> list[Path]:
    return sorted(path for path in Path(directory).iterdir() if path.suffix == ".bin" and path.is_file())


def write_parquet(traces: Traces, path: _Path) -> None:
    """Writes a Parquet file, complete or not at all: one row per trace, with `name`, `program` (assembly) and `data`.

    Args:
        traces: any number; `data` is the content of a trace's file, and the machine's sizes are in the metadata.
        path: the file; it is replaced if it exists.

    Raises:
        ImportError: pyarrow is missing.
        OSError: the file could not be written.
    """
    pyarrow, parquet = import_pyarrow()
    machine = f"{traces.num_registers} {traces.memory_size}".encode()
    fields = [("name", pyarrow.string()), ("program", pyarrow.large_string()), ("data", pyarrow.large_binary())]
    schema = pyarrow.schema(fields, metadata={METADATA: machine})
    with atomic_write(path) as file, parquet.ParquetWriter(file, schema) as writer:
        for start in range(0, len(traces), _ROWS_A_GROUP):
            part = traces[start : start + _ROWS_A_GROUP]
            offsets = pyarrow.py_buffer(np.ascontiguousarray(part.offsets))
            data = pyarrow.Array.from_buffers(
                pyarrow.large_binary(), len(part), [None, offsets, pyarrow.py_buffer(part.data)]
            )
            names = pyarrow.array([trace.name for trace in part], pyarrow.string())
            programs = pyarrow.array(["\n".join(trace.program) for trace in part], pyarrow.large_string())
            writer.write_table(pyarrow.Table.from_arrays([names, programs, data], schema=schema))


def read_parquet(path: _Path) -> Traces:
    """Reads a file of `write_parquet` and checks every trace against the machine.

    Raises:
        ImportError: pyarrow is missing.
        TraceError, ProgramError: not a Parquet file of traces, or a trace differs from the machine's.
        OSError: the file could not be read.
    """
    with _open_parquet(path) as file:
        machine = _machine(path, file.schema_arrow)
        return _checked_traces(path, file.read(columns=["data"]), machine)


def read_parquet_chunks(path: _Path, *, rows: int = _ROWS_A_GROUP) -> Iterator[Traces]:
    """As `read_parquet`, at most `rows` traces at a time, so that the file may be larger than memory."""
    with _open_parquet(path) as file:
        machine = _machine(path, file.schema_arrow)
        for batch in file.iter_batches(rows, columns=["data"]):
            yield _checked_traces(path, batch, machine)


def count_parquet(path: _Path) -> int:
    """The number of traces in a Parquet file, read only from its metadata; raises as `read_parquet`."""
    with _open_parquet(path) as file:
        return file.metadata.num_rows


@contextlib.contextmanager
def _open_parquet(path: _Path) -> Iterator[Any]:
    pyarrow, parquet = import_pyarrow()
    with open_regular(path) as file:
        try:
            yield parquet.ParquetFile(file)
        except (pyarrow.ArrowException, OSError) as error:
            if is_shortage(error):
                raise
            raise TraceError(f"{path}: expected a Parquet file, got one that cannot be read: {error}") from error


def _checked_traces(path: _Path, table: Any, machine: tuple[int, int]) -> Traces:
    """Returns the column `data` of a table or record batch as checked traces; a single array is not copied."""
    column = table.column("data")
    if hasattr(column, "combine_chunks"):
        column = column.combine_chunks()
        column = column.chunk(0) if hasattr(column, "chunk") else column
    if column.null_count:
        raise TraceError(f"{path}: expected a trace in every row, got {column.null_count} nulls")
    _, offsets, data = column.buffers()
    count = len(column)
    first = column.offset
    rows = np.frombuffer(offsets, np.int64)[first : first + count + 1] if count else np.zeros(1, np.int64)
    content = np.frombuffer(data, np.uint8) if count and data is not None else np.empty(0, np.uint8)
    traces = Traces(content, rows, *machine)
    try:
        traces.check()
    except (TraceError, ProgramError) as error:
        error.add_note(f"in {path}")
        raise
    return traces


def _machine(path: _Path, schema: Any) -> tuple[int, int]:
    metadata = (schema.metadata or {}).get(METADATA, b"").split()
    if len(metadata) != 2 or not all(part.isdigit() for part in metadata) or "data" not in schema.names:
        raise TraceError(
            f"{path}: expected a Parquet file of write_parquet, with a column data and the machine's sizes in its "
            f"metadata, got columns {schema.names}"
        )
    if str(schema.field("data").type) != "large_binary":
        raise TraceError(f"{path}: expected column data of type large_binary, got {schema.field('data').type}")
    num_registers, memory_size = map(int, metadata)
    check_machine(num_registers, memory_size)
    return num_registers, memory_size


def import_pyarrow() -> tuple[ModuleType, ModuleType]:
    """Imports pyarrow and pyarrow.parquet; the ImportError says which extra to install."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError('Parquet needs pyarrow; install it with `pip install ".[data]"` in the repository') from error
    return pyarrow, parquet
