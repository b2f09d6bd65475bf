"""Scaling: how the time of a training step and of generation grows with patches, context, batch and width.

    pytest benchmarks/bench_curves.py

`report` fits time = a · xᵉ to each curve and shows e. The model is small, so that measuring a curve takes seconds.
"""

from __future__ import annotations

import dataclasses

import torch

from benchmarks.generation import endless_model, generate_with, prompts_of
from benchmarks.model_work import decoding_work, training_work
from benchmarks.names import OURS
from benchmarks.suite import Bench
from benchmarks.training import random_documents, training_step
from bgpt_fast import PackedPatches

_DOCUMENT = 32
"""Patches per document in the curves that do not vary it."""


def test_curve(bench: Bench, curve: tuple[str, int]) -> None:
    against, value = curve
    (_generation if against == "batch" else _training)(bench, against, value)


def _training(bench: Bench, against: str, value: int) -> None:
    scale = bench.scale
    length = min(_DOCUMENT, scale.curve_model.patch_length, scale.curves["patches"][0])
    if against == "context":
        length = value
    patches = {"patches": value, "context": max(scale.curves["context"])}.get(against, scale.curves["patches"][-1])
    width = value if against == "width" else scale.curve_model.hidden_size
    config = dataclasses.replace(scale.curve_model, hidden_size=width)
    sizes = [(length - 2) * config.patch_size] * max(1, patches // length)
    batch = PackedPatches.from_bytes(random_documents(sizes), config).to(bench.device)
    dtype = torch.bfloat16 if bench.device.type == "cuda" else torch.float32
    _, step = training_step(OURS, batch, config, dtype)
    bench(
        step,
        f"curve: training step against {against}",
        dtype=dtype,
        work=training_work(config, batch.cu_seqlens.diff().tolist(), dtype.itemsize),
        units=batch.num_patches,
        unit="patches",
        kind="curve",
        against=against,
        value=value,
    )


def _generation(bench: Bench, against: str, value: int) -> None:
    config, context = bench.scale.curve_model, bench.scale.context
    model = endless_model(config).to(bench.device)
    spans, _ = generate_with(OURS, model, value)(prompts_of(config, context, value), bench.scale.rounds + 1)
    bench.record(
        spans[1:],
        f"curve: generation against {against}",
        work=decoding_work(config, value, context, 4),
        units=value * config.patch_size,
        unit="bytes",
        kind="curve",
        against=against,
        value=value,
    )
