"""A function over many items on several processes, in order, which survives items that kill their process."""

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

_ITEMS_A_CHUNK = 16
_CHUNKS_AHEAD = 4
_FEW = 256


def ordered_map(
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: int, crashed: Callable[[Item], Result]
) -> Iterator[Result]:
    """`function` of each item, in order; a few chunks are under way beyond the one that is asked for.

    Args:
        function: pickles; what it raises is raised here.
        items: pickle.
        workers: processes; 0 means one a core. With one, or few items, all runs in this process.
        crashed: gives the result of an item that ended its process, as a decoder's segmentation fault does.

    Raises:
        ValueError: fewer workers than none.
    """
    if workers < 0:
        raise ValueError(f"workers: expected 0 or more, got {workers}")
    workers = workers or len(os.sched_getaffinity(0))
    if workers == 1 or len(items) < _FEW:
        yield from map(function, items)
        return
    chunks = [items[start : start + _ITEMS_A_CHUNK] for start in range(0, len(items), _ITEMS_A_CHUNK)]
    pool = _pool(workers)
    under_way: collections.deque[tuple[Sequence[Item], Future[list[Result]]]] = collections.deque()
    try:
        upcoming = iter(chunks)
        while True:
            while len(under_way) < workers * _CHUNKS_AHEAD and (chunk := next(upcoming, None)) is not None:
                under_way.append((chunk, pool.submit(_all, function, chunk)))
            if not under_way:
                return
            chunk, future = under_way.popleft()
            try:
                results = future.result()
            except BrokenProcessPool:
                results = list(_one_by_one(function, chunk, crashed))
                pool = _pool(workers)
                under_way = collections.deque((later, pool.submit(_all, function, later)) for later, _ in under_way)
            yield from results
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _pool(workers: int) -> ProcessPoolExecutor:
    # Not fork: this process has torch's threads.
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin)


def _begin() -> None:
    """Ctrl-C is for the parent; and decoders print warnings that name no file."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)


def _all(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]


def _one_by_one(
    function: Callable[[Item], Result], items: Sequence[Item], crashed: Callable[[Item], Result]
) -> Iterator[Result]:
    """Each item in a process where nothing else can have crashed."""
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
