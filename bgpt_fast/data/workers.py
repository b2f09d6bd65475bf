"""A source in a thread or a process of its own, asked for one thing after the other."""

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
    """A data worker is gone; says how it ended and what to do."""


class Answer(NamedTuple):
    """A "batch" with the source's state after it, a "description", or an "error", after which none follows."""

    kind: Literal["batch", "description", "error"]
    value: Any
    state: dict[str, Any] | None = None


class ThreadWorker:
    """A source in a thread."""

    def __init__(self, source: BatchSource[Any]) -> None:
        self._requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=_serve, args=(source, self._requests.get, self._answers.put), name="bgpt-data", daemon=True
        )
        self._thread.start()

    def ask(self, request: Request) -> None:
        """Puts a request behind those that came before."""
        self._requests.put(request)

    def answer(self) -> Answer:
        """Waits for the next answer; a source's own error is one."""
        return self._answers.get()

    def stop(self) -> None:
        """Lets the batch that is being made end, and the thread with it."""
        # What was asked before is not wanted any more.
        with contextlib.suppress(queue.Empty):
            while True:
                self._requests.get_nowait()
        self._requests.put("stop")
        if threading.current_thread() is not self._thread:
            self._thread.join()


class ProcessWorker:
    """A source in a spawned process."""

    def __init__(self, source: BatchSource[Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve_process, args=(pickle.dumps(source), theirs), name="bgpt-data", daemon=True
        )
        self._process.start()
        theirs.close()

    def ask(self, request: Request) -> None:
        """Puts a request behind those that came before."""
        # If the process is gone, waiting for its answer will say so.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.send(request)

    def answer(self) -> Answer:
        """Waits for the next answer; a source's own error is one, and so is the end of the process."""
        wait([self._connection, self._process.sentinel])
        try:
            # What it sent before its end is still there.
            if self._connection.poll():
                return pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            pass  # killed while it sent
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
        return Answer("error", WorkerError(text))

    def stop(self) -> None:
        """Ends the process, by force if it does not end by itself."""
        self.ask("stop")
        # Closed first: a worker that waits for its answer to be read wakes up.
        self._connection.close()
        self._process.join(_SECONDS_TO_END)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


def _serve(source: BatchSource[Any], receive: Callable[[], Request], send: Callable[[Answer], None]) -> None:
    while (request := receive()) != "stop":
        try:
            if request == "next":
                answer = Answer("batch", source.next_batch(), source.state_dict())
            else:
                answer = Answer("description", source.describe())
        except BaseException as error:  # whatever it is, the consumer must hear of it
            send(Answer("error", error))
            return
        send(answer)


def _serve_process(pickled: bytes, connection: Connection) -> None:
    # A signal to the whole group is the trainer's to handle; it may need one more batch to end its step.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    answers: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
    # Sent from a thread: a batch that nobody has read yet does not keep the next one from being made.
    sender = threading.Thread(target=_send_all, args=(connection, answers), daemon=True)
    sender.start()

    def receive() -> Request:
        try:
            return connection.recv()
        except (EOFError, OSError):
            return "stop"

    _serve(pickle.loads(pickled), receive, answers.put)
    answers.put(None)
    sender.join()


def _send_all(connection: Connection, answers: queue.SimpleQueue[Answer | None]) -> None:
    while (answer := answers.get()) is not None:
        try:
            data = pickle.dumps(answer)
            if answer.kind == "error":
                pickle.loads(data)  # an exception may be written and yet not be read again
        except Exception as error:
            text = f"{type(answer.value).__name__}: {answer.value}" if answer.kind == "error" else repr(error)
            data = pickle.dumps(Answer("error", WorkerError(f"the data worker cannot send what it has: {text}")))
        try:
            connection.send_bytes(data)
        except OSError:
            return
