"""The learning rate as a function of the completed share of the run; stateless."""

from __future__ import annotations

import math

from bgpt_fast.training.config import TrainConfig


def schedule_factor(config: TrainConfig, progress: float) -> float:
    """The learning rate as a share of its peak.

    Args:
        config: `schedule`, `warmup_share`, `decay_share` and `min_lr_ratio` are used.
        progress: completed share of the run; values outside 0…1 are clamped.

    Returns:
        A number from 0 to 1.
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < config.warmup_share:
        return progress / config.warmup_share
    last = config.min_lr_ratio
    if config.schedule == "cosine":
        done = (progress - config.warmup_share) / (1.0 - config.warmup_share)
        return last + (1.0 - last) * 0.5 * (1.0 + math.cos(math.pi * done))
    start = 1.0 - config.decay_share
    if progress < start or config.decay_share == 0.0:
        return 1.0
    return 1.0 - (1.0 - last) * (progress - start) / config.decay_share


def step_progress(config: TrainConfig, step: int) -> float:
    """The share of `config.steps` completed in the middle of step `step` (from 0), so that no step has rate 0."""
    return (step + 0.5) / config.steps


def time_progress(config: TrainConfig, step: int, seconds: float, last_step_seconds: float) -> float:
    """The share of `config.max_minutes` elapsed in the middle of a step that starts at `seconds`.

    If `config.steps` limits the run too, the larger share counts. A step is assumed to take as long as the previous
    one; the first, one second.
    """
    by_time = (seconds + 0.5 * (last_step_seconds or 1.0)) / (60.0 * config.max_minutes)
    return max(by_time, step_progress(config, step)) if config.steps else by_time
