"""A run's progress and its display: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn
from rich.progress import Progress as RichProgress

from bgpt_fast.terminal import new_console, printable_lines, text_column
from bgpt_fast.training.config import TrainConfig

_BAR_WIDTH = 10
_SEPARATOR = " · "


@dataclass
class Progress:
    """The progress of a run.

    Args:
        step: steps done.
        seconds: training time, earlier sessions included.
        last_step_seconds: duration of the last step.
        loss: loss of the last step, in nats per position; NaN before the first.
        evaluated_step: the step of the last evaluation.
        evaluation: figures of the last evaluation by name.
        best: `best_metric` of the best evaluation so far; None if there is none.
    """

    step: int = 0
    seconds: float = 0.0
    last_step_seconds: float = 0.0
    loss: float = math.nan
    evaluated_step: int = 0
    evaluation: dict[str, float] = field(default_factory=dict)
    best: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as a JSON-serialisable dict, without non-finite figures."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "last_step_seconds": self.last_step_seconds,
            "loss": self.loss if math.isfinite(self.loss) else None,
            "evaluated_step": self.evaluated_step,
            "evaluation": {name: value for name, value in self.evaluation.items() if math.isfinite(value)},
            "best": self.best,
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Progress:
        """The inverse of `to_dict`."""
        loss = math.nan if state["loss"] is None else state["loss"]
        return cls(**{name: state[name] for name in cls.__dataclass_fields__} | {"loss": loss})

    def stopped_by(self, config: TrainConfig) -> str:
        """The limit that the run has reached: "steps", "time" or "target"; "" if it has reached none."""
        if config.steps and self.step >= config.steps:
            return "steps"
        if config.max_minutes and self.seconds >= 60.0 * config.max_minutes:
            return "time"
        value, target = self.evaluation.get(config.best_metric, math.nan), config.stop_at
        if target is not None and (value >= target if config.best_is == "highest" else value <= target):
            return "target"
        return ""

    def share_done(self, config: TrainConfig) -> float:
        """The completed share of the run's steps or minutes, whichever is larger, from 0 to 1."""
        by_steps = self.step / config.steps if config.steps else 0.0
        by_time = self.seconds / (60.0 * config.max_minutes) if config.max_minutes else 0.0
        return min(max(by_steps, by_time), 1.0)


@dataclass(frozen=True)
class StepFigures:
    """The figures of a step, over all ranks.

    Args:
        step: from 1.
        loss: nats per position, or per document for a classifier.
        bits_per_byte: bits per real byte; None for a classifier.
        accuracy: share of documents classified correctly; None for a generative model.
        learning_rate: AdamW's learning rate.
        grad_norm: gradient norm before clipping.
        patches, documents: numbers in the step's batches.
        fill: patches as a share of the batches' capacity; None if the source does not state its capacity.
        patches_per_second: training throughput.
        data_wait_share: share of the step that rank 0 spent waiting for its batches, from 0 to 1.
        tflops: 10¹² operations per second, counted by `bgpt_fast.flops`.
        mfu: `tflops` as a share of the datasheet peak of all devices; None if that is unknown.
        seconds: training time so far.
    """

    step: int
    loss: float
    bits_per_byte: float | None
    accuracy: float | None
    learning_rate: float
    grad_norm: float
    patches: int
    documents: int
    fill: float | None
    patches_per_second: float
    data_wait_share: float
    tflops: float
    mfu: float | None
    seconds: float


class ProgressBar:
    """Shows a run's figures; use as a context manager.

    Args:
        steps: total steps of the run; 0 if only time limits it.
        console: None means standard error.
        enabled: False shows nothing.
        line_seconds: seconds between plain lines.
        clock: returns seconds from any origin; for tests.
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
        self._console = console or new_console(stderr=True)
        self._enabled = enabled
        self._line_seconds = line_seconds
        self._clock = clock
        self._last_line = float("-inf")
        self._of = f"/{steps}" if steps else ""
        self._averages: dict[str, _Average] = {}
        self._bar: RichProgress | None = None
        if enabled and self._console.is_terminal:
            self._bar = RichProgress(
                text_column("{task.percentage:3.0f}%"),
                BarColumn(bar_width=_BAR_WIDTH),
                text_column("{task.description}"),
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

    def update(self, figures: StepFigures, done: float) -> None:
        """Shows a step; `done` is the completed share of the run, used to estimate the remaining time."""
        if not self._enabled:
            return
        parts = self._parts(figures, figures.seconds * (1.0 - done) / done if done else 0.0)
        if self._bar is not None:
            space = self._console.width - _BAR_WIDTH - len("100% ") - len(" ")
            self._bar.update(self._task, completed=done, description=_fitted(parts, space))
        elif self._clock() - self._last_line >= self._line_seconds or done >= 1.0:
            self._last_line = self._clock()
            self.message(f"{100 * done:3.0f}% · {_SEPARATOR.join(parts)}")

    def message(self, text: str) -> None:
        """Shows a line of text; no failure to write it ends a run."""
        if self._enabled:
            with contextlib.suppress(OSError):
                self._console.print(printable_lines(text), soft_wrap=True)

    def _parts(self, figures: StepFigures, seconds_left: float) -> list[str]:
        """The figures as texts, the most important ones first."""
        parts = [f"step {figures.step}{self._of}", f"loss {self._smooth('loss', figures.loss):.4f}"]
        if figures.bits_per_byte is not None:
            parts.append(f"{self._smooth('bits', figures.bits_per_byte):.4f} bits/byte")
        if figures.accuracy is not None:
            parts.append(f"{100 * self._smooth('accuracy', figures.accuracy):.1f}% right")
        parts.append(f"{clock_text(seconds_left)} left")
        parts.append(f"{self._smooth('rate', figures.patches_per_second):,.0f} patches/s")
        parts.append(f"data {100 * self._smooth('data', figures.data_wait_share):.1f}%")
        if figures.mfu is not None:
            parts.append(f"MFU {100 * self._smooth('mfu', figures.mfu):.1f}%")
        if figures.fill is not None:
            parts.append(f"{100 * self._smooth('fill', figures.fill):.1f}% full")
        parts.append(f"lr {figures.learning_rate:.2e}")
        return parts

    def _smooth(self, name: str, value: float) -> float:
        return self._averages.setdefault(name, _Average()).add(value)


class _Average:
    """An exponential moving average with bias correction: after n values, their weighted mean, without a start value.

    Values that are not finite are left out.
    """

    def __init__(self, weight: float = 0.9) -> None:
        self._weight = weight
        self._sum = self._total = 0.0

    def add(self, value: float) -> float:
        """Adds a value and returns the average; NaN before the first finite value."""
        if math.isfinite(value):
            self._sum = self._weight * self._sum + (1 - self._weight) * value
            self._total = self._weight * self._total + (1 - self._weight)
        return self._sum / self._total if self._total else math.nan


def _fitted(parts: list[str], width: int) -> str:
    """As many of the first parts as fit the width, at least one, in one line."""
    while len(parts) > 1 and len(_SEPARATOR.join(parts)) > width:
        parts = parts[:-1]
    return _SEPARATOR.join(parts)


_COUNTS = {"bytes", "documents", "programs", "state_bytes"}


def figures_text(figures: Mapping[str, float]) -> str:
    """The figures of an evaluation in one line: counts as whole numbers, everything else with four decimals."""
    texts = (f"{name} {value:,.0f}" if name in _COUNTS else f"{name} {value:.4f}" for name, value in figures.items())
    return _SEPARATOR.join(texts)


def clock_text(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
