"""How much memory a piece of work takes at most on the CPU, measured in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")


def in_child(function: Callable[..., Result], *arguments: Any) -> Result:
    """`function(*arguments)` in a new process, whose allocator holds nothing yet; both must be picklable."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def peak_growth(act: Callable[[], object]) -> int:
    """Bytes by which this process's resident memory grew at most while `act` ran.

    To be asked in a new process (`in_child`): an old one has freed memory to use again, which is no growth.

    Raises:
        OSError: the system is not Linux, or does not let a process reset its own high-water mark.
    """
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    act()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
