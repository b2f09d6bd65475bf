"""A journal of the predictions in a chunk of a simulation, so that a killed run can reuse them.

Concatenated records, each a header `kind, number, seconds, size`, the content, and a CRC-32 of both: "T" a
digest of the programs, "F" the teacher-forced tokens, "P" the free-running prediction of one program.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bgpt_fast.files import naming
from bgpt_fast.tasks.cpu_states.machine import state_size
from bgpt_fast.tasks.cpu_states.trace import PredictedTrace
from bgpt_fast.tasks.cpu_states.traces import Traces

_HEAD = struct.Struct("<cQdI")
_CHECKSUM = struct.Struct("<I")


class _Record(NamedTuple):
    kind: bytes
    number: int
    seconds: float
    content: bytes


class ChunkJournal:
    """The journal of one chunk, read and then extended record by record; a context manager.

    An incomplete or damaged record is removed, and so are all records after it.

    Args:
        path: the file; created if it is missing.
        traces: the programs.

    Attributes:
        predicted: the free-running predictions, by the program's index in the chunk.
        seconds: the time that they took.
        forced: int16 [N, C] for each program, as `teacher_forced` returns it; None before it is added.
        forced_seconds: the time that they took.

    Raises:
        ValueError: the file is a journal of other programs.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: Path, traces: Traces) -> None:
        self._path, self._traces = path, traces
        self.predicted: dict[int, PredictedTrace] = {}
        self.forced: list[NDArray[np.int16]] | None = None
        self.seconds = self.forced_seconds = 0.0
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ChunkJournal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def complete(self) -> bool:
        """Whether the file has all predictions of the chunk."""
        return self.forced is not None and len(self.predicted) == len(self._traces)

    def add_forced(self, forced: list[NDArray[np.int16]], seconds: float) -> None:
        """Writes the teacher-forced tokens and their computing time."""
        self.forced, self.forced_seconds = forced, seconds
        self._write(b"F", 0, seconds, b"".join(one.astype("<i2").tobytes() for one in forced))

    def add(self, index: int, predicted: PredictedTrace, seconds: float) -> None:
        """Writes one program's prediction, and the time of all predictions of the chunk so far."""
        self.predicted[index], self.seconds = predicted, seconds
        self._write(b"P", 2 * index + predicted.finished, seconds, predicted.data)

    def sync(self) -> None:
        """Flushes the records to disk (fsync)."""
        with naming(self._path):
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Closes the file; repeated calls do nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _read(self) -> None:
        content = self._path.read_bytes()
        valid_size = 0
        programs = digest(self._traces)
        for record, end in _records(content):
            if record.kind == b"T" and record.content != programs:
                raise ValueError(
                    f"{self._path}: was made of other programs than those that are given now; simulate these into "
                    "another --output"
                )
            if record.kind == b"F":
                self.forced, self.forced_seconds = self._split(record.content), record.seconds
            elif record.kind == b"P":
                R, M = self._traces.num_registers, self._traces.memory_size
                self.predicted[record.number // 2] = PredictedTrace(record.content, bool(record.number % 2), R, M)
                self.seconds = record.seconds
            valid_size = end
        os.ftruncate(self._descriptor, valid_size)
        os.lseek(self._descriptor, valid_size, os.SEEK_SET)
        if valid_size == 0:
            self._write(b"T", 0, 0.0, programs)

    def _split(self, content: bytes) -> list[NDArray[np.int16]]:
        C = state_size(self._traces.num_registers)
        counts = [size // C - 1 for size in (np.diff(self._traces.offsets) - self._traces.memory_size).tolist()]
        tokens = np.frombuffer(content, "<i2").astype(np.int16).reshape(-1, C)
        return np.split(tokens, np.cumsum(counts)[:-1])

    def _write(self, kind: bytes, number: int, seconds: float, content: bytes) -> None:
        record = _HEAD.pack(kind, number, seconds, len(content)) + content
        remaining = memoryview(record + _CHECKSUM.pack(zlib.crc32(record)))
        while remaining:
            with naming(self._path):
                remaining = remaining[os.write(self._descriptor, remaining) :]


def _records(content: bytes) -> Iterator[tuple[_Record, int]]:
    """The valid records from the start, each with the offset of its end."""
    at = 0
    while at + _HEAD.size <= len(content):
        kind, number, seconds, size = _HEAD.unpack_from(content, at)
        end = at + _HEAD.size + size + _CHECKSUM.size
        if end > len(content):
            return
        body = content[at : end - _CHECKSUM.size]
        if zlib.crc32(body) != _CHECKSUM.unpack_from(content, end - _CHECKSUM.size)[0]:
            return
        yield _Record(kind, number, seconds, body[_HEAD.size :]), end
        at = end


def digest(traces: Traces) -> bytes:
    """A digest of the programs and their traces."""
    first, last = traces.offsets[[0, -1]].tolist()
    digest = hashlib.sha256(f"{traces.num_registers} {traces.memory_size}".encode())
    digest.update((traces.offsets - first).tobytes())
    digest.update(traces.data[first:last].tobytes())
    return digest.digest()
