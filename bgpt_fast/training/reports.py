"""Reports the figures of a session's steps: to the bar, the log and the dashboards."""

from __future__ import annotations

import dataclasses

from bgpt_fast.training.config import TrainConfig
from bgpt_fast.training.dashboards import Dashboards
from bgpt_fast.training.logs import RunLog
from bgpt_fast.training.progress import Progress, ProgressBar, StepFigures
from bgpt_fast.training.step import StepResult


class StepReports:
    """Reports steps one by one.

    Args:
        config: `log_every` is used.
        bar, log, boards: where to.
        capacity: number of patches that the batches of a step can hold; 0 if that is not known.
        peak: operations per second of all devices by datasheet; 0 if that is not known.

    Attributes:
        patches, seconds, wait_seconds: sums over the reported steps; the last is what they waited for batches.
    """

    def __init__(
        self, config: TrainConfig, bar: ProgressBar, log: RunLog, boards: Dashboards, capacity: int, peak: float
    ) -> None:
        self._config, self._bar, self._log, self._boards = config, bar, log, boards
        self._capacity, self._peak = capacity, peak
        self.patches = 0
        self.seconds = self.wait_seconds = 0.0

    def add(
        self, step: int, rate: float, result: StepResult, progress: Progress, wait_seconds: float, *, is_last: bool
    ) -> None:
        """Reports a step.

        Args:
            step: its number, from 1.
            rate: AdamW's learning rate in it.
            result: its figures.
            progress: when they were read.
            wait_seconds: how long it waited for its batches.
            is_last: whether the run ends with it; it is logged whatever its number.
        """
        stats, seconds = result.stats, progress.last_step_seconds
        figures = StepFigures(
            step=step,
            loss=result.loss,
            bits_per_byte=result.bits_per_byte,
            accuracy=result.accuracy,
            learning_rate=rate,
            grad_norm=result.grad_norm,
            patches=stats.patches,
            documents=stats.documents,
            fill=stats.patches / self._capacity if self._capacity else None,
            patches_per_second=stats.patches / seconds,
            data_wait_share=min(wait_seconds / seconds, 1.0),
            tflops=stats.flops / seconds / 1e12,
            mfu=stats.flops / seconds / self._peak if self._peak else None,
            seconds=progress.seconds,
        )
        self.patches += figures.patches
        self.seconds += seconds
        self.wait_seconds += min(wait_seconds, seconds)
        self._bar.update(figures, progress.share_done(self._config))
        if step % self._config.log_every == 0 or is_last:
            known = {name: value for name, value in dataclasses.asdict(figures).items() if value is not None}
            self._log.write({"kind": "train", **known})
            self._boards.write(step, {name: value for name, value in known.items() if name != "step"}, "train")
