"""The settings of a training run."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run; the defaults suit small models.

    Args:
        steps: optimiser steps; 0: no limit but `max_minutes`.
        max_minutes: minutes of training, earlier sessions of the run included, after which it saves and ends. 0: no
            limit.
        schedule_by: "steps", or "time": the learning rate follows the elapsed share of `max_minutes`, or the completed
            share of `steps` (if set) when that is larger. Only "steps" resumes bit for bit.
        learning_rate: peak rate.
        warmup_share: share of the run for linear warm-up from 0.
        schedule: "cosine", or "wsd": warm-up, stable, linear decay.
        decay_share: share of the run, at its end, for the decay of "wsd".
        min_lr_ratio: the final rate as a share of the peak.
        weight_decay: weight decay of matrices; biases, LayerNorms and position embeddings have none.
        betas, eps: AdamW's betas and eps.
        grad_clip: maximum gradient norm; 0 means no clipping.
        accumulation: batches per step; gradients are weighted by targets, so that the step equals one large batch.
        optimizer: "adamw", or "muon": torch.optim.Muon for the matrices of the decoders' layers, AdamW for the rest.
        muon_learning_rate: Muon's peak rate; None means `learning_rate`, as its updates are scaled to match AdamW's.
        muon_momentum: Muon's momentum.
        precision: "fp32"; "bf16": autocast over fp32 weights; or "auto": the faster of the two on this machine, which a
            resumed run keeps.
        targets_per_step: number of target patches sampled at random from each batch for the loss; 0: all.
        eval_every: steps between evaluations; 0 means at the end only.
        sample_every: steps between samples, which `sample` of `Trainer` makes; 0: none.
        save_every: steps between checkpoints; 0 means at the end only.
        keep_last: number of latest checkpoints kept on disk, besides the best one.
        best_metric: the evaluation figure that selects the best checkpoint, which is kept on disk; "": none.
        best_is: whether the "lowest" or the "highest" figure is best.
        stop_at: ends the run once an evaluation's `best_metric` is as good as this; None: never.
        log_every: steps between lines of log.jsonl.
        seed: seed of dropout and target sampling.
        threads: number of CPU threads of torch; None: unchanged.
        device: "auto" is the GPU if there is one; each of several ranks on a machine uses its own GPU.
        parallel: with several ranks (`torchrun`): "ddp" replicates the model on each rank, "fsdp" shards it.
        timeout_seconds: how long a rank waits for another before it fails with `RankFailedError`.
        activation_checkpointing: store only the inputs of the patch decoder's layers; recompute the rest in backward.
        cuda_graph: capture the step (with accumulation or Muon, its forward and backward pass) once for each of a few
            sizes that batches are filled up to, and replay it. For one GPU, with precision "bf16", without dropout, and
            a source with `patches_per_batch`.
        prefetch: number of batches prepared ahead while the model trains; 0: none.
        prefetch_process: prepare batches in another process instead of a thread.
        async_saves: write checkpoints in the background, from copies on the CPU; False: wait for each.
        tensorboard: also write the figures for TensorBoard.
        wandb: also log the figures to Weights & Biases.
        wandb_project: the W&B project name.
        profile_steps: number of steps to profile, with a trace for Perfetto; 0: none.
        profile_after: number of steps in a session before the profiled ones.

    Raises:
        TypeError, ValueError: a field has the wrong type or is out of range.
    """

    steps: int = 1000
    max_minutes: float = 0.0
    schedule_by: Literal["steps", "time"] = "steps"
    learning_rate: float = 1e-3
    warmup_share: float = 0.05
    schedule: Literal["cosine", "wsd"] = "cosine"
    decay_share: float = 0.2
    min_lr_ratio: float = 0.0
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    grad_clip: float = 1.0
    accumulation: int = 1
    optimizer: Literal["adamw", "muon"] = "adamw"
    muon_learning_rate: float | None = None
    muon_momentum: float = 0.95
    precision: Precision = "fp32"
    targets_per_step: int = 0
    eval_every: int = 0
    sample_every: int = 0
    save_every: int = 500
    keep_last: int = 2
    best_metric: str = ""
    best_is: Literal["lowest", "highest"] = "lowest"
    stop_at: float | None = None
    log_every: int = 1
    seed: int = 0
    threads: int | None = None
    device: str = "auto"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    timeout_seconds: float = 600.0
    activation_checkpointing: bool = False
    cuda_graph: bool = False
    prefetch: int = 2
    prefetch_process: bool = False
    async_saves: bool = True
    tensorboard: bool = True
    wandb: bool = False
    wandb_project: str = "bgpt-fast"
    profile_steps: int = 0
    profile_after: int = 10

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            object.__setattr__(
                self, field.name, _checked_type(field.name, getattr(self, field.name), hints[field.name])
            )
        for names, holds, expected in (
            ("steps targets_per_step eval_every sample_every save_every prefetch", lambda x: x >= 0, "at least 0"),
            ("seed", lambda x: 0 <= x < 1 << 63, "0 to 2⁶³ − 1"),
            ("profile_steps profile_after max_minutes weight_decay grad_clip", lambda x: x >= 0, "at least 0"),
            ("accumulation keep_last log_every", lambda x: x >= 1, "at least 1"),
            ("learning_rate eps timeout_seconds", lambda x: x > 0, "a positive number"),
            ("decay_share min_lr_ratio", lambda x: 0 <= x <= 1, "a share from 0 to 1"),
            ("warmup_share", lambda x: 0 <= x < 1, "a share from 0 to less than 1"),
            ("betas", lambda x: all(0 <= beta < 1 for beta in x), "two numbers from 0 to below 1"),
            ("muon_momentum", lambda x: 0 <= x < 1, "0 ≤ momentum < 1"),
            ("muon_learning_rate", lambda x: x is None or x > 0, "a positive number or None"),
            ("stop_at", lambda x: x is None or bool(self.best_metric), "None where there is no best_metric"),
            ("threads", lambda x: x is None or 1 <= x <= 1024, "1 to 1,024, or None"),
        ):
            for name in names.split():
                value = getattr(self, name)
                if not holds(value):
                    raise ValueError(f"TrainConfig.{name}: expected {expected}, got {value!r}")
        if self.optimizer == "muon" and self.parallel == "fsdp":
            raise ValueError(
                'TrainConfig.parallel: "fsdp" splits the matrices that Muon needs whole; use "ddp" or "adamw"'
            )
        if self.schedule == "wsd" and self.warmup_share + self.decay_share > 1.0:
            raise ValueError(
                f"TrainConfig: warmup_share {self.warmup_share} + decay_share {self.decay_share}: expected at most 1"
            )
        if self.steps == 0 and self.max_minutes == 0:
            raise ValueError("TrainConfig: steps and max_minutes are both 0: expected a limit; set one of them")
        if self.schedule_by == "time" and self.max_minutes == 0:
            raise ValueError('TrainConfig.schedule_by: "time" needs max_minutes above 0')
        if self.schedule_by == "steps" and self.steps == 0:
            raise ValueError(
                'TrainConfig.steps: expected at least 1 for schedule_by="steps", got 0; or use schedule_by="time"'
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields as a JSON-serialisable dict."""
        fields = dataclasses.asdict(self)
        fields["betas"] = list(self.betas)
        return fields

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> TrainConfig:
        """The inverse of `to_dict`; raises ValueError on unknown fields."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - known)
        if unknown:
            raise ValueError(f"TrainConfig: unknown fields {unknown}; known are {sorted(known)}")
        return cls(**fields)


def _checked_type(name: str, value: Any, hint: Any) -> Any:
    """Checks a field's type and returns `value`; an int is converted to float for a float field, nothing else is."""
    choices = get_args(hint)
    if hint == tuple[float, float]:
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise TypeError(f"TrainConfig.{name}: expected two numbers, got {value!r}")
        return tuple(_checked_type(name, item, float) for item in value)
    if choices and isinstance(choices[0], str):
        if value not in choices:
            raise ValueError(f"TrainConfig.{name}: expected one of {list(choices)}, got {value!r}")
        return value
    if type(None) in choices:
        return None if value is None else _checked_type(name, value, choices[0])
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise TypeError(f"TrainConfig.{name}: expected {hint.__name__}, got {type(value).__name__} {value!r}")
    if hint is float and not math.isfinite(value):
        raise ValueError(f"TrainConfig.{name}: expected a finite number, got {value}")
    return value
