"""Devices by name, and CUDA graphs."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

import torch

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE

Replay = Callable[[], None]
Record = Callable[[Replay], Replay]
"""Turns a function into one that replays its work: a CUDA graph, or in tests the function itself."""


def resolve_device(name: str) -> torch.device:
    """The device with a given name; "auto" is the current GPU if there is one, else the CPU.

    Raises:
        ValueError: this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device: expected 'auto', 'cpu' or a GPU of this machine, got {name!r}: {reason}") from error
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device: on a GPU those of the driver and of torch's allocator; elsewhere
    those of this machine, or of the control group that limits this process."""
    if device.type == "cuda":
        in_cache = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + in_cache
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - int(used)))


class _Copied(Protocol):
    def pin_memory(self) -> Self: ...

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Self: ...

    def record_stream(self, stream: torch.cuda.Stream) -> None: ...


Copied = TypeVar("Copied", bound=_Copied)


def to_device(value: Copied, source: torch.device, device: torch.device) -> Copied:
    """A tensor or batch on `device`.

    From the CPU to a GPU it goes through page-locked memory on a stream of its own, so that neither does the host wait
    nor the copy for the GPU's work so far; the current stream waits for the copy.

    Args:
        value: a tensor, or a batch with `pin_memory`, `to` and `record_stream`.
        source: the device of its tensors.
        device: where it is needed.
    """
    if not (source.type == "cpu" and device.type == "cuda"):
        return value.to(device, non_blocking=True)
    copies, current = _copy_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(copies):
        there = value.pin_memory().to(device, non_blocking=True)
    current.wait_stream(copies)
    there.record_stream(current)
    return there


class HostCopy:
    """A tensor's values on their way to the host.

    They are those of this moment, whatever is written to the tensor later. From a GPU they are copied into page-locked
    memory behind the work that computes them; `wait` waits for this copy, but not for what was launched after it.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self._end: torch.cuda.Event | None = None
        if not values.is_cuda:
            self._values = values.clone()
        else:
            self._values = torch.empty(values.shape, dtype=values.dtype, device="cpu", pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._end = torch.cuda.Event()
            self._end.record(torch.cuda.current_stream(values.device))

    def wait(self) -> torch.Tensor:
        """The values, on the CPU."""
        if self._end is not None:
            self._end.synchronize()
        return self._values

    def tolist(self) -> list[float]:
        """The values of a tensor with one dimension."""
        return self.wait().tolist()


class HostCopies:
    """Several tensors' values on their way to the host, as `HostCopy`: in one buffer, by one copy.

    Attributes:
        there: copies of the tensors on their device.
    """

    def __init__(self, values: Sequence[torch.Tensor]) -> None:
        self._kinds = [(one.dtype, one.shape) for one in values]
        buffer = _together(values, values[0].device)
        self.there, self._copy = _parts(buffer, self._kinds), HostCopy(buffer)

    def wait(self) -> list[torch.Tensor]:
        """The tensors, on the CPU."""
        return _parts(self._copy.wait(), self._kinds)


def to_device_together(values: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Copies of tensors on `device`, made by one copy.

    Onto a GPU out of page-locked memory, so that the host does not wait.

    Args:
        values: on the CPU, of any dtypes and shapes.
        device: where they are needed.
    """
    buffer = _together(values, torch.device("cpu"), pin_memory=device.type == "cuda")
    return _parts(buffer.to(device, non_blocking=True), [(one.dtype, one.shape) for one in values])


_ALIGNMENT = 16
"""Bytes: each tensor in a common buffer starts at a multiple of it."""


def _together(values: Sequence[torch.Tensor], device: torch.device, *, pin_memory: bool = False) -> torch.Tensor:
    """uint8 [bytes]: tensors that are on `device`, one after the other in a new buffer there."""
    size = sum(-(-one.nbytes // _ALIGNMENT) * _ALIGNMENT for one in values)
    buffer = torch.empty(size, dtype=torch.uint8, device=device, pin_memory=pin_memory)
    for part, one in zip(_parts(buffer, [(one.dtype, one.shape) for one in values]), values, strict=True):
        part.copy_(one)
    return buffer


def _parts(buffer: torch.Tensor, kinds: Sequence[tuple[torch.dtype, torch.Size]]) -> list[torch.Tensor]:
    """The tensors of these dtypes and shapes that lie in a buffer one after the other."""
    parts, start = [], 0
    for dtype, shape in kinds:
        size = math.prod(shape) * dtype.itemsize
        parts.append(buffer[start : start + size].view(dtype).view(shape))
        start += -(-size // _ALIGNMENT) * _ALIGNMENT
    return parts


@contextlib.contextmanager
def default_cpu() -> Iterator[None]:
    """Within the block, what names no device is made on the CPU, also if the caller has set another default device.

    For code of torch and other libraries, such as its optimisers; ours names the device of every tensor.
    """
    if torch.get_default_device().type == "cpu":
        yield
    else:
        with torch.device("cpu"):
            yield


def graph_recorder() -> Record:
    """A `Record` whose CUDA graphs share one memory for what lives within a replay: no two may run at once."""
    pools: list[_POOL_HANDLE] = []

    def record(step: Replay) -> Replay:
        if not pools:
            pools.append(torch.cuda.graph_pool_handle())
        return cuda_graph(step, pools[0])

    return record


_capturing = threading.Lock()
"""Held from a graph's warm-up to the end of its capture: threads share the side stream and a recorder's pool."""


def cuda_graph(step: Replay, pool: _POOL_HANDLE | None = None) -> Replay:
    """Warms `step` up three times on a side stream, as graph capture requires, then captures it; returns the replay.

    Args:
        step: what is captured; it records no graph itself.
        pool: of `torch.cuda.graph_pool_handle`: the memory of the graph's temporary tensors; None means its own.
    """
    with _capturing:
        side = _side_stream(torch.cuda.current_device())
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as those that prepare batches, may allocate during the capture.
        with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
            step()
    return graph.replay


@functools.cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """One stream per GPU, reused because cuBLAS keeps a workspace for every stream that it has run on; torch's own
    capture stream belongs to the first GPU."""
    return torch.cuda.Stream(device)


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
