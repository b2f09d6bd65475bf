"""Generation: equal to the model itself, and the same bytes in any batch, cached or not."""

from __future__ import annotations

import copy
import pickle
import random
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from support.byte_decode import decided_model, ending_model
from support.paths import EXAMPLES
from torch import Tensor
from torch.nn import functional as F

from bgpt_fast import BGPT, BGPTConfig, Generation, Generator, PackedPatches, Prompt, ReferenceBGPT
from bgpt_fast.device import free_memory
from bgpt_fast.generation import generator
from bgpt_fast.generation.decoders import base, eager
from bgpt_fast.generation.decoders.base import Decoder, make_decoder
from bgpt_fast.generation.decoders.cpu import CpuDecoder, CpuWeights
from bgpt_fast.generation.decoders.eager import EagerDecoder
from bgpt_fast.generation.decoders.request import DecodeRequest, DecodeResult
from bgpt_fast.generation.scoring import score
from bgpt_fast.kernels.byte_decode.sampling import Sampling, choose
from bgpt_fast.kernels.cached_attention.reference import cached_attention_reference
from bgpt_fast.kernels.invariant_linear.reference import invariant_linear_reference

CONFIG = BGPTConfig(patch_size=4, patch_length=10, hidden_size=32, patch_num_layers=2, byte_num_layers=2, num_heads=4)
CAPACITY = 36  # bytes of content that the context holds
GREEDY: dict[str, float] = {}
SAMPLED: dict[str, float] = {"temperature": 0.9, "top_k": 200, "top_p": 0.98, "seed": 3}


@pytest.fixture(scope="module")
def model() -> BGPT:
    return decided_model(CONFIG)


def random_prompts(count: int, capacity: int = CAPACITY, seed: int = 0) -> list[Prompt]:
    stream = random.Random(seed)
    sizes = [0, 1, 4, 7, capacity - 1, *(stream.randrange(capacity) for _ in range(count))][:count]
    return [
        Prompt(stream.choice(["bin", "txt", "", "a_long_one"]), stream.randbytes(size), i)
        for i, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_every_byte_is_what_the_model_says(model: BGPT, options: dict[str, float]) -> None:
    """Against teacher-forced logits of BGPT and ReferenceBGPT: no near tie of these seeds falls within rounding."""
    prompts = random_prompts(12)
    reference = ReferenceBGPT(CONFIG)
    reference.load_state_dict(model.state_dict())
    ends = 0
    for index, (prompt, file) in enumerate(zip(prompts, Generator(model).generate(prompts, **options), strict=True)):
        assert file.data.startswith(prompt.data)
        assert file.prompt_bytes == len(prompt.data)
        packed = PackedPatches.from_bytes(
            [(prompt.extension, file.data)], CONFIG, end_of_file=len(file.data) < CAPACITY
        )
        expected = [*file.new_bytes, 256] if file.finished else [*file.new_bytes]
        places = range(len(prompt.data), len(prompt.data) + len(expected))
        for oracle in (model.eval(), reference.eval()):
            with torch.no_grad():
                logits = oracle.logits(packed).flatten(0, 1)[places.start : places.stop]
            assert choose(logits, Sampling(**options), [index] * len(places), places) == expected
        assert file.finished or len(file.data) == CAPACITY
        ends += file.finished
    assert 0 < ends < len(prompts)


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_cached_equals_recomputed(model: BGPT, options: dict[str, float]) -> None:
    """Each byte again, by a new Generator that gets the bytes before it as its prompt."""
    for prompt in random_prompts(5, seed=1):
        (cached,) = Generator(model).generate([prompt], **options)
        data, finished = prompt.data, False
        while len(data) < CAPACITY and not finished:
            step = Generator(model).generate([Prompt(prompt.extension, data, prompt.index)], max_new_bytes=1, **options)
            data, finished = step[0].data, step[0].finished
        assert cached == Generation(data, finished, len(prompt.data))


def make_eager_decoder(model: BGPT, slots: int, length: int, **options: object) -> EagerDecoder:
    """`make_decoder` as on a device without an engine."""
    return EagerDecoder(model, slots, length)


def files_are_independent(model: BGPT, prompts: list[Prompt], sizes: Iterable[int], options: dict[str, float]) -> bool:
    """Whether each file is the same in batches of all sizes, in any slot, in any order, and in slots used again."""
    alone = [Generator(model).generate([prompt], **options)[0] for prompt in prompts]
    same = True
    for size in sizes:
        parts = [prompts[i : i + size] for i in range(0, len(prompts), size)]
        same &= [file for part in parts for file in Generator(model).generate(part, **options)] == alone
        same &= Generator(model, max_batch=size).generate(prompts, **options) == alone
        order = random.Random(size).sample(range(len(prompts)), len(prompts))
        shuffled = Generator(model, max_batch=size).generate([prompts[i] for i in order], **options)
        same &= shuffled == [alone[i] for i in order]
    return same


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_files_are_independent(model: BGPT, options: dict[str, float]) -> None:
    assert files_are_independent(model, random_prompts(16, seed=2), (2, 3, 7, 16), options)


def test_a_shared_random_stream_is_noticed(model: BGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = random.Random(0)

    def shared(seed: int, rng_streams: list[int], positions: list[int]) -> object:
        return torch.tensor([stream.random() for _ in rng_streams], dtype=torch.float64).numpy()

    monkeypatch.setattr("bgpt_fast.kernels.byte_decode.sampling.uniform", shared)
    monkeypatch.setattr(generator, "make_decoder", make_eager_decoder)
    assert not files_are_independent(model, random_prompts(6, seed=2), (2, 3), SAMPLED)


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_the_cpu_decoder_gives_what_the_eager_one_gives(
    model: BGPT, options: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32; no near tie of these seeds falls within rounding."""
    prompts = random_prompts(30, seed=12)
    files = Generator(model, max_batch=7).generate(prompts, **options)
    monkeypatch.setattr(generator, "make_decoder", make_eager_decoder)
    assert Generator(model).generate(prompts, **options) == files
    assert Generator(decided_model(CONFIG, seed=1)).generate(prompts, **options) != files


def test_the_cpu_decoder_gives_what_the_eager_one_gives_with_the_shipped_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = EXAMPLES / "cpu_states" / "checkpoint"
    trained = BGPT.from_pretrained(checkpoint, dtype=torch.float32)
    prompts = [Prompt("bin", random.Random(i).randbytes(5 * i)) for i in range(6)]
    files = Generator(trained).generate(prompts, max_new_bytes=40)
    assert sum(len(file.new_bytes) for file in files) > 40
    monkeypatch.setattr(generator, "make_decoder", make_eager_decoder)
    assert Generator(trained).generate(prompts, max_new_bytes=40) == files


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_files_are_independent_in_fewer_bits(model: BGPT, precision: str) -> None:
    prompts = random_prompts(12, seed=2)
    alone = [Generator(model, precision=precision).generate([prompt], **SAMPLED)[0] for prompt in prompts]
    for size in (2, 3, 12):
        assert Generator(model, max_batch=size, precision=precision).generate(prompts, **SAMPLED) == alone
    assert Generator(model).generate(prompts, **SAMPLED) != alone  # the precision is used


def test_a_memory_budget_decides_the_batch_size(model: BGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = random_prompts(9, seed=5)
    expected = Generator(model).generate(prompts)
    activations, each = 24 * 1024 * CONFIG.hidden_size, Generator(model).sequence_bytes(10)
    assert each == 8 * 32 * (2 * 16 + 2 * 4)
    slots: list[int] = []

    def recording(model: BGPT, count: int, length: int, **options: Any) -> Decoder:
        slots.append(count)
        assert activations + count * Generator(model).sequence_bytes(length) <= (budget or 2**62)
        return make_decoder(model, count, length, **options)

    monkeypatch.setattr(generator, "make_decoder", recording)
    for budget, batch, count in (
        (activations + each, None, 1),
        (activations + 4 * each - 1, None, 3),
        (activations + 4 * each, 2, 2),
        (2**40, None, 9),
        (2**40, 5, 5),
        (None, 4, 4),
        (None, None, 9),
    ):
        assert Generator(model, max_memory=budget, max_batch=batch).generate(prompts) == expected
        assert slots[-1] == count
    assert Generator(model, max_memory=activations + 4 * each).max_batch == 4
    assert Generator(model, max_memory=2**30, max_batch=3).max_batch == 3
    with pytest.raises(
        ValueError, match=rf"max_memory: expected at least {activations + each} bytes, {each} for .* got {each}; give"
    ):
        Generator(model, max_memory=each).generate_iter(prompts)
    for value, error in ((0, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="max_memory: expected a"):
            Generator(model, max_memory=value)  # type: ignore[arg-type]


def test_free_memory_decides_the_batch_size_without_arguments(model: BGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = random_prompts(9, seed=5)
    activations, each = 24 * 1024 * CONFIG.hidden_size, Generator(model).sequence_bytes(10)
    slots: list[int] = []

    def recording(model: BGPT, count: int, length: int, **options: Any) -> Decoder:
        slots.append(count)
        return make_decoder(model, count, length, **options)

    monkeypatch.setattr(generator, "make_decoder", recording)
    expected = Generator(model).generate(prompts)
    for free, count, most in ((2 * (activations + 4 * each), 4, 4), (2**40, 9, 4096), (0, 1, 1)):
        monkeypatch.setattr(generator, "free_memory", lambda _, free=free: free)
        assert Generator(model).max_batch == most
        assert Generator(model).generate(prompts) == expected
        assert slots[-1] == count
    assert 2**20 < free_memory(torch.device("cpu")) < 2**50


def test_weights_are_packed_once_until_they_change(model: BGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[str] = []

    class Counted(CpuWeights):
        def __init__(self, model: BGPT, precision: str) -> None:
            packed.append(precision)
            super().__init__(model, precision)

    monkeypatch.setattr(base, "CpuWeights", Counted)
    own, prompts = decided_model(CONFIG), random_prompts(3, seed=7)
    engine = Generator(own)
    first = engine.generate(prompts)
    assert engine.generate(prompts) == first
    assert packed == ["float32"]
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.mul_(0.5)
    assert engine.generate(prompts) != first
    assert len(packed) == 2
    engine.model = decided_model(CONFIG)
    assert engine.generate(prompts) == first
    engine.precision = "int8"
    engine.generate(prompts)
    assert packed[2:] == ["float32", "int8"]
    with pytest.raises(ValueError, match=r"precision: expected one of .* or None, got 'fp8'"):
        Generator(model, precision="fp8")


def logits_are_independent(model: BGPT) -> bool:
    """Whether features and logits have the same bits in batches of 1 to 64, prefilled at once or patch by patch."""
    T, S = 5, CONFIG.patch_size
    patches = torch.randint(0, 257, (64, T, S), dtype=torch.int16, generator=torch.Generator().manual_seed(0))

    def run(part: Tensor, by_patch: bool) -> Tensor:
        B = len(part)
        decoder = EagerDecoder(model, B, 16)
        slots, positions = torch.arange(B).repeat_interleave(T), torch.arange(T).repeat(B)
        if by_patch:
            for t in range(T):
                features = decoder.prefill(part[:, t].contiguous(), torch.arange(B), torch.full((B,), t))
        else:
            features = decoder.prefill(part.flatten(0, 1), slots, positions)[T - 1 :: T]
        return torch.cat([features, decoder.logits(features, part[:, 0], S).flatten(1)], 1)

    with torch.inference_mode():
        whole = run(patches, by_patch=False)
        return all(
            torch.equal(torch.cat([run(part, by_patch) for part in patches.split(size)]), whole)
            for size, by_patch in [(1, True), (2, False), (3, True), (7, False), (17, True), (64, True)]
        )


def test_logits_are_independent(model: BGPT) -> None:
    assert logits_are_independent(model)


def test_rounding_that_depends_on_the_batch_is_noticed(model: BGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = eager.invariant_linear

    def split_where_rows_are_few(
        x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False
    ) -> Tensor:
        """The usual split-K of libraries."""
        if len(x) > 4:
            return plain(x, weight, bias, gelu=gelu)
        half = x.shape[1] // 2
        y = plain(x[:, :half], weight[:half], bias) + plain(x[:, half:], weight[half:])
        return F.gelu(y, approximate="tanh") if gelu else y

    monkeypatch.setattr(eager, "invariant_linear", split_where_rows_are_few)
    assert not logits_are_independent(model)


def test_the_reference_operations_write_the_same_files(model: BGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on devices without kernels of their own; no near tie of these seeds falls within rounding."""
    prompts = random_prompts(8, seed=11)
    expected = Generator(model).generate(prompts)
    calls = []

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
        calls.append(len(x))
        return invariant_linear_reference(x, weight, bias, gelu)

    monkeypatch.setattr(generator, "make_decoder", make_eager_decoder)
    monkeypatch.setattr(eager, "invariant_linear", linear)
    monkeypatch.setattr(eager, "cached_attention", cached_attention_reference)
    assert Generator(model).generate(prompts) == expected
    assert calls


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_writes_the_same_files(model: BGPT) -> None:
    prompts = random_prompts(8, seed=11)
    on_gpu = decided_model(CONFIG).cuda()
    for options in (GREEDY, SAMPLED):
        assert Generator(on_gpu).generate(prompts, **options) == Generator(model).generate(prompts, **options)


@pytest.mark.parametrize("width", [1, 31, 32, 77, 256, 768])
def test_torch_layer_norm_rows_are_independent(width: int) -> None:
    x = torch.randn(67, width, generator=torch.Generator().manual_seed(width))
    weight, bias = x[0] + 1, x[1]
    whole = F.layer_norm(x, (width,), weight, bias)
    for size in (1, 2, 3, 7, 16, 64):
        parts = [F.layer_norm(part, (width,), weight, bias) for part in x.split(size)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=0)


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_file_can_be_continued_from_any_of_its_beginnings(model: BGPT, options: dict[str, float]) -> None:
    whole = Generator(model).generate([Prompt("bin", b"abc", 5)], **options)[0]
    for cut in range(3, len(whole.data), 3):
        again = Generator(model).generate([Prompt("bin", whole.data[:cut], 5)], **options)[0]
        assert (again.data, again.finished, again.prompt_bytes) == (whole.data, whole.finished, cut)


def test_index_and_seed_decide_the_stream(model: BGPT) -> None:
    run: Callable[..., list[Generation]] = Generator(model).generate
    same = [Prompt("bin", b"xy")] * 3
    first = run(same, **SAMPLED)
    assert len({file.data for file in first}) == 3  # the place in the list is the index
    pinned = run([Prompt("bin", b"xy", 2), Prompt("bin", b"xy", 2**64 - 1), Prompt("bin", b"xy", 2)], **SAMPLED)
    assert pinned[0] == pinned[2] == first[2]
    assert pinned[1] != pinned[0]
    assert run(same, **{**SAMPLED, "seed": 4}) != first
    assert run(same) == run(same, seed=9)  # greedy draws nothing
    assert run(same, temperature=1.0, top_k=2**70) == run(same, temperature=1.0)


@pytest.mark.parametrize("size", [0, 3, 4, 6])
@pytest.mark.parametrize("limit", [0, 1, 2, 4, 5, 100])
def test_max_new_bytes(model: BGPT, size: int, limit: int) -> None:
    prompt = Prompt("bin", bytes(range(size)))
    (whole,) = Generator(model).generate([prompt])
    (file,) = Generator(model).generate([prompt], max_new_bytes=limit)
    assert file.data == whole.data[: size + limit]
    assert file.finished == (whole.finished and len(whole.new_bytes) < limit)
    assert len(file.new_bytes) <= limit


def test_an_empty_file_and_no_prompts(model: BGPT) -> None:
    files = Generator(ending_model(CONFIG)).generate([Prompt("txt"), Prompt("txt", b"12345"), Prompt("txt", b"1234")])
    assert files == [Generation(b"", True, 0), Generation(b"12345", True, 5), Generation(b"1234", True, 4)]
    assert Generator(model).generate([]) == []
    assert list(Generator(model).generate_iter(())) == []


def test_iteration_gives_files_as_they_end_and_progress_counts(model: BGPT) -> None:
    prompts = random_prompts(9, seed=5)
    expected = Generator(model).generate(prompts, **SAMPLED)
    calls: list[tuple[int, int, int]] = []
    engine = Generator(model, max_batch=4)
    finished = []
    for place, file in engine.generate_iter(prompts, progress=lambda *counts: calls.append(counts), **SAMPLED):
        assert not torch.is_inference_mode_enabled()
        assert file == expected[place]
        assert calls[-1][0] > len(finished)
        finished.append(place)
    assert sorted(finished) == list(range(9))
    assert finished != list(range(9))
    assert calls == sorted(calls)
    assert calls[-1] == (9, 9, sum(len(file.new_bytes) for file in expected))


def test_other_dtypes_and_the_model_is_left_alone(model: BGPT) -> None:
    """bfloat16 weights are exact in both precisions; a bfloat16 model's own is bfloat16."""
    prompts = random_prompts(4, seed=6)
    half = decided_model(CONFIG).bfloat16().train()
    before = {name: tensor.clone() for name, tensor in half.state_dict().items()}
    same = decided_model(CONFIG).bfloat16().float()
    for precision in (None, "bfloat16", "float32"):
        files = Generator(half, precision=precision).generate(prompts, **SAMPLED)
        assert files == Generator(same, precision=precision or "bfloat16").generate(prompts, **SAMPLED)
    single = decided_model(CONFIG).half()
    assert Generator(single).generate(prompts) == Generator(decided_model(CONFIG).half().float()).generate(prompts)
    assert half.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in half.state_dict().items())


def test_weights_are_read_at_each_call() -> None:
    model = decided_model(CONFIG)
    engine, prompts = Generator(model), random_prompts(4, seed=7)
    first = engine.generate(prompts)
    model.load_state_dict(decided_model(CONFIG, seed=1).state_dict())
    assert engine.generate(prompts) == Generator(decided_model(CONFIG, seed=1)).generate(prompts) != first


def test_changes_that_torch_does_not_count_are_seen(model: BGPT) -> None:
    """A fused optimizer's steps, as the Trainer takes them, and changes through `.data`."""
    own, prompts = decided_model(CONFIG), random_prompts(4, seed=7)
    engine = Generator(own)
    files = [engine.generate(prompts)]
    optimizer = torch.optim.AdamW(own.parameters(), lr=0.05, fused=True)
    for parameter in own.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    files.append(engine.generate(prompts))
    assert files[1] == Generator(own).generate(prompts) != files[0]
    for parameter, other in zip(own.parameters(), model.parameters(), strict=True):
        parameter.data.copy_(other)
    assert engine.generate(prompts) == Generator(model).generate(prompts) != files[1]
    own.byte_level_decoder.base.transformer.h[0].mlp.c_fc.weight.data.neg_()
    assert engine.generate(prompts) == Generator(own).generate(prompts) != Generator(model).generate(prompts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_defaults_of_torch_change_nothing(model: BGPT, dtype: torch.dtype) -> None:
    prompts = random_prompts(4, seed=7)
    expected = Generator(model).generate(prompts, **SAMPLED)
    scores = list(score(model, [("bin", file.data) for file in expected]))
    try:
        torch.set_default_dtype(dtype)
        with torch.device("meta"):
            assert Generator(model).generate(prompts, **SAMPLED) == expected
            again = list(score(model, [("bin", file.data) for file in expected]))
    finally:
        torch.set_default_dtype(torch.float32)
    for logits, before in zip(again, scores, strict=True):
        torch.testing.assert_close(logits, before, rtol=0, atol=0)


def test_a_copy_does_the_same(model: BGPT) -> None:
    """A Generator that has packed its weights can be sent to another process."""
    prompts = random_prompts(3, seed=7)
    engine = Generator(model, max_batch=2)
    first = engine.generate(prompts)
    for again in (copy.deepcopy(engine), pickle.loads(pickle.dumps(engine))):
        assert again.max_batch == 2
        assert again.generate(prompts) == first
    assert engine.generate(prompts) == first


def test_threads_change_nothing(model: BGPT) -> None:
    prompts, before = random_prompts(6, seed=8), torch.get_num_threads()
    expected = Generator(model).generate(prompts, **SAMPLED)
    try:
        torch.set_num_threads(3)
        assert Generator(model).generate(prompts, **SAMPLED) == expected
    finally:
        torch.set_num_threads(before)


def test_one_byte_patches_and_the_shortest_context() -> None:
    config = BGPTConfig(patch_size=1, patch_length=2, hidden_size=8, patch_num_layers=1, byte_num_layers=1)
    (file,) = Generator(decided_model(config)).generate([Prompt("")])
    assert len(file.data) == (0 if file.finished else 1)


def test_errors_come_before_anything_runs(model: BGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("something ran")

    monkeypatch.setattr(base, "CpuDecoder", never)
    engine, good = Generator(model), Prompt("bin", b"1")
    for size in (CAPACITY, CAPACITY + 1, 1000):
        with pytest.raises(ValueError, match=rf"prompts\[1\].data: expected fewer than 36 bytes, .*, got {size}; cut"):
            engine.generate_iter([good, Prompt("bin", bytes(size))])
    with pytest.raises(TypeError, match=r"prompts\[0\]: expected a Prompt, got bytes"):
        engine.generate_iter([b"1"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="prompts: expected a list of Prompt, got Prompt"):
        engine.generate_iter(good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_new_bytes: expected at least 0, got -1"):
        engine.generate_iter([good], max_new_bytes=-1)
    with pytest.raises(TypeError, match="max_new_bytes: expected an int, got float"):
        engine.generate_iter([good], max_new_bytes=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="top_p: expected a number over 0"):
        engine.generate_iter([good], top_p=0.0)
    with pytest.raises(ValueError, match="extension: expected text that UTF-8 can encode"):
        engine.generate_iter([Prompt("\ud800")])
    for fields, message in (
        ({"extension": 3}, "Prompt.extension: expected a str, got int"),
        ({"extension": "a", "data": "text"}, "Prompt.data: expected bytes, got str"),
        ({"extension": "a", "index": 1.0}, "Prompt.index: expected an int or None, got float"),
    ):
        with pytest.raises(TypeError, match=message):
            Prompt(**fields)  # type: ignore[arg-type]
    for index in (-1, 2**64):
        with pytest.raises(ValueError, match=r"Prompt.index: expected 0 ≤ index"):
            Prompt("a", b"", index)
    with pytest.raises(TypeError, match="model: expected a BGPT, got Linear"):
        Generator(torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_batch: expected at least 1, got 0"):
        Generator(model, max_batch=0)
    with pytest.raises(TypeError, match="max_batch: expected an int, got bool"):
        Generator(model, max_batch=True)


def test_a_damaged_model_is_named_and_a_good_one_still_works(model: BGPT) -> None:
    expected = Generator(model).generate([Prompt("bin", b"1")])
    broken = decided_model(CONFIG)
    with torch.no_grad():
        broken.patch_level_decoder.base.h[1].mlp.c_fc.weight[3, 5] = torch.nan
    with pytest.raises(FloatingPointError, match=r"NaN or infinite logits for prompts \[0, 1\]"):
        Generator(broken).generate([Prompt("bin"), Prompt("bin", b"12")])
    assert Generator(model).generate([Prompt("bin", b"1")]) == expected


def test_no_memory_for_the_caches_is_a_named_error(model: BGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    def out_of_memory(*_: object) -> None:
        raise MemoryError("std::bad_alloc")

    message = r"caches of 3 sequences of 16 patches, 0.0 GiB: an allocation failed, .*; lower max_batch"
    with monkeypatch.context() as patched:
        patched.setattr(generator, "make_decoder", make_eager_decoder)
        patched.setattr(eager, "_Transformer", full)
        with pytest.raises(MemoryError, match=message):
            Generator(model).generate([Prompt("bin")] * 3)
    monkeypatch.setattr(base, "CpuDecoder", out_of_memory)
    with pytest.raises(MemoryError, match=message):
        Generator(model).generate([Prompt("bin")] * 3)


def test_an_abandoned_iterator_frees_its_caches(model: BGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    decoders: list[weakref.ref[Decoder]] = []

    def recording(*arguments: Any, **options: Any) -> Decoder:
        decoder = make_decoder(*arguments, **options)
        decoders.append(weakref.ref(decoder))
        return decoder

    monkeypatch.setattr(generator, "make_decoder", recording)
    engine, prompts = Generator(model, max_batch=3), random_prompts(9, seed=5)
    expected = engine.generate(prompts)
    assert decoders.pop()() is None
    threads = threading.active_count()
    for count in range(4):
        files = engine.generate_iter(prompts)
        for _ in range(count):
            place, file = next(files)
            assert file == expected[place]
        assert all(decoder() is not None for decoder in decoders)
        assert len(decoders) == (count > 0)
        del files
        assert all(decoder() is None for decoder in decoders)
        decoders.clear()
    assert not torch.is_inference_mode_enabled()
    assert threading.active_count() == threads
    assert engine.generate(prompts) == expected


def test_no_memory_in_a_step_is_a_named_error_and_a_smaller_batch_works(
    model: BGPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = random_prompts(9, seed=5)
    expected = Generator(model).generate(prompts)
    plain = CpuDecoder.write

    def write(self: CpuDecoder, request: DecodeRequest) -> DecodeResult:
        if len(request.features) > 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 123456 bytes")
        return plain(self, request)

    monkeypatch.setattr(CpuDecoder, "write", write)
    engine = Generator(model, max_batch=9)
    with pytest.raises(MemoryError, match=r"generating 9 sequences of 16 patches at once: 123456 bytes .*max_batch"):
        engine.generate(prompts)
    assert not torch.is_inference_mode_enabled()
    assert Generator(model, max_batch=4).generate(prompts) == expected


@pytest.mark.slow
@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_hundred_files_are_independent(options: dict[str, float]) -> None:
    config = BGPTConfig(patch_length=14, hidden_size=96, patch_num_layers=3, byte_num_layers=2, num_heads=3)
    prompts = random_prompts(100, capacity=13 * 16, seed=9)
    assert files_are_independent(decided_model(config, end=3.0), prompts, (2, 3, 7, 64, 128), options)


@pytest.mark.slow
@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_cached_equals_recomputed_many(options: dict[str, float]) -> None:
    """The recomputation of all files side by side, a byte a call."""
    model, prompts = decided_model(CONFIG), random_prompts(1000, seed=10)
    cached = Generator(model).generate(prompts, **options)
    files = [Generation(prompt.data, False, len(prompt.data)) for prompt in prompts]
    for _ in range(CAPACITY + 1):
        unfinished = [i for i, file in enumerate(files) if not file.finished and len(file.data) < CAPACITY]
        again = [Prompt(prompts[i].extension, files[i].data, i) for i in unfinished]
        for i, file in zip(unfinished, Generator(model).generate(again, max_new_bytes=1, **options), strict=True):
            files[i] = Generation(file.data, file.finished, len(prompts[i].data))
    assert files == cached
