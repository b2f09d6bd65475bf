"""An ordered map over several processes, which continues if an item crashes its process."""

from __future__ import annotations

import collections
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_NO_GUARD = (
    'expected the script to call this below `if __name__ == "__main__":`, since each worker process imports the '
    "script; add that line, or pass workers=1"
)
_ITEMS_A_CHUNK = 16
_CHUNKS_AHEAD = 4
_FEW = 256


class WorkerStartError(RuntimeError):
    """Worker processes end before they do any work, such as those of a script without a main guard."""


def check_main_guard() -> None:
    """Call this first in a function that uses `ordered_map`: a worker that imports the script then stops at once.

    Raises:
        WorkerStartError: this is a worker process that is importing the script.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as in multiprocessing.spawn
        raise WorkerStartError(_NO_GUARD)


def ordered_map(
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: int, crashed: Callable[[Item], Result]
) -> Iterator[Result]:
    """Yields `function` of each item, in order; computes a few chunks ahead.

    Args:
        function: must be picklable; its exceptions are raised here.
        items: must be picklable.
        workers: number of processes; 0 means one per core. With one worker, or few items, all run in this process.
        crashed: returns the result of an item that crashed its process, such as by a segmentation fault of a decoder.

    Raises:
        ValueError: workers is negative.
        WorkerStartError: the processes end before they do any work.
    """
    if workers < 0:
        raise ValueError(f"workers: expected 0 or more, got {workers}")
    workers = workers or len(os.sched_getaffinity(0))
    if workers == 1 or len(items) < _FEW:
        yield from map(function, items)
        return
    chunks = [items[start : start + _ITEMS_A_CHUNK] for start in range(0, len(items), _ITEMS_A_CHUNK)]
    pool = _pool(workers)
    started: Future[None] | None = pool.submit(_do_nothing)
    running: collections.deque[tuple[Sequence[Item], Future[list[Result]]]] = collections.deque()
    try:
        upcoming = iter(chunks)
        while True:
            while len(running) < workers * _CHUNKS_AHEAD and (chunk := next(upcoming, None)) is not None:
                running.append((chunk, pool.submit(_all, function, chunk)))
            if not running:
                return
            if started is not None:
                _check_started(started)
                started = None
            chunk, future = running.popleft()
            try:
                results = future.result()
            except BrokenProcessPool:
                results = list(_one_by_one(function, chunk, crashed))
                pool = _pool(workers)
                running = collections.deque((later, pool.submit(_all, function, later)) for later, _ in running)
            yield from results
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _pool(workers: int) -> ProcessPoolExecutor:
    # Not fork, because this process has torch's threads.
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)


def _do_nothing() -> None:
    """The first item of a pool, which only a process that does not start fails to complete."""


def _check_started(started: Future[None]) -> None:
    try:
        started.result()
    except BrokenProcessPool as error:
        raise WorkerStartError(f"worker processes end at their start: {_NO_GUARD}") from error


def _start_worker() -> None:
    """Ignores SIGINT, which the parent handles, and suppresses the decoders' warnings, which name no file."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)


def _all(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]


def _one_by_one(
    function: Callable[[Item], Result], items: Sequence[Item], crashed: Callable[[Item], Result]
) -> Iterator[Result]:
    """Yields each item's result from a process that runs no other item at the same time."""
    pool = _pool(1)
    try:
        for item in items:
            try:
                yield pool.submit(function, item).result()
            except BrokenProcessPool:
                pool = _pool(1)
                yield crashed(item)
    finally:
        pool.shutdown()
