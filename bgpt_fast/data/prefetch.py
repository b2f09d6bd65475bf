"""Prepares the next batches while the model processes the current one."""

from __future__ import annotations

from collections import deque
from multiprocessing.util import Finalize
from typing import Any, Generic, TypeVar

from bgpt_fast.checks import check_int
from bgpt_fast.data.source import BatchSource
from bgpt_fast.data.workers import ProcessWorker, Response, ThreadWorker, WorkerError

__all__ = ["Prefetcher", "WorkerError"]

Batch = TypeVar("Batch")


class Prefetcher(Generic[Batch]):
    """A source whose next batches are prepared in the background.

    Batches keep the source's order, and `state_dict()` is the position after the last batch that `next_batch` returned,
    however many are prepared. Nothing else may use the source until the prefetcher is closed; the source itself is
    then ahead of that position.

    Args:
        source: the source of the batches; with `process`, it must be picklable, as the library's sources are.
        depth: number of batches prepared ahead; each takes memory.
        process: use a separate process instead of a thread, for sources that hold the GIL for long. It is spawned, so
            a script must guard its code with `if __name__ == "__main__"`.
        pin_memory: call each batch's `pin_memory`, so that it can be copied to a GPU without a wait: in the thread that
            prepares it; of a process's batch, when it arrives here.

    Raises:
        TypeError, ValueError: an invalid argument.
    """

    def __init__(
        self, source: BatchSource[Batch], depth: int = 2, *, process: bool = False, pin_memory: bool = False
    ) -> None:
        check_int("Prefetcher: depth", depth, 1)
        if not isinstance(source, BatchSource):
            raise TypeError(f"Prefetcher: source: expected a source of batches, got {type(source).__name__}")
        self.source = source
        self.depth = depth
        self.process = bool(process)
        self.pin_memory = bool(pin_memory)
        self._closed = False
        self._worker: ThreadWorker | ProcessWorker | None = None
        self._finalizer: Finalize | None = None
        self._state: dict[str, Any] | None = None
        self._pending = 0
        self._ready: deque[Response] = deque()
        self._failure: BaseException | None = None

    def next_batch(self) -> Batch:
        """The next batch; blocks until it is prepared.

        Raises:
            WorkerError: the worker process exited or was killed; or the prefetcher is closed.
            Exception: the source's exception, raised after the batches that preceded it.
        """
        if self._closed:
            raise WorkerError("Prefetcher.next_batch: expected an open prefetcher, got a closed one; make another")
        if self._failure is not None:
            raise self._failure
        self._start()
        response = self._ready.popleft() if self._ready else self._next_response()
        if response.kind == "error":
            self._failure = response.value
            self._stop()
            raise response.value
        self._request_ahead()
        self._state = response.state
        return response.value

    def state_dict(self) -> dict[str, Any]:
        """The position after the last returned batch."""
        return self.source.state_dict() if self._state is None else self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Drops the prepared batches and restores a position of the source.

        Raises:
            DataError: raised by the source.
        """
        self._stop()
        self.source.load_state_dict(state)
        self._state = None
        self._failure = None

    def describe(self) -> dict[str, Any]:
        """The source's description; its statistics include the prepared batches."""
        if self._worker is not None and not any(response.kind == "error" for response in self._ready):
            self._worker.request("describe")
            while True:
                response = self._next_response()
                if response.kind == "description":
                    return response.value
                self._ready.append(response)
                if response.kind == "error":
                    break
        return self.source.describe()

    def close(self) -> None:
        """Stops the worker and waits for it; idempotent."""
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
        self._worker = (ProcessWorker if self.process else ThreadWorker)(self.source, self.pin_memory)
        # Unlike weakref.finalize, this runs before multiprocessing joins its processes at exit.
        self._finalizer = Finalize(self, self._worker.stop, exitpriority=10)
        self._request_ahead()

    def _request_ahead(self) -> None:
        assert self._worker is not None
        while self._pending + len(self._ready) < self.depth:
            self._worker.request("next")
            self._pending += 1

    def _next_response(self) -> Response:
        assert self._worker is not None
        response = self._worker.response()
        if response.kind == "batch":
            self._pending -= 1
        return response

    def _stop(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._worker = self._finalizer = None
        self._pending = 0
        self._ready.clear()
