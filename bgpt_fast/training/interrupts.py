"""Treats SIGTERM and SIGINT as requests to stop after the current step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self


class StopEvaluation(BaseException):
    """Raised inside an evaluation by the first signal; the partial results are dropped."""


class Interrupts:
    """A context manager that records the first SIGTERM or SIGINT; a second one has its usual effect.

    Does nothing outside the main thread, where Python allows no signal handlers.
    """

    def __init__(self) -> None:
        self.received = 0
        self._evaluating = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    @contextlib.contextmanager
    def stopping_evaluation(self) -> Iterator[None]:
        """In this block, the first signal raises `StopEvaluation`, even if it arrived before the block."""
        self._evaluating = True
        try:
            if self.received:
                raise StopEvaluation
            yield
        finally:
            self._evaluating = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()
        if self._evaluating:
            self._evaluating = False
            raise StopEvaluation

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
