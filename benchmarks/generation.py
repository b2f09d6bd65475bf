"""The implementations of generation: `Generator`, the released method, and plain torch with caches.

All use greedy decoding and the same random weights, which never end a file. The released method uses Hugging Face's
GPT-2 for both decoders, one file at a time, without caches: for each patch the patch decoder recomputes the whole
context, and for each byte the byte decoder recomputes all earlier bytes of the patch.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.names import CACHED, RELEASED
from bgpt_fast import BGPT, BGPTConfig, Generator, PackedPatches, Prompt
from bgpt_fast.config import EOP, VOCAB_SIZE

Rounds = tuple[list[float], list[bytes]]
"""Seconds of each round (a patch of every file; the first includes the prompts), and each file's new bytes."""
Generate = Callable[[list[Prompt], int], Rounds]
"""Generates this number of patches in each file."""


def endless_model(config: BGPTConfig) -> BGPT:
    """Random weights that never end a file."""
    torch.manual_seed(0)
    model = BGPT(config).eval()
    with torch.no_grad():
        base = model.byte_level_decoder.base.transformer
        base.ln_f.bias -= 20 * base.wte.weight[EOP] / base.wte.weight[EOP].square().sum()
    return model


def prompts_of(config: BGPTConfig, patches: int, count: int) -> list[Prompt]:
    """`count` prompts of `patches` patches each, including the extension patch."""
    stream = random.Random(0)
    return [Prompt("bin", stream.randbytes((patches - 1) * config.patch_size)) for _ in range(count)]


def generate_with(implementation: str, model: BGPT, batch: int = 1, precision: str | None = None) -> Generate:
    """An implementation by name, for `batch` files at once; only `Generator` uses `precision`."""
    if implementation in (RELEASED, CACHED):
        return _released(model) if implementation == RELEASED else _cached(model)
    generator = Generator(model, max_batch=batch, precision=precision)

    def generate(prompts: list[Prompt], rounds: int) -> Rounds:
        times = [time.perf_counter()]
        files = generator.generate(
            prompts,
            max_new_bytes=rounds * model.config.patch_size,
            progress=lambda *_: times.append(time.perf_counter()),
        )
        spans = [after - before for before, after in itertools.pairwise(times)]
        return spans, [file.data[len(prompt.data) :] for file, prompt in zip(files, prompts, strict=True)]

    return generate


def _patches_of(prompts: list[Prompt], config: BGPTConfig, device: torch.device) -> Tensor:
    """Patches of prompts of equal length, int64 [B, L, S], extension patches first."""
    packed = PackedPatches.from_bytes([(p.extension, p.data) for p in prompts], config, end_of_file=False)
    return packed.patches.view(len(prompts), -1, config.patch_size).long().to(device)


def _released(model: BGPT) -> Generate:
    """Generates only the first file, for any number of prompts."""
    from benchmarks.hugging_face import HuggingFaceBGPT

    device = next(model.parameters()).device
    baseline = HuggingFaceBGPT(model.config).to(device).eval()
    baseline.load_state_dict(model.state_dict())

    def generate(prompts: list[Prompt], rounds: int) -> Rounds:
        patches = _patches_of(prompts[:1], model.config, device)[0]
        spans, data = [], b""
        for _ in range(rounds):
            began = time.perf_counter()
            tokens = baseline.next_patch(patches)
            spans.append(time.perf_counter() - began)
            data += bytes(tokens)
            patches = torch.cat([patches, torch.tensor([tokens], device=device)])
        return spans, [data]

    return generate


def _cached(model: BGPT) -> Generate:
    """Hugging Face's GPT-2 with its own caches at both levels, all files at once."""
    from transformers import DynamicCache

    from benchmarks.hugging_face import HuggingFaceBGPT

    device = next(model.parameters()).device
    baseline = HuggingFaceBGPT(model.config).to(device).eval()
    baseline.load_state_dict(model.state_dict())
    decoder, byte_decoder = baseline.patch_level_decoder, baseline.byte_level_decoder.base

    @torch.inference_mode()
    def generate(prompts: list[Prompt], rounds: int) -> Rounds:
        new = _patches_of(prompts, model.config, device)
        cache, spans, patches = DynamicCache(), [], []
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
            patches.append(new[:, 0].cpu())
            spans.append(time.perf_counter() - began)
        return spans, [bytes(row) for row in torch.cat(patches, dim=1).tolist()]

    return generate
