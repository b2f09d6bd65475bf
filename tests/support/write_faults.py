"""Makes any single step of writing a file fail, or the process die in it."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import resource
from collections.abc import Callable, Iterator
from typing import Any

import pytest


def flip(content: bytes, bit: int) -> bytes:
    """The content with one bit changed."""
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Makes writes past `size` bytes fail, as on a full disk (EFBIG instead of ENOSPC; Python ignores SIGXFSZ)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def disk_full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def step_fails(
    number: int, fail: Callable[[], object], calls: tuple[str, ...] = ("fsync", "replace")
) -> Iterator[list[str]]:
    """Within the block, `fail` replaces the `number`-th of all calls that make or write a file, and of `calls` of `os`.

    A failing write writes half of its bytes first. Yields a list, to which each step appends its name.
    """
    steps: list[str] = []

    def take(name: str) -> None:
        steps.append(name)
        if len(steps) - 1 == number:
            fail()

    class File(io.BufferedWriter):
        def write(self, data: Any) -> int:
            view = memoryview(data).cast("B")
            half = super().write(view[: len(view) // 2])
            self.flush()
            take("write")
            return half + super().write(view[len(view) // 2 :])

    def wrapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            take(name)
            return function(*arguments, **keywords)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fdopen", lambda descriptor, mode: File(io.FileIO(descriptor, mode)))
        real_open, make = os.open, wrapped("make", os.open)

        def open_file(path: Any, flags: int, *mode: int, **keywords: Any) -> int:
            return (make if flags & os.O_CREAT else real_open)(path, flags, *mode, **keywords)

        patch.setattr(os, "open", open_file)
        for name in calls:
            patch.setattr(os, name, wrapped(name, getattr(os, name)))
        yield steps


def dies_in_step(number: int, work: Callable[[], object], calls: tuple[str, ...] = ("fsync", "replace")) -> bool:
    """Runs `work` in a forked child that dies without cleanup in the `number`-th step; False if the child completes."""
    child = os.fork()
    if child == 0:
        try:
            with step_fails(number, lambda: os._exit(9), calls):
                work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9), code
    return code == 9
