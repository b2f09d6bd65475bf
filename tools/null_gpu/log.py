"""Reads the null GPU's log: what this process asked of the GPU, in order."""

from __future__ import annotations

import ctypes
import dataclasses
import enum
from collections import Counter
from collections.abc import Iterable

import numpy as np


class Kind(enum.IntEnum):
    """As in library/log.h."""

    KERNEL = 0
    PRODUCT = 1
    COPY_TO_DEVICE = 2
    COPY_TO_HOST = 3
    COPY_ON_DEVICE = 4
    FILL = 5
    GRAPH = 6
    WAIT = 7
    WAIT_ON_GPU = 8
    ALLOCATE = 9
    REFUSED = 10
    COPY_PAGEABLE = 11


LAUNCHES = (Kind.KERNEL, Kind.PRODUCT, Kind.COPY_TO_DEVICE, Kind.COPY_TO_HOST, Kind.COPY_ON_DEVICE, Kind.FILL)
LAUNCHES += (Kind.GRAPH, Kind.COPY_PAGEABLE)
"""Kinds that put work on the GPU."""

_EVENT = np.dtype(
    [("kind", "i4"), ("name", "i4"), ("grid", "u4", 3), ("threads", "u4"), ("shared", "u4"), ("id", "i4")]
    + [(field, "i4") for field in ("m", "n", "k", "batch", "item_size", "padding")]
    + [("bytes", "i8"), ("stream", "u8"), ("cpu_ns", "i8")]
)


@dataclasses.dataclass(frozen=True)
class Event:
    """One entry; sizes that its kind does not have are 0.

    Args:
        kind: what it is.
        name: of the kernel (C++ names as in the object file), or of the call.
        grid: blocks in each dimension.
        threads: of a block.
        shared: dynamic shared memory of a block in bytes.
        graph: a CUDA graph's number, for `Log.graph`.
        later: of a wait, the number of entries before it whose work is not waited for.
        product: m, n, k and number of a matrix product.
        item_size: bytes of an element of the product's first operand.
        bytes: copied, filled or allocated.
        stream: the stream's handle; 0 is the default stream.
        cpu_seconds: CPU time of the process at the call.
    """

    kind: Kind
    name: str
    grid: tuple[int, int, int] = (0, 0, 0)
    threads: int = 0
    shared: int = 0
    graph: int = 0
    later: int = 0
    product: tuple[int, int, int, int] = (0, 0, 0, 0)
    item_size: int = 0
    bytes: int = 0
    stream: int = 0
    cpu_seconds: float = 0.0

    @property
    def key(self) -> tuple[object, ...]:
        """What is equal when the same work is asked for again."""
        return self.kind, self.name, self.grid, self.threads, self.shared, self.product, self.bytes


class Log:
    """The log of this process.

    Raises:
        RuntimeError: the process does not run on the null GPU.
    """

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        if not hasattr(library, "null_gpu_count"):
            raise RuntimeError("this process does not run on the null GPU: start it by python3 -m tools.null_gpu")
        library.null_gpu_count.restype = library.null_gpu_read.restype = ctypes.c_int64
        library.null_gpu_read.argtypes = [ctypes.c_int32, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
        library.null_gpu_name.restype = ctypes.c_char_p
        library.null_gpu_memory.restype = ctypes.c_int64
        self._library = library
        self._names: dict[int, str] = {}

    def __len__(self) -> int:
        return self._library.null_gpu_count()

    def events(self, first: int = 0) -> list[Event]:
        """All entries from the number `first` on."""
        return self._read(0, first, len(self) - first)

    def graph(self, number: int) -> list[Event]:
        """What a CUDA graph does, by its number."""
        return self._read(number, 0, 1 << 20)

    def memory(self) -> int:
        """Bytes of device memory that are allocated."""
        return self._library.null_gpu_memory()

    def _read(self, graph: int, first: int, count: int) -> list[Event]:
        rows = np.empty(max(count, 0), _EVENT)
        rows = rows[: self._library.null_gpu_read(graph, first, len(rows), rows.ctypes.data)]
        return [
            Event(
                Kind(int(row["kind"])),
                self._name(int(row["name"])),
                tuple(map(int, row["grid"])),
                int(row["threads"]),
                int(row["shared"]),
                int(row["id"]) if row["kind"] == Kind.GRAPH else 0,
                int(row["id"]) if row["kind"] == Kind.WAIT else 0,
                (int(row["m"]), int(row["n"]), int(row["k"]), int(row["batch"])),
                int(row["item_size"]),
                int(row["bytes"]),
                int(row["stream"]),
                int(row["cpu_ns"]) / 1e9,
            )
            for row in rows
        ]

    def _name(self, number: int) -> str:
        if number not in self._names:
            self._names[number] = self._library.null_gpu_name(number).decode()
        return self._names[number]


def counts(events: Iterable[Event]) -> Counter[str]:
    """How many events of each kind there are, by the kind's name in lower case."""
    return Counter(event.kind.name.lower() for event in events)


def waits(events: Iterable[Event]) -> Counter[str]:
    """The calls in which the host waits for the GPU, by name; apart are those that wait only for earlier work."""
    return Counter(
        f"{event.name} of earlier work" if event.later else event.name for event in events if event.kind is Kind.WAIT
    )


def refusals(events: Iterable[Event]) -> Counter[str]:
    """The calls that CUDA would refuse, by reason."""
    return Counter(event.name for event in events if event.kind is Kind.REFUSED)


def launches(events: Iterable[Event]) -> int:
    """How many events put work on the GPU."""
    return sum(event.kind in LAUNCHES for event in events)
