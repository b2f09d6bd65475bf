"""A piece of a simulation on disk while it is made: what is there need not be made again after a kill.

Records end to end, each `kind, number, seconds, size` of its content, the content, and a CRC-32 of all that: "T" a
digest of the programs, "F" the teacher-forced tokens, "P" what the model wrote free running for one program.
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


class SavedPiece:
    """The file of one piece, read and then grown record by record; a context manager.

    A record that a kill has cut, or that has changed since, goes with all that follow it.

    Args:
        path: the file; made if it is missing.
        traces: the programs.

    Attributes:
        predicted: what the model wrote, by the program's place in the piece.
        seconds: the time that these took.
        forced: int16 [N, C] a program, as `teacher_forced` gives it; None while it is not there.
        forced_seconds: the time that these took.

    Raises:
        ValueError: the file is of other programs.
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

    def __enter__(self) -> SavedPiece:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def complete(self) -> bool:
        """Whether nothing of the piece is left to make."""
        return self.forced is not None and len(self.predicted) == len(self._traces)

    def add_forced(self, forced: list[NDArray[np.int16]], seconds: float) -> None:
        """Writes the teacher-forced tokens, and the time that they took."""
        self.forced, self.forced_seconds = forced, seconds
        self._write(b"F", 0, seconds, b"".join(one.astype("<i2").tobytes() for one in forced))

    def add(self, place: int, predicted: PredictedTrace, seconds: float) -> None:
        """Writes one program's prediction, and the time that all of the piece's have taken so far."""
        self.predicted[place], self.seconds = predicted, seconds
        self._write(b"P", 2 * place + predicted.finished, seconds, predicted.data)

    def sync(self) -> None:
        """Makes the records durable."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Closes the file; a second time, does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _read(self) -> None:
        content = self._path.read_bytes()
        whole = 0
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
            whole = end
        os.ftruncate(self._descriptor, whole)
        os.lseek(self._descriptor, whole, os.SEEK_SET)
        if whole == 0:
            self._write(b"T", 0, 0.0, programs)

    def _split(self, content: bytes) -> list[NDArray[np.int16]]:
        C = state_size(self._traces.num_registers)
        counts = [size // C - 1 for size in (np.diff(self._traces.offsets) - self._traces.memory_size).tolist()]
        tokens = np.frombuffer(content, "<i2").astype(np.int16).reshape(-1, C)
        return np.split(tokens, np.cumsum(counts)[:-1])

    def _write(self, kind: bytes, number: int, seconds: float, content: bytes) -> None:
        record = _HEAD.pack(kind, number, seconds, len(content)) + content
        left = memoryview(record + _CHECKSUM.pack(zlib.crc32(record)))
        while left:
            left = left[os.write(self._descriptor, left) :]


def _records(content: bytes) -> Iterator[tuple[_Record, int]]:
    """The whole records from the start, each with the place behind it."""
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
    """What tells these programs from others."""
    first, last = traces.offsets[[0, -1]].tolist()
    found = hashlib.sha256(f"{traces.num_registers} {traces.memory_size}".encode())
    found.update((traces.offsets - first).tobytes())
    found.update(traces.data[first:last].tobytes())
    return found.digest()
