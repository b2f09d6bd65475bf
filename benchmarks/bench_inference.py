"""Prefill, generation and scoring, compared with the released method and plain torch with key-value caches.

    pytest benchmarks/bench_inference.py --size full

An implementation in float32 whose bytes differ from ours is not timed. The released method has no batches: its rate is
that of one file at every batch size. Scoring is `BGPT.log_likelihood`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.generation import Generate, endless_model, generate_with, prompts_of
from benchmarks.model_work import decoding_work, prefill_work, scoring_work
from benchmarks.names import CACHED, OURS, REFERENCE, RELEASED
from benchmarks.suite import Bench
from benchmarks.training import batch_of, model_and_loss
from bgpt_fast import BGPT, Generator, Prompt
from bgpt_fast.generation.drafting import KnownDrafter, LookupDrafter

LOOKED_UP, KNOWN = f"{OURS}, drafts looked up", f"{OURS}, drafts known"
_BYTES_OF_A_WEIGHT = {f"{OURS}, bfloat16": 2, f"{OURS}, int8": 1}
"""Our implementation with weights of fewer bits, on a CPU; its bytes may differ."""


def _prepare(bench: Bench, implementation: str, batch: int) -> tuple[BGPT, list[Prompt], Generate, dict[str, Any]]:
    """The model, prompts, an implementation of generation, and the details that both of its benchmarks record."""
    reduced, scale = implementation in _BYTES_OF_A_WEIGHT, bench.scale
    if reduced and bench.device.type == "cuda":
        pytest.skip(f"{implementation}: on a CPU only")
    model = endless_model(scale.model).to(bench.device)
    prompts = prompts_of(scale.model, scale.context, batch)
    details = {
        "implementation": implementation,
        # Both precisions of fewer bits multiply in bfloat16.
        "computed_in": torch.bfloat16 if reduced else torch.float32,
        "kind": "generation",
        "context": scale.context,
    }
    precision = implementation.removeprefix(f"{OURS}, ") if reduced else None
    return model, prompts, generate_with(implementation, model, batch, precision), details


def _check_bytes(implementation: str, files: list[bytes], model: BGPT, prompts: list[Prompt]) -> None:
    """Compares the first file of a baseline in float32 with ours."""
    if implementation in (RELEASED, CACHED):
        [expected] = generate_with(OURS, model)(prompts[:1], len(files[0]) // model.config.patch_size)[1]
        assert files[0] == expected, "the two implementations do not write the same bytes"


@pytest.mark.baselines(OURS, *_BYTES_OF_A_WEIGHT, RELEASED, CACHED)
def test_generation(bench: Bench, implementation: str, batch: int) -> None:
    model, prompts, generate, details = _prepare(bench, implementation, batch)
    spans, files = generate(prompts, bench.scale.rounds + 1)
    _check_bytes(implementation, files, model, prompts)
    element = _BYTES_OF_A_WEIGHT.get(implementation, 4)
    bench.record(
        spans[1:],
        f"generation, {batch} {'file' if batch == 1 else 'files'}",
        work=decoding_work(model.config, len(files), bench.scale.context, element),
        units=len(files) * model.config.patch_size,
        unit="bytes",
        batch=batch,
        first_round_s=spans[0],
        **details,
    )


@pytest.mark.baselines(OURS, *_BYTES_OF_A_WEIGHT, RELEASED, CACHED)
def test_prefill(bench: Bench, implementation: str) -> None:
    """Reads a prompt and generates the first patch after it."""
    model, prompts, generate, details = _prepare(bench, implementation, 1)
    _check_bytes(implementation, generate(prompts, 1)[1], model, prompts)
    bench.record(
        [generate(prompts, 1)[0][0] for _ in range(1 if bench.scale.seconds == 0 else 3)],
        "prompt and first patch",
        work=prefill_work(model.config, 1, bench.scale.context, _BYTES_OF_A_WEIGHT.get(implementation, 4)),
        units=bench.scale.context,
        unit="patches",
        **details,
    )


@pytest.mark.baselines(OURS, LOOKED_UP, KNOWN)
def test_drafting(bench: Bench, implementation: str) -> None:
    """One file, whose bytes are the same with and without drafts; the file itself is the best possible draft."""
    if bench.device.type == "cuda" and implementation != OURS:
        pytest.skip(f"{implementation}: on a CPU only")
    scale = bench.scale
    model = endless_model(scale.model).to(bench.device)
    prompts = prompts_of(scale.model, scale.context, 1)
    new = min(16, scale.model.patch_length - scale.context - 1) * scale.model.patch_size
    generator = Generator(model)
    [plain] = generator.generate(prompts, max_new_bytes=new)
    drafter = {LOOKED_UP: LookupDrafter(), KNOWN: KnownDrafter([plain.data])}.get(implementation)
    [drafted] = generator.generate(prompts, max_new_bytes=new, drafter=drafter)
    assert drafted.data == plain.data, "drafts changed bytes"
    bench(
        lambda: generator.generate(prompts, max_new_bytes=new, drafter=drafter),
        f"generation, 1 file, {new} bytes with the prompt",
        implementation=implementation,
        units=new,
        unit="bytes",
        memory=False,
        kind="generation",
        context=scale.context,
    )


@pytest.mark.baselines(OURS, RELEASED, REFERENCE)
def test_scoring(bench: Bench, implementation: str) -> None:
    config, device = bench.scale.model, bench.device
    batch = batch_of("equal", bench.scale.patches, config, device)
    model, loss_of = model_and_loss(implementation, config, device)
    model.eval()

    @torch.inference_mode()
    def score() -> object:
        return model.log_likelihood(batch) if isinstance(model, BGPT) else loss_of(batch)

    bench(
        score,
        "scoring documents",
        implementation=implementation,
        work=scoring_work(config, batch.cu_seqlens.diff().tolist(), 4),
        units=batch.num_patches,
        unit="patches",
        kind="scoring",
    )
