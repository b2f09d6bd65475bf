"""Runs a source in a separate thread or process, which serves requests one after the other."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import queue
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, Literal, NamedTuple

import torch

from bgpt_fast.data.source import BatchSource, DataError

Request = Literal["next", "describe", "stop"]
_SECONDS_TO_END = 5.0


class WorkerError(DataError):
    """A data worker has ended; the message says how, and what to do."""


class Response(NamedTuple):
    """A "batch" with the source's state after it, a "description", or an "error", which is the last response."""

    kind: Literal["batch", "description", "error"]
    value: Any
    state: dict[str, Any] | None = None


class ThreadWorker:
    """Runs a source in a thread; with `pin_memory`, it calls each batch's method of that name."""

    def __init__(self, source: BatchSource[Any], pin_memory: bool = False) -> None:
        self._requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._responses: queue.SimpleQueue[Response] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=_serve,
            args=(source, self._requests.get, self._responses.put, pin_memory),
            name="bgpt-data",
            daemon=True,
        )
        self._thread.start()

    def request(self, request: Request) -> None:
        """Adds a request to the worker's queue."""
        self._requests.put(request)

    def response(self) -> Response:
        """Waits for the next response, which may be an error of the source."""
        return self._responses.get()

    def stop(self) -> None:
        """Ends the thread after the batch that it is preparing."""
        # Drop the pending requests.
        with contextlib.suppress(queue.Empty):
            while True:
                self._requests.get_nowait()
        self._requests.put("stop")
        if threading.current_thread() is not self._thread:
            self._thread.join()


class ProcessWorker:
    """Runs a source in a spawned process; with `pin_memory`, `response` calls a batch's method of that name."""

    def __init__(self, source: BatchSource[Any], pin_memory: bool = False) -> None:
        self._pin_memory = pin_memory
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve_process, args=(pickle.dumps(source), theirs), name="bgpt-data", daemon=True
        )
        self._process.start()
        theirs.close()

    def request(self, request: Request) -> None:
        """Adds a request to the worker's queue."""
        # If the process has ended, `response` reports it.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.send(request)

    def response(self) -> Response:
        """Waits for the next response, which may be an error of the source or the end of the process."""
        wait([self._connection, self._process.sentinel])
        try:
            # A response that the process sent before it ended can still be read.
            if self._connection.poll():
                response = pickle.loads(self._connection.recv_bytes())
                return _pinned(response) if self._pin_memory and response.kind == "batch" else response
        except (EOFError, OSError):
            pass  # killed while sending
        self._process.join()
        code = self._process.exitcode or 0
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            advice = "see whether memory ran out (a smaller depth or batch helps)"
        else:
            how = f"ended with exit code {code}"
            advice = (
                'read what it wrote to standard error; a script must guard what it runs by `__name__ == "__main__"`'
            )
        text = f"the data worker, process {self._process.pid}, {how}: expected it to run on; {advice}"
        return Response("error", WorkerError(text))

    def stop(self) -> None:
        """Ends the process; kills it if it does not end in time."""
        self.request("stop")
        # Close first: this wakes a worker that blocks on sending its response.
        self._connection.close()
        self._process.join(_SECONDS_TO_END)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


def _pinned(response: Response) -> Response:
    return response._replace(value=response.value.pin_memory())


def _serve(
    source: BatchSource[Any],
    receive: Callable[[], Request],
    send: Callable[[Response], None],
    pin_memory: bool = False,
) -> None:
    while (request := receive()) != "stop":
        try:
            if request == "next":
                response = Response("batch", source.next_batch(), source.state_dict())
                response = _pinned(response) if pin_memory else response
            else:
                response = Response("description", source.describe())
        except BaseException as error:  # any error must reach the consumer
            send(Response("error", error))
            return
        send(response)


def _serve_process(pickled: bytes, connection: Connection) -> None:
    # Signals to the process group are left to the trainer, which may need one more batch to finish its step.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    responses: queue.SimpleQueue[Response | None] = queue.SimpleQueue()
    # A thread sends, so that a batch that has not been read yet does not delay the preparation of the next one.
    sender = threading.Thread(target=_send_all, args=(connection, responses), daemon=True)
    sender.start()

    def receive() -> Request:
        try:
            return connection.recv()
        except (EOFError, OSError):
            return "stop"

    _serve(pickle.loads(pickled), receive, responses.put)
    responses.put(None)
    sender.join()


def _send_all(connection: Connection, responses: queue.SimpleQueue[Response | None]) -> None:
    while (response := responses.get()) is not None:
        try:
            data = pickle.dumps(response)
            if response.kind == "error":
                pickle.loads(data)  # some exceptions can be pickled but not unpickled
        except Exception as error:
            text = f"{type(response.value).__name__}: {response.value}" if response.kind == "error" else repr(error)
            data = pickle.dumps(Response("error", WorkerError(f"the data worker cannot send its response: {text}")))
        try:
            connection.send_bytes(data)
        except OSError:
            return
