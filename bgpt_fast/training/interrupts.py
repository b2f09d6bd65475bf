"""SIGTERM and SIGINT as a wish to stop at the next good moment."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self


class StopEvaluation(BaseException):
    """Raised inside an evaluation by the first signal: what it has so far is dropped, nothing else is lost."""


class Interrupts:
    """Notes SIGTERM and SIGINT while the block runs; the second one acts as it did before.

    Outside the main thread, where Python allows no handlers, nothing is noted.
    """

    def __init__(self) -> None:
        self.received = 0
        self._evaluating = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    @contextlib.contextmanager
    def stopping_evaluation(self) -> Iterator[None]:
        """A block that the first signal leaves at once, by `StopEvaluation`; not entered if it has come already."""
        self._evaluating = True
        try:
            if self.received:
                raise StopEvaluation
            yield
        finally:
            self._evaluating = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()
        if self._evaluating:
            self._evaluating = False
            raise StopEvaluation

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
