"""Reading prompts, writing files and scoring documents, beside the released way and plain torch with caches.

    pytest benchmarks/bench_inference.py --size full

The released way and the cached one run Hugging Face's GPT-2 with the same random float32 weights and the greedy choice;
a side whose bytes differ from ours is not timed. The released way has no batches: its rate is that of one file,
whatever the batch. Scoring is `BGPT.log_likelihood`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pytest
import torch
from bench_generation import endless, prompts_of
from bench_training import contender, documents
from model_work import decoding_work, prefill_work, scoring_work
from optional_peers import CACHED, OURS, REFERENCE, RELEASED
from suite import Bench
from torch import Tensor
from torch.nn import functional as F

from bgpt_fast import BGPT, BGPTConfig, Generator, PackedPatches, Prompt
from bgpt_fast.config import VOCAB_SIZE
from bgpt_fast.generation.drafting import KnownDrafter, LookupDrafter

Spans = tuple[list[float], list[bytes]]
"""Seconds of each round, the first one with the prompts; and each file's new bytes."""
Way = Callable[[list[Prompt], int], Spans]
"""Writes so many patches into each file."""
LOOKED_UP, KNOWN = f"{OURS}, drafts looked up", f"{OURS}, drafts known"
_PRECISIONS = {f"{OURS}, {precision}": precision for precision in ("bfloat16", "int8")}
"""Ours with weights of fewer bits, on a CPU; their bytes may be others."""


def our_way(model: BGPT, precision: str | None = None) -> Way:
    """The Generator; weights are packed at the first call."""
    generator = Generator(model, precision=precision)

    def run(prompts: list[Prompt], rounds: int) -> Spans:
        times = [time.perf_counter()]
        files = generator.generate(
            prompts,
            max_new_bytes=rounds * model.config.patch_size,
            progress=lambda *_: times.append(time.perf_counter()),
        )
        spans = [after - before for before, after in itertools.pairwise(times)]
        return spans, [file.data[len(prompt.data) :] for file, prompt in zip(files, prompts, strict=True)]

    return run


def _patches_of(prompts: list[Prompt], config: BGPTConfig, device: torch.device) -> Tensor:
    """Whole patches of prompts of one length, int64 [B, L, S], those of the extensions first."""
    packed = PackedPatches.from_bytes([(p.extension, p.data) for p in prompts], config, end_of_file=False)
    return packed.patches.view(len(prompts), -1, config.patch_size).long().to(device)


def _released_way(model: BGPT) -> Way:
    """One file alone, whatever the number of prompts."""
    from peers import HuggingFaceBGPT

    device = next(model.parameters()).device
    peer = HuggingFaceBGPT(model.config).to(device).eval()
    peer.load_state_dict(model.state_dict())

    def run(prompts: list[Prompt], rounds: int) -> Spans:
        patches = _patches_of(prompts[:1], model.config, device)[0]
        spans, data = [], b""
        for _ in range(rounds):
            began = time.perf_counter()
            tokens = peer.next_patch(patches)
            spans.append(time.perf_counter() - began)
            data += bytes(tokens)
            patches = torch.cat([patches, torch.tensor([tokens], device=device)])
        return spans, [data]

    return run


def _cached_way(model: BGPT) -> Way:
    """Hugging Face's GPT-2 with its own caches at both levels, all files at once."""
    from peers import HuggingFaceBGPT
    from transformers import DynamicCache

    device = next(model.parameters()).device
    peer = HuggingFaceBGPT(model.config).to(device).eval()
    peer.load_state_dict(model.state_dict())
    decoder, byte_decoder = peer.patch_level_decoder, peer.byte_level_decoder.base

    @torch.inference_mode()
    def run(prompts: list[Prompt], rounds: int) -> Spans:
        new = _patches_of(prompts, model.config, device)
        cache, spans, written = DynamicCache(), [], []
        for _ in range(rounds):
            began = time.perf_counter()
            one_hot = F.one_hot(new, VOCAB_SIZE).float().flatten(2)
            features = decoder.base(
                inputs_embeds=decoder.patch_embedding(one_hot), past_key_values=cache, use_cache=True
            ).last_hidden_state
            inputs, byte_cache, tokens = features[:, -1:], DynamicCache(), []
            for _ in range(model.config.patch_size):
                logits = byte_decoder(inputs_embeds=inputs, past_key_values=byte_cache, use_cache=True).logits
                tokens.append(logits[:, -1].argmax(-1, keepdim=True))
                inputs = byte_decoder.transformer.wte(tokens[-1])
            new = torch.cat(tokens, dim=1)[:, None]
            written.append(new[:, 0].cpu())
            spans.append(time.perf_counter() - began)
        return spans, [bytes(row) for row in torch.cat(written, dim=1).tolist()]

    return run


def _way(implementation: str, model: BGPT) -> Way:
    if implementation == RELEASED:
        return _released_way(model)
    if implementation == CACHED:
        return _cached_way(model)
    return our_way(model, _PRECISIONS.get(implementation))


def _demand_same_bytes(implementation: str, got: list[bytes], model: BGPT, prompts: list[Prompt]) -> None:
    """Holds the first file of a side in float32 against ours."""
    if implementation in (RELEASED, CACHED):
        [expected] = our_way(model)(prompts[:1], len(got[0]) // model.config.patch_size)[1]
        assert got[0] == expected, "the two sides do not write the same bytes"


def _element(implementation: str) -> int:
    return {"bfloat16": 2, "int8": 1}.get(_PRECISIONS.get(implementation, ""), 4)


def _computed_in(implementation: str) -> torch.dtype:
    """Both of fewer bits multiply in bfloat16."""
    return torch.bfloat16 if implementation in _PRECISIONS else torch.float32


def _skip_where_not(implementation: str, device: torch.device) -> None:
    if implementation in _PRECISIONS and device.type == "cuda":
        pytest.skip(f"{implementation}: on a CPU alone")


@pytest.mark.peers(OURS, *_PRECISIONS, RELEASED, CACHED)
def test_generation(bench: Bench, implementation: str, batch: int) -> None:
    _skip_where_not(implementation, bench.device)
    scale = bench.scale
    model = endless(scale.model).to(bench.device)
    prompts = prompts_of(scale.model, scale.context, batch)
    spans, files = _way(implementation, model)(prompts, scale.rounds + 1)
    _demand_same_bytes(implementation, files, model, prompts)
    written = len(files)
    bench.record(
        spans[1:],
        f"generation, {batch} {'file' if batch == 1 else 'files'}",
        implementation=implementation,
        work=decoding_work(scale.model, written, scale.context, _element(implementation)),
        units=written * scale.model.patch_size,
        unit="bytes",
        computed_in=_computed_in(implementation),
        kind="generation",
        batch=batch,
        context=scale.context,
        first_round_s=spans[0],
    )


@pytest.mark.peers(OURS, *_PRECISIONS, RELEASED, CACHED)
def test_prefill(bench: Bench, implementation: str) -> None:
    """A prompt is read and the first patch after it written."""
    _skip_where_not(implementation, bench.device)
    scale = bench.scale
    model = endless(scale.model).to(bench.device)
    prompts = prompts_of(scale.model, scale.context, 1)
    way = _way(implementation, model)
    _demand_same_bytes(implementation, way(prompts, 1)[1], model, prompts)
    spans = [way(prompts, 1)[0][0] for _ in range(1 if scale.seconds == 0 else 3)]
    bench.record(
        spans,
        "prompt and first patch",
        implementation=implementation,
        work=prefill_work(scale.model, 1, scale.context, _element(implementation)),
        units=scale.context,
        unit="patches",
        computed_in=_computed_in(implementation),
        kind="generation",
        context=scale.context,
    )


@pytest.mark.peers(OURS, LOOKED_UP, KNOWN)
def test_drafting(bench: Bench, implementation: str) -> None:
    """One file, whose bytes are the same with drafts and without; the file itself as the draft is the best there is."""
    if bench.device.type == "cuda" and implementation != OURS:
        pytest.skip(f"{implementation}: on a CPU alone")
    scale = bench.scale
    model = endless(scale.model).to(bench.device)
    prompts = prompts_of(scale.model, scale.context, 1)
    new = min(16, scale.model.patch_length - scale.context - 1) * scale.model.patch_size
    generator = Generator(model)
    [plain] = generator.generate(prompts, max_new_bytes=new)
    drafter = {LOOKED_UP: LookupDrafter(), KNOWN: KnownDrafter([plain.data])}.get(implementation)
    [drafted] = generator.generate(prompts, max_new_bytes=new, drafter=drafter)
    assert drafted.data == plain.data, "drafts changed bytes"
    bench(
        [lambda: generator.generate(prompts, max_new_bytes=new, drafter=drafter)],
        f"generation, 1 file, {new} bytes with the prompt",
        implementation=implementation,
        units=new,
        unit="bytes",
        memory=False,
        kind="generation",
        context=scale.context,
    )


@pytest.mark.peers(OURS, RELEASED, REFERENCE)
def test_scoring(bench: Bench, implementation: str) -> None:
    config, device = bench.scale.model, bench.device
    batch = PackedPatches.from_bytes(documents("equal", bench.scale.patches, config), config).to(device)
    model, loss_of = contender(implementation, config, device)
    model.eval()

    @torch.inference_mode()
    def score() -> object:
        return model.log_likelihood(batch) if isinstance(model, BGPT) else loss_of(batch)

    bench(
        [score],
        "scoring documents",
        implementation=implementation,
        work=scoring_work(config, batch.cu_seqlens.diff().tolist(), 4),
        units=batch.num_patches,
        unit="patches",
        kind="scoring",
    )
