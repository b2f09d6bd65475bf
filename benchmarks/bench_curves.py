"""Scaling: how the time of a training step and of generation grows with patches, context, batch and width.

    pytest benchmarks/bench_curves.py

`report` fits time = a · xᵉ to each curve and shows e. A small model, so that the whole curve takes seconds.
"""

from __future__ import annotations

import dataclasses
import random

import torch
from bench_generation import endless, prompts_of
from bench_inference import our_way
from model_work import decoding_work, training_work
from suite import Bench
from training_step import step_of

from bgpt_fast import BGPT, PackedPatches

_DOCUMENT = 32
"""Patches of a document where the curve does not vary them."""


def test_curve(bench: Bench, curve: tuple[str, int]) -> None:
    against, value = curve
    if against == "batch":
        _generation(bench, value)
    else:
        _training(bench, against, value)


def _training(bench: Bench, against: str, value: int) -> None:
    scale = bench.scale
    length = (
        value if against == "context" else min(_DOCUMENT, scale.curve_model.patch_length, scale.curves["patches"][0])
    )
    patches = {"patches": value, "context": max(scale.curves["context"])}.get(against, scale.curves["patches"][-1])
    width = value if against == "width" else scale.curve_model.hidden_size
    config = dataclasses.replace(scale.curve_model, hidden_size=width)
    stream = random.Random(0)
    size = (length - 2) * config.patch_size
    documents = [("bin", stream.randbytes(size)) for _ in range(max(1, patches // length))]
    batch = PackedPatches.from_bytes(documents, config).to(bench.device)
    model = BGPT(config).to(bench.device)
    on_gpu = bench.device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    step = step_of(model, lambda: model(batch).loss, bench.device, dtype if on_gpu else None, fused=on_gpu)
    bench(
        [step],
        f"curve: training step against {against}",
        dtype=dtype,
        work=training_work(config, batch.cu_seqlens.diff().tolist(), 2 if on_gpu else 4),
        units=batch.num_patches,
        unit="patches",
        kind="curve",
        against=against,
        value=value,
    )


def _generation(bench: Bench, batch: int) -> None:
    config, context = bench.scale.curve_model, bench.scale.context
    model = endless(config).to(bench.device)
    spans, _ = our_way(model)(prompts_of(config, context, batch), bench.scale.rounds + 1)
    bench.record(
        spans[1:],
        "curve: generation against batch",
        work=decoding_work(config, batch, context, 4),
        units=batch * config.patch_size,
        unit="bytes",
        kind="curve",
        against="batch",
        value=batch,
    )
