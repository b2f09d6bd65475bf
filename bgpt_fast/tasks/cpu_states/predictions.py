"""Writes predicted traces: `.bin` files in the released format, and a Parquet table."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bgpt_fast.files import atomic_write, fsync_folder, naming
from bgpt_fast.tasks.cpu_states.export import METADATA, import_pyarrow
from bgpt_fast.tasks.cpu_states.formatting import first_wrong_step
from bgpt_fast.tasks.cpu_states.trace import PredictedTrace
from bgpt_fast.tasks.cpu_states.traces import Traces


def write_predictions(
    directory: Path, names: Sequence[str], predicted: Sequence[PredictedTrace], *, keep: bool = False
) -> None:
    """Writes predicted traces as files, each complete or absent.

    Args:
        directory: created if it is missing; files with these names are replaced.
        names: file names, one for each trace.
        predicted: the traces.
        keep: do not replace files of the right size, which an earlier run wrote.

    Raises:
        OSError: a file could not be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    missing = [
        (name, one)
        for name, one in zip(names, predicted, strict=True)
        if not (keep and _has_size(directory / name, len(one.data)))
    ]
    if not missing:
        return
    names = [name for name, _ in missing]
    parts = [directory / f".{name}.part" for name in names]
    try:
        for part, (name, one) in zip(parts, missing, strict=True):
            with naming(directory / name):
                part.write_bytes(one.to_bytes())
        os.sync()  # one call: an fsync for each file would take minutes
        for part, name in zip(parts, names, strict=True):
            os.replace(part, directory / name)
    except BaseException:
        for part in parts:
            part.unlink(missing_ok=True)
        raise
    fsync_folder(directory)


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


class PredictionTable:
    """A Parquet file that is written in chunks, one row group each; `predictions_to_parquet` opens one."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def add(self, names: Sequence[str], predicted: Sequence[PredictedTrace], truths: Traces) -> None:
        """Writes a row for each program.

        Args:
            names: names of the predicted `.bin` files.
            predicted: the predictions; the column `data` has the complete file.
            truths: the machine's traces of the same programs.
        """
        pyarrow, _ = import_pyarrow()
        scores = [first_wrong_step(one, truth) for one, truth in zip(predicted, truths, strict=True)]
        values = [
            list(names),
            ["\n".join(trace.program) for trace in truths],
            [one.to_bytes() for one in predicted],
            [trace.to_bytes() for trace in truths],
            [one.finished for one in predicted],
            [wrong for wrong, _ in scores],
            [step for _, step in scores],
        ]
        schema = self._writer.schema
        columns = [pyarrow.array(column, field.type) for column, field in zip(values, schema, strict=True)]
        self._writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))


@contextlib.contextmanager
def predictions_to_parquet(path: Path, num_registers: int, memory_size: int) -> Iterator[PredictionTable]:
    """Opens a table of predictions; the file exists when the block ends without an exception.

    Args:
        path: the file; it is replaced if it exists.
        num_registers, memory_size: the machine's, for the metadata.

    Raises:
        ImportError: pyarrow is missing.
        OSError: the file could not be written.
    """
    pyarrow, parquet = import_pyarrow()
    columns = [
        ("name", pyarrow.string()),
        ("program", pyarrow.large_string()),
        ("data", pyarrow.large_binary()),
        ("truth", pyarrow.large_binary()),
        ("finished", pyarrow.bool_()),
        ("wrong_bytes", pyarrow.int32()),
        ("first_wrong_step", pyarrow.int32()),
    ]
    machine = f"{num_registers} {memory_size}".encode()
    schema = pyarrow.schema(columns, metadata={METADATA + b".predicted": machine})
    with atomic_write(path) as file, parquet.ParquetWriter(file, schema) as writer:
        yield PredictionTable(writer)
