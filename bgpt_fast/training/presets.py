"""Named model sizes and training settings, as starting points."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from bgpt_fast.config import BGPTConfig
from bgpt_fast.training.config import TrainConfig


class Preset(NamedTuple):
    """A model config, training settings, and the number of patches per batch of files."""

    model: BGPTConfig
    training: TrainConfig
    patches_per_batch: int


_TINY = Preset(
    BGPTConfig(
        patch_length=128,
        hidden_size=128,
        patch_num_layers=4,
        byte_num_layers=1,
        num_heads=4,
        byte_num_heads=8,
        position_init_std=0.1,
    ),
    TrainConfig(
        steps=0,
        max_minutes=5.0,
        schedule_by="time",
        schedule="wsd",
        warmup_share=0.03,
        decay_share=0.5,
        optimizer="muon",
        muon_learning_rate=0.02,
        learning_rate=3e-3,
        precision="auto",
        eval_every=200,
    ),
    patches_per_batch=512,
)
PRESETS: dict[str, Preset] = {
    "cpu-states": Preset(
        dataclasses.replace(
            _TINY.model,
            patch_size=8,
            patch_length=32,
            byte_num_heads=16,
            position_init_std=0.3,
            byte_init="numeric",
            byte_init_std=0.05,
        ),
        dataclasses.replace(_TINY.training, decay_share=0.97, weight_decay=0.0, eps=1e-10),
        patches_per_batch=2048,
    ),
    "tiny": _TINY,
    "small": Preset(
        BGPTConfig(patch_length=256, hidden_size=384, patch_num_layers=6, byte_num_layers=2),
        TrainConfig(
            steps=20_000,
            schedule="wsd",
            warmup_share=0.02,
            optimizer="muon",
            muon_learning_rate=0.02,
            learning_rate=1e-3,
            precision="auto",
            eval_every=1000,
            save_every=1000,
        ),
        patches_per_batch=4096,
    ),
    "paper-110m": Preset(
        BGPTConfig(),
        TrainConfig(
            steps=100_000,
            schedule="cosine",
            warmup_share=0.1,
            learning_rate=1e-4,
            betas=(0.9, 0.999),
            weight_decay=0.01,
            precision="auto",
            eval_every=2000,
            save_every=2000,
        ),
        patches_per_batch=8192,
    ),
}
"""`cpu-states`: learns the toy CPU in minutes on two cores. `tiny`: files, in minutes on two cores. `small`: an hour on
a GPU. `paper-110m`: the paper's model, with its optimiser (AdamW, 10 % warm-up and cosine)."""
