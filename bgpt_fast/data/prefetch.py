"""The next batches are prepared while the model works on the current one."""

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

    Batches come in the source's order, and the position is that of the last batch that `next_batch` returned, however
    many are prepared. Nothing else may use the source until the prefetcher is closed; it is then ahead of
    `state_dict()`.

    Args:
        source: the source of the batches; with `process`, it must be picklable, as the library's sources are.
        depth: batches that are prepared ahead, each of which takes memory.
        process: a process of its own instead of a thread: for sources that hold the interpreter's lock for long. It is
            spawned, so that a script must guard its code with `if __name__ == "__main__"`.

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
        self._pending = 0
        self._ready: deque[Response] = deque()
        self._failure: BaseException | None = None

    def next_batch(self) -> Batch:
        """The next batch; waits until it is prepared.

        Raises:
            WorkerError: the worker process ended by itself or was killed; or the prefetcher is closed.
            Exception: what the source raised, after the batches before it.
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
        """The position after the last batch that was returned."""
        return self.source.state_dict() if self._state is None else self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Drops the prepared batches and goes to a position of the source.

        Raises:
            DataError: as the source does.
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
        """Ends the worker and waits for its end; a second time, does nothing."""
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
        # Unlike weakref.finalize, this runs before multiprocessing waits for its processes at exit.
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
