"""One Generator shared by threads and iterators, abandoned iterators, and weights that change under a running one."""

from __future__ import annotations

import gc
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from support.byte_decode import decided_model

from bgpt_fast import BGPT, BGPTConfig, Generation, Generator, Prompt
from bgpt_fast.generation.decoders import base
from bgpt_fast.generation.decoders.base import WeightCache
from bgpt_fast.generation.decoders.cpu import CpuWeights
from bgpt_fast.generation.decoders.cuda import CudaDecoder

CONFIG = BGPTConfig(patch_size=4, patch_length=10, hidden_size=16, patch_num_layers=1, byte_num_layers=1, num_heads=2)
OPTIONS: dict[str, Any] = {"temperature": 0.9, "seed": 3}
PROMPTS = [[Prompt("bin", bytes([value] * size), value) for size in (1, 6, 9)] for value in (65, 66)]
RUNS = 100


def scaled(factor: float) -> BGPT:
    """The same model with other weights, which continues the prompts otherwise."""
    model = decided_model(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor)
    return model


@pytest.fixture(scope="module")
def models() -> list[BGPT]:
    return [scaled(1.0), scaled(1.25)]


@pytest.fixture(scope="module")
def expected(models: list[BGPT]) -> list[list[list[Generation]]]:
    """The files of each model and list of prompts, each by a Generator of its own."""
    files = [[Generator(model).generate(prompts, **OPTIONS) for prompts in PROMPTS] for model in models]
    assert files[0] != files[1]
    return files


def test_two_threads(models: list[BGPT], expected: list[list[list[Generation]]]) -> None:
    """Each run changes the weights first, so that both threads find an old copy of them at once."""
    model = scaled(1.0)
    engine = Generator(model, max_batch=2)
    barrier = threading.Barrier(2)

    def generate(prompts: list[Prompt]) -> list[Generation]:
        barrier.wait(30)
        return engine.generate(prompts, **OPTIONS)

    with ThreadPoolExecutor(2) as pool:
        for run in range(RUNS):
            model.load_state_dict(models[run % 2].state_dict())
            assert list(pool.map(generate, PROMPTS)) == expected[run % 2], f"run {run}"


def test_abandoned_iterators(models: list[BGPT], expected: list[list[list[Generation]]]) -> None:
    engine, threads = Generator(models[0], max_batch=2), threading.active_count()
    iterators = []
    for run in range(RUNS):
        files = engine.generate_iter(PROMPTS[run % 2], **OPTIONS)
        for _ in range(run % 3):
            next(files)
        # What runs between the files is the caller's.
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
        assert torch.get_default_device() == torch.device("cpu")
        if run % 10 == 0:
            iterators.append(files)
        elif run % 2:
            files.close()  # type: ignore[attr-defined]
    assert engine.generate(PROMPTS[0], **OPTIONS) == expected[0][0]
    assert threading.active_count() == threads
    for run, files in zip(range(0, RUNS, 10), iterators, strict=True):
        assert dict(files).items() <= dict(enumerate(expected[0][run % 2])).items(), "those kept go on"


def test_iterators_take_turns(models: list[BGPT], expected: list[list[list[Generation]]]) -> None:
    engine = Generator(models[0], max_batch=1)
    turns = [engine.generate_iter(prompts, **OPTIONS) for prompts in PROMPTS]
    pairs = [[*pair] for pair in itertools.chain.from_iterable(zip(*turns, strict=True))]
    for number in range(2):
        assert [file for _, file in sorted(pairs[number::2], key=lambda pair: pair[0])] == expected[0][number]


def reloaded(models: list[BGPT]) -> tuple[list[Generation], list[Generation]]:
    """The files of an iterator under which the weights change after the first one, and those of the next call."""
    model = scaled(1.0)
    engine = Generator(model, max_batch=1)
    files = engine.generate_iter(PROMPTS[0], **OPTIONS)
    first = next(files)
    model.load_state_dict(models[1].state_dict())
    return [file for _, file in sorted([first, *files])], engine.generate(PROMPTS[0], **OPTIONS)


def test_reload_under_a_running_iterator(models: list[BGPT], expected: list[list[list[Generation]]]) -> None:
    """It goes on with the weights that it began with; the next call has the new ones."""
    for _ in range(RUNS):
        assert reloaded(models) == (expected[0][0], expected[1][0])


def test_weights_that_are_shared_are_noticed(
    models: list[BGPT], expected: list[list[list[Generation]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sharing(CpuWeights):
        def __init__(self, model: BGPT, precision: str) -> None:
            super().__init__(model, precision)
            embedding = model.patch_level_decoder.patch_embedding
            self.patch_embedding = embedding.weight.detach(), embedding.bias.detach()

    monkeypatch.setattr(base, "CpuWeights", Sharing)
    assert reloaded(models)[0] != expected[0][0]


def test_graphs_of_a_running_decoder_keep_their_weights(models: list[BGPT]) -> None:
    """On the CPU, where a graph is the function itself: weights are reused when no decoder reads them any more."""
    cache = WeightCache()

    def weights(model: BGPT) -> Any:
        return cache.for_cuda(model, "float32", False, lambda step: step)

    first = weights(models[0])
    running = CudaDecoder(first, 1, 16)
    other = weights(models[1])
    assert other is not first
    assert torch.equal(first.byte.wte, other.byte.wte) is False
    del running
    gc.collect()
    assert weights(models[1]) is first
    assert torch.equal(first.byte.wte, other.byte.wte)


def test_equal_prompts_give_equal_files(models: list[BGPT]) -> None:
    """As facebookresearch/blt#123 and GeeeekExplorer/nano-vllm#89 report it of others: in any slot, in any batch."""
    for options in ({}, OPTIONS):
        prompts = [Prompt("bin", b"hello", 7)] * 10
        alone = Generator(models[0]).generate(prompts[:1], **options)
        for max_batch in (1, 3, 10):
            assert Generator(models[0], max_batch=max_batch).generate(prompts, **options) == alone * 10
