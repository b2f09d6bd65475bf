"""What a run shows while it runs: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


@dataclass(frozen=True)
class StepFigures:
    """One step's figures: loss in nats a position, bits a real byte, learning rate, patches a second, gradient norm."""

    step: int
    loss: float
    bits_per_byte: float
    learning_rate: float
    patches_per_second: float
    grad_norm: float
    seconds: float


class TrainProgress:
    """Shows a run's figures; use as a context manager.

    Args:
        steps: steps of the whole run; 0 where only time limits it.
        console: None means standard error.
        enabled: False shows nothing.
        line_seconds: seconds between plain lines.
        clock: seconds from any origin; for tests.
    """

    def __init__(
        self,
        steps: int,
        *,
        console: Console | None = None,
        enabled: bool = True,
        line_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console(stderr=True)
        self._enabled = enabled
        self._line_seconds = line_seconds
        self._clock = clock
        self._last_line = float("-inf")
        self._of = f"/{steps}" if steps else ""
        self._shown: dict[str, float] = {}
        self._bar: Progress | None = None
        if enabled and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:3.0f}%"),
                TextColumn("{task.description}"),
                console=self._console,
                transient=False,
            )
            self._task = self._bar.add_task("starting", total=1.0)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, figures: StepFigures, done: float, seconds_left: float) -> None:
        """Shows a step: `done` is the share of the run, `seconds_left` an estimate."""
        if not self._enabled:
            return
        text = self._text(figures, seconds_left)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=text)
        elif self._clock() - self._last_line >= self._line_seconds or done >= 1.0:
            self._last_line = self._clock()
            self._console.print(f"{100 * done:3.0f}% · {text}", highlight=False, soft_wrap=True)

    def message(self, text: str) -> None:
        """Shows a line of its own."""
        if self._enabled:
            self._console.print(text, highlight=False, soft_wrap=True, markup=False)

    def _text(self, figures: StepFigures, seconds_left: float) -> str:
        loss = self._smooth("loss", figures.loss)
        bits = self._smooth("bits", figures.bits_per_byte)
        rate = self._smooth("rate", figures.patches_per_second)
        return (
            f"step {figures.step}{self._of} · loss {loss:.4f} · {bits:.4f} bits/byte · {rate:,.0f} patches/s · "
            f"lr {figures.learning_rate:.2e} · {clock_text(seconds_left)} left"
        )

    def _smooth(self, name: str, value: float) -> float:
        self._shown[name] = (
            value if not math.isfinite(self._shown.get(name, math.nan)) else 0.95 * self._shown[name] + 0.05 * value
        )
        return self._shown[name]


def clock_text(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
