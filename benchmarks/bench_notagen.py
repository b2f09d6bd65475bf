"""NotaGen's generation, compared with the public code's method: Hugging Face's GPT-2 for both decoders, no cache.

    pytest benchmarks/bench_notagen.py --size full --clock thread --threads 1

Ours and the other method write by turns. The latter has no batches: its rate is that of one tune at every number of
tunes. Nothing is timed where the two write other symbols. Weights are random and end no patch.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.suite import Bench
from bgpt_fast import BGPT, BGPTConfig
from bgpt_fast.config import NOTAGEN_ALPHABET
from bgpt_fast.kernels.byte_decode.sampling import Sampling
from bgpt_fast.models.notagen.generator import Run
from bgpt_fast.models.notagen.tunes import prompt_patches


def _endless_model(config: BGPTConfig) -> BGPT:
    torch.manual_seed(0)
    model = BGPT(config).eval()
    with torch.no_grad():
        base = model.byte_level_decoder.base.transformer
        for symbol in range(3):
            base.ln_f.bias -= 20 * base.wte.weight[symbol] / base.wte.weight[symbol].square().sum()
    return model


def _greedy(probabilities: Tensor, position: int) -> int:
    return int(probabilities.argmax())


def _seconds(call: Callable[[], object], bench: Bench) -> float:
    began = bench.clock()
    call()
    return bench.clock() - began


def test_notagen(bench: Bench, batch: int) -> None:
    """Writes a patch of each tune; the item is ours, and has the other method's median beside it."""
    if bench.device.type != "cpu":
        pytest.skip("NotaGen's generation is compared on a CPU")
    pytest.importorskip("transformers")
    from benchmarks.hugging_face import HuggingFaceNotaGen
    from bgpt_fast.checkpoint.names import notagen_names

    scale, rounds = bench.scale, bench.scale.rounds
    config = dataclasses.replace(scale.model, patch_size=16, **NOTAGEN_ALPHABET)
    model = _endless_model(config)
    plain = HuggingFaceNotaGen(config).eval()
    plain.load_state_dict(notagen_names(model.state_dict()))
    # A line of 16 characters is a patch.
    prompts = [f"%{index:014d}\n" * (scale.context - 1) for index in range(batch)]
    context = torch.tensor(prompt_patches(prompts[0], config))
    assert len(context) == scale.context

    sampling = Sampling(temperature=0.0)
    with torch.inference_mode():
        run = Run(model, prompts, max_patches=rounds + 1, sampling=sampling, max_batch=batch)
        run.start()
        run.step()
        assert run.tunes[0].new == [plain.next_patch(context, _greedy)], "the two methods write other symbols"
        our_times, their_times = [], []
        for _ in range(rounds):
            their_times.append(_seconds(lambda: plain.next_patch(context, _greedy), bench))
            our_times.append(_seconds(run.step, bench))
    theirs = statistics.median(their_times)
    bench.record(
        our_times,
        f"NotaGen, {batch} {'tune' if batch == 1 else 'tunes'}",
        units=batch * config.patch_size,
        unit="symbols",
        kind="notagen",
        batch=batch,
        context=scale.context,
        released_s=theirs,
        speed_up=theirs * batch / statistics.median(our_times),
    )
