"""The next batches, prepared while the model works on this one."""

from __future__ import annotations

from collections import deque
from multiprocessing.util import Finalize
from typing import Any, Generic, TypeVar

from bgpt_fast.data.source import BatchSource, check_int
from bgpt_fast.data.workers import Answer, ProcessWorker, ThreadWorker, WorkerError

__all__ = ["Prefetcher", "WorkerError"]

Batch = TypeVar("Batch")


class Prefetcher(Generic[Batch]):
    """A source whose next batches are prepared in the background.

    Batches come in the source's order, and the position is that of the last batch handed out, whatever has been
    prepared beyond it. The source must not be used otherwise until the prefetcher is closed; it is then ahead of
    `state_dict()`.

    Args:
        source: what gives the batches; with `process`, it must be picklable, as the library's sources are.
        depth: batches that are prepared ahead, each of which takes memory.
        process: a process of its own instead of a thread: for sources that hold the interpreter for long. It is
            spawned, so that a script must guard what it runs with `if __name__ == "__main__"`.

    Raises:
        TypeError, ValueError: a wrong argument.
    """

    def __init__(self, source: BatchSource[Batch], depth: int = 2, *, process: bool = False) -> None:
        check_int("Prefetcher: depth", depth, 1)
        if not isinstance(source, BatchSource):
            raise TypeError(f"Prefetcher: source: expected a source of batches, got {type(source).__name__}")
        self.source = source
        self.depth = depth
        self.process = bool(process)
        self._closed = False
        self._worker: ThreadWorker | ProcessWorker | None = None
        self._finalizer: Finalize | None = None
        self._state: dict[str, Any] | None = None
        self._asked = 0
        self._ready: deque[Answer] = deque()
        self._failure: BaseException | None = None

    def next_batch(self) -> Batch:
        """The next batch, as soon as it is there.

        Raises:
            WorkerError: the worker process ended by itself or was killed; or the prefetcher is closed.
            Exception: what the source raised, after the batches before it were handed out.
        """
        if self._closed:
            raise WorkerError("Prefetcher.next_batch: expected an open prefetcher, got a closed one; make another")
        if self._failure is not None:
            raise self._failure
        self._start()
        answer = self._ready.popleft() if self._ready else self._answer()
        if answer.kind == "error":
            self._failure = answer.value
            self._stop()
            raise answer.value
        self._ask_ahead()
        self._state = answer.state
        return answer.value

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch handed out."""
        return self.source.state_dict() if self._state is None else self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Drops what is prepared and goes to a position of the source.

        Raises:
            DataError: as the source does.
        """
        self._stop()
        self.source.load_state_dict(state)
        self._state = None
        self._failure = None

    def describe(self) -> dict[str, Any]:
        """What the source says of itself; its figures include what is prepared ahead."""
        if self._worker is not None and not any(answer.kind == "error" for answer in self._ready):
            self._worker.ask("describe")
            while True:
                answer = self._answer()
                if answer.kind == "description":
                    return answer.value
                self._ready.append(answer)
                if answer.kind == "error":
                    break
        return self.source.describe()

    def close(self) -> None:
        """Ends the worker, and waits until it has ended; a second time, does nothing."""
        self._closed = True
        self._stop()

    def __enter__(self) -> Prefetcher[Batch]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        if self._worker is not None:
            return
        self._state = self.source.state_dict()
        self._worker = (ProcessWorker if self.process else ThreadWorker)(self.source)
        # This kind also runs before multiprocessing waits, at exit, for its processes to end.
        self._finalizer = Finalize(self, self._worker.stop, exitpriority=10)
        self._ask_ahead()

    def _ask_ahead(self) -> None:
        assert self._worker is not None
        while self._asked + len(self._ready) < self.depth:
            self._worker.ask("next")
            self._asked += 1

    def _answer(self) -> Answer:
        assert self._worker is not None
        answer = self._worker.answer()
        if answer.kind == "batch":
            self._asked -= 1
        return answer

    def _stop(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._worker = self._finalizer = None
        self._asked = 0
        self._ready.clear()
