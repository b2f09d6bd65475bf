"""Sizes of the suite's items: `tiny` tests the suite itself, `quick` gives a first look, `full` is for results."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from benchmarks.op_cases import PAPER, SMALL, Sizes
from bgpt_fast import BGPTConfig
from bgpt_fast.training.presets import PRESETS


@dataclass(frozen=True)
class Scale:
    """The sizes of all items at one `--size`.

    Args:
        ops: the shape letters of the ops.
        model: the model for training, scoring and generation.
        patches: patches per batch in training and scoring.
        small_model: the model for training small ones.
        small_patches: patches per batch in its training.
        context: patches per prompt in generation.
        rounds: patches generated in each file after the first.
        batches: batch sizes of generation, in files.
        documents: number of documents in packing, loading and the CPU-state machine, each a few hundred bytes.
        small_files: number of files in the loading of small files.
        curves: the points of the scaling curves, by the quantity that varies.
        curve_model: the model for the scaling curves.
        seconds: approximate measuring time per item; 0 means one or two calls.
        peak: side n of the square matrix product that measures the peak rate; the copy has 64 · n² bytes.
    """

    ops: Sizes
    model: BGPTConfig
    patches: int
    small_model: BGPTConfig
    small_patches: int
    context: int
    rounds: int
    batches: tuple[int, ...]
    documents: int
    small_files: int
    curves: dict[str, tuple[int, ...]]
    curve_model: BGPTConfig
    seconds: float
    peak: int


_TINY_MODEL = BGPTConfig(
    patch_size=4, patch_length=16, hidden_size=32, patch_num_layers=1, byte_num_layers=1, num_heads=4
)

TINY = Scale(
    ops=SMALL,
    model=_TINY_MODEL,
    patches=24,
    small_model=_TINY_MODEL,
    small_patches=24,
    context=3,
    rounds=1,
    batches=(1, 2),
    documents=8,
    small_files=8,
    curves={"patches": (8, 16), "context": (4, 8), "batch": (1, 2), "width": (16, 32)},
    curve_model=_TINY_MODEL,
    seconds=0.0,
    peak=64,
)
QUICK = Scale(
    ops=Sizes(T=64, P=128, L=64, S=16, D=768, H=12),
    model=BGPTConfig(patch_length=512, hidden_size=256, patch_num_layers=6, byte_num_layers=3, num_heads=4),
    patches=128,
    small_model=PRESETS["cpu-states"].model,
    small_patches=1344,
    context=64,
    rounds=4,
    batches=(1, 16),
    documents=512,
    small_files=2000,
    curves={"patches": (32, 64, 128), "context": (32, 64, 128, 256), "batch": (1, 8, 64), "width": (64, 128, 256)},
    curve_model=BGPTConfig(patch_length=1024, hidden_size=256, patch_num_layers=4, byte_num_layers=2, num_heads=4),
    seconds=0.3,
    peak=1024,
)
FULL_ON_CPU = dataclasses.replace(
    QUICK,
    model=BGPTConfig(),
    patches=192,
    context=256,
    batches=(1, 16, 64),
    documents=1024,
    curves={
        "patches": (32, 64, 128, 256, 512),
        "context": (32, 128, 512, 1024),
        "batch": (1, 4, 16, 64),
        "width": (64, 128, 256, 512),
    },
    seconds=0.6,
    peak=2048,
)
FULL_ON_GPU = Scale(
    ops=PAPER,
    model=BGPTConfig(),
    patches=32 * 512,
    small_model=PRESETS["cpu-states"].model,
    small_patches=1344,
    context=256,
    rounds=8,
    batches=(1, 64, 2048),
    documents=16384,
    small_files=2000,
    curves={
        "patches": (1024, 4096, 16384, 65536),
        "context": (128, 512, 1024),
        "batch": (1, 8, 64, 512),
        "width": (256, 512, 1024, 2048),
    },
    curve_model=BGPTConfig(patch_length=1024, num_heads=16),
    seconds=0.5,
    peak=8192,
)


def scale_of(size: str, device: str) -> Scale:
    """The scale for a `--size` and a type of device."""
    return {"tiny": TINY, "quick": QUICK, "full": FULL_ON_GPU if device == "cuda" else FULL_ON_CPU}[size]
