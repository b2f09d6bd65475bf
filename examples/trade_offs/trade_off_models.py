"""The models that `trade_offs.py` compares, and the settings of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import training_runs as runs
from flat_baseline import FlatConfig, FlatModel, flat_of_equal_compute

from bgpt_fast import BGPT, BGPTConfig, PackedPatches
from bgpt_fast.training import TrainConfig

PATCH_SIZES = (4, 8, 16, 32)
REFERENCE = "S16 4+1"
FLAT, FLAT_BYTES = "flat", "flat, as many bytes"


@dataclass(frozen=True)
class Settings:
    """Settings of all models.

    Args:
        hidden_size, num_heads, byte_num_heads, position_init_std: of each bGPT.
        splits: numbers of layers of the patch decoder and of the byte decoder. The first pair is tried with all patch
            sizes, the others with the patch size `split_size`.
        flat_layers, flat_heads: of the flat model; its width is derived from the operations.
        most: number of training documents of each kind.
        scored: number of held-out documents of each kind.
        text_bytes: length of a piece of text, the longest document.
        documents: documents in a batch.
        minutes: training time of each model on one core or GPU.
        training: see `TrainConfig`; the number of steps follows from the measured time of a step.
        patch_sizes: patch sizes to try.
        new_bytes: length of each of 16 continuations, for the speed of generation.
    """

    hidden_size: int
    num_heads: int
    byte_num_heads: int
    position_init_std: float
    splits: tuple[tuple[int, int], ...]
    flat_layers: int
    flat_heads: int
    most: int
    scored: int
    text_bytes: int
    documents: int
    minutes: float
    training: TrainConfig
    patch_sizes: tuple[int, ...] = PATCH_SIZES
    split_size: int = 16
    new_bytes: int = 128


SMALL = Settings(
    hidden_size=64,
    num_heads=2,
    byte_num_heads=4,
    position_init_std=0.1,
    splits=((4, 1), (3, 2), (2, 3)),
    flat_layers=2,
    flat_heads=2,
    most=4000,
    scored=120,
    text_bytes=480,
    documents=16,
    minutes=1.0,
    training=runs.cpu_training(learning_rate=3e-3, muon_learning_rate=0.02, warmup_share=0.03, decay_share=0.5),
)
"""Settings that train on a CPU: 0.3 to 0.8 M parameters."""
FULL = Settings(
    hidden_size=768,
    num_heads=12,
    byte_num_heads=12,
    position_init_std=0.02,
    splits=((12, 3), (8, 7), (4, 11)),
    flat_layers=12,
    flat_heads=8,
    most=1_000_000,
    scored=300,
    text_bytes=8000,
    documents=32,
    minutes=120.0,
    training=runs.gpu_training(),
)
"""The paper's width, depth and context, for a GPU."""


@dataclass(frozen=True)
class Variant:
    """A model of the comparison: a bGPT, or with `flat` a flat model on the batches of `config`.

    Args:
        name: in the results.
        config: the bGPT, or the one whose batches the flat model gets.
        flat: the flat model's sizes.
        steps_of: the variant whose number of steps it uses; "" means as many as fit the training time.
    """

    name: str
    config: BGPTConfig
    flat: FlatConfig | None = None
    steps_of: str = ""

    def make(self, seed: int) -> BGPT | FlatModel:
        """Returns the model with its initial weights."""
        torch.manual_seed(seed)
        return BGPT(self.config) if self.flat is None else FlatModel(self.flat)


def variants(settings: Settings, sample: Sequence[tuple[str, bytes]]) -> list[Variant]:
    """Returns all models; every bGPT's context holds the longest document.

    Args:
        settings: settings of all models.
        sample: documents whose lengths decide the flat model's width.
    """
    patched = []
    for S in settings.patch_sizes:
        for patch_layers, byte_layers in settings.splits if settings.split_size == S else settings.splits[:1]:
            config = BGPTConfig(
                patch_size=S,
                patch_length=2 + -(-settings.text_bytes // S),
                hidden_size=settings.hidden_size,
                patch_num_layers=patch_layers,
                byte_num_layers=byte_layers,
                num_heads=settings.num_heads,
                byte_num_heads=settings.byte_num_heads,
                position_init_std=settings.position_init_std,
            )
            patched.append(Variant(f"S{S} {patch_layers}+{byte_layers}", config))
    reference = next((variant for variant in patched if variant.config.patch_size == settings.split_size), patched[0])
    flat = flat_of_equal_compute(
        reference.config,
        PackedPatches.from_bytes(sample, reference.config),
        num_layers=settings.flat_layers,
        num_heads=settings.flat_heads,
    )
    return [
        *patched,
        Variant(FLAT, reference.config, flat),
        Variant(FLAT_BYTES, reference.config, flat, steps_of=reference.name),
    ]
