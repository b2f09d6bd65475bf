"""Generation with drafts gives the same bytes as without, in fewer steps where drafts are right."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
import torch
from support.byte_decode import decided_model

from bgpt_fast import BGPT, BGPTConfig, Generation, Generator, Prompt
from bgpt_fast.generation import generator
from bgpt_fast.generation.decoders import cpu
from bgpt_fast.generation.decoders.base import Decoder, make_decoder
from bgpt_fast.generation.drafting import Drafter, KnownDrafter, LookupDrafter, RepeatDrafter
from bgpt_fast.kernels.byte_decode.op import Decoded, byte_decode
from bgpt_fast.kernels.byte_decode.packed import PackedByteDecoder

CONFIG = BGPTConfig(patch_size=4, patch_length=12, hidden_size=32, patch_num_layers=2, byte_num_layers=2, num_heads=4)
CAPACITY = 44
OPTIONS = {"greedy": {}, "sampled": {"temperature": 0.9, "top_k": 200, "top_p": 0.98, "seed": 3}}


@pytest.fixture(scope="module")
def model() -> BGPT:
    return decided_model(CONFIG)


def prompts_of(count: int, seed: int = 0) -> list[Prompt]:
    stream = random.Random(seed)
    sizes = [0, 1, 4, 7, *(stream.randrange(CAPACITY - 8) for _ in range(count))][:count]
    return [Prompt("bin", stream.randbytes(size), i) for i, size in enumerate(sizes)]


def spoiled(files: list[Generation], rate: float, seed: int) -> list[bytes]:
    """The files with some bytes wrong, and up to 8 more bytes."""
    stream = random.Random(seed)
    files_with_errors = []
    for file in files:
        data = bytearray(file.data)
        for i in range(file.prompt_bytes, len(data)):
            if stream.random() < rate:
                data[i] = stream.randrange(256)
        files_with_errors.append(bytes(data) + stream.randbytes(stream.randrange(9)))
    return files_with_errors


class SameOffsetDrafter:
    """Drafts from another file at the same offset, also after a wrong draft."""

    def __init__(self, files: list[bytes]) -> None:
        self.files = files

    def __call__(self, place: int, data: bytes) -> bytes:
        return self.files[place][len(data) :]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("max_new_bytes", [None, 7])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_drafts_change_no_byte(
    model: BGPT, options: dict[str, float], max_new_bytes: int | None, precision: str
) -> None:
    prompts = prompts_of(14)
    engine = Generator(model, max_batch=5, precision=precision)
    plain = engine.generate(prompts, max_new_bytes=max_new_bytes, **options)
    assert {file.finished for file in plain} == {True, False}
    assert all(file.drafted == file.accepted == 0 for file in plain)
    drafters: list[Drafter] = [RepeatDrafter(4), RepeatDrafter(1), LookupDrafter(3, 1, 9)]
    drafters += [SameOffsetDrafter(spoiled(plain, rate, seed)) for seed, rate in enumerate((0.0, 0.03, 0.1, 0.5, 1.0))]
    for drafter in drafters:
        drafted = engine.generate(prompts, max_new_bytes=max_new_bytes, drafter=drafter, **options)
        assert drafted == plain
        assert all(0 <= file.accepted <= file.drafted for file in drafted)


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_thousand_drafted_files_are_those_without_drafts(model: BGPT, options: dict[str, float]) -> None:
    """RELIABILITY R6."""
    prompts, engine = prompts_of(1000, seed=11), Generator(model, max_batch=64)
    plain = engine.generate(prompts, **options)
    for seed, rate in enumerate((0.05, 0.5)):
        drafted = engine.generate(prompts, drafter=SameOffsetDrafter(spoiled(plain, rate, seed)), **options)
        assert drafted == plain
        assert sum(file.drafted for file in drafted) > 1000
        assert 0 < sum(file.accepted for file in drafted) < sum(file.drafted for file in drafted)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_small_model_drafts_and_changes_no_byte(model: BGPT, options: dict[str, float], precision: str) -> None:
    """Also one with wrong guesses, and with NaN; the model itself as its drafter is always right."""
    sizes = {"hidden_size": 16, "patch_num_layers": 1, "byte_num_layers": 1, "num_heads": 2}
    small = decided_model(dataclasses.replace(CONFIG, **sizes), seed=1)
    damaged = decided_model(dataclasses.replace(CONFIG, **sizes, patch_length=20), seed=2)
    with torch.no_grad():
        damaged.patch_level_decoder.patch_embedding.weight[0::257] = torch.nan
    prompts = prompts_of(14)
    for batch in (1, 5):
        engine = Generator(model, max_batch=batch, precision=precision)
        for max_new_bytes in (None, 7):
            plain = engine.generate(prompts, max_new_bytes=max_new_bytes, **options)
            for drafter in (small, damaged, model):
                drafted = engine.generate(prompts, max_new_bytes=max_new_bytes, drafter=drafter, **options)
                assert drafted == plain
                assert sum(file.drafted for file in drafted) > 5
                if drafter is model:
                    assert all(file.accepted == file.drafted for file in drafted)
                else:
                    assert sum(file.accepted for file in drafted) < sum(file.drafted for file in drafted)


def test_drafters_that_do_not_fit_are_named(model: BGPT) -> None:
    for change in ({"patch_size": 2}, {"patch_length": 11}):
        other = BGPT(dataclasses.replace(CONFIG, **change))
        with pytest.raises(ValueError, match="drafter: expected patches of 4 of 257 symbols and a context"):
            Generator(model).generate([Prompt("bin")], drafter=other)


def test_a_drafter_s_cache_counts_as_memory(model: BGPT) -> None:
    engine = Generator(model, max_memory=10**7)
    assert engine._slots(10**6, 16, None) > 1.8 * engine._slots(10**6, 16, model)


def test_unverified_drafts_are_noticed(model: BGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: a decoder that takes drafts for a prefix."""
    prompts = prompts_of(8)
    plain = Generator(model).generate(prompts)

    def unverified(weights: PackedByteDecoder, *request: Any) -> Decoded:
        features, prefix, *others, drafts, _ = request
        return byte_decode(weights, features, torch.where(prefix < 0, drafts, prefix), *others)

    monkeypatch.setattr(cpu, "byte_decode", unverified)
    assert Generator(model).generate(prompts, drafter=SameOffsetDrafter(spoiled(plain, 0.3, 1))) != plain


def test_nan_counts_only_in_a_file_s_own_bytes(model: BGPT) -> None:
    """NaN after a wrong draft is ignored; NaN in a file is an error, with drafts or without."""
    prompts = prompts_of(5)
    plain = Generator(model).generate(prompts)
    absent = next(byte for byte in range(256) if all(byte not in file.data for file in plain))
    damaged = BGPT(CONFIG)
    damaged.load_state_dict(model.state_dict())
    with torch.no_grad():
        damaged.patch_level_decoder.patch_embedding.weight[absent::257] = torch.nan
    engine = Generator(damaged)
    assert engine.generate(prompts) == plain
    assert engine.generate(prompts, drafter=lambda *_: bytes([absent] * 12)) == plain
    hurt = Prompt("bin", bytes([absent] * 4))
    with pytest.raises(FloatingPointError, match=r"logits for prompts \[1\]; the model's weights"):
        engine.generate([prompts[0], hurt], drafter=RepeatDrafter(4))


def test_right_drafts_are_accepted_and_save_steps(model: BGPT) -> None:
    prompts = [prompt for prompt in prompts_of(14) if len(prompt.data) < 12]
    plain = Generator(model).generate(prompts)

    def steps(drafter: Drafter | None) -> tuple[int, list[Generation]]:
        calls: list[int] = []
        files = Generator(model).generate(prompts, drafter=drafter, progress=lambda *_: calls.append(1))
        return len(calls), files

    slow, _ = steps(None)
    fast, files = steps(KnownDrafter([file.data for file in plain]))
    assert fast < slow / 2
    assert files == plain
    # The byte after the verified ones is decoded in the same step, and is not drafted.
    assert all(file.drafted == file.accepted >= 0.6 * (len(file.new_bytes) - 1) for file in files)
    _, wrong = steps(KnownDrafter([bytes(byte ^ 255 for byte in file.data) for file in plain]))
    assert sum(file.accepted for file in wrong) <= sum(file.drafted for file in wrong) / 10


def test_drafts_stay_within_the_memory_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where layers are few, the drafted patches' features take as much memory as the caches."""
    config = BGPTConfig(patch_length=70, hidden_size=16, patch_num_layers=1, byte_num_layers=1, num_heads=1)
    torch.manual_seed(0)
    engine = Generator(BGPT(config))
    each, activations = engine.sequence_bytes(69), engine._activation_bytes(RepeatDrafter())
    engine.max_memory = activations + 10 * each
    sizes: list[int] = []
    slots: list[int] = []

    def recording_make(model: BGPT, count: int, length: int, **options: Any) -> Decoder:
        slots.append(count)
        return make_decoder(model, count, length, **options)

    def recording_decode(weights: PackedByteDecoder, features: torch.Tensor, *request: Any) -> Decoded:
        sizes.append(slots[-1] * each + 2 * features.nbytes)  # in parts, and concatenated
        return byte_decode(weights, features, *request)

    monkeypatch.setattr(generator, "make_decoder", recording_make)
    monkeypatch.setattr(cpu, "byte_decode", recording_decode)
    prompts = [Prompt("bin")] * 20
    assert len(engine.generate(prompts, max_new_bytes=1100, drafter=lambda *_: bytes(1024))) == 20
    assert activations + max(sizes) <= engine.max_memory < activations + 2 * max(sizes)
    assert 1 < slots[0] < 10


def test_what_drafters_return() -> None:
    assert RepeatDrafter(3)(0, b"abcdef") == b"def"
    assert RepeatDrafter(3)(0, b"ab") == b""
    lookup = LookupDrafter(longest=3, shortest=2, length=4)
    assert lookup(0, b"xxabcdefgh1abc") == b"defg"
    assert lookup(0, b"bc1abc2bc") == b"2bc"  # the later of two equally long matches
    assert lookup(0, b"abcdef") == lookup(0, b"") == lookup(0, b"a") == b""
    assert lookup(0, b"aaaa") == b"a"  # the match may overlap the last bytes
    assert KnownDrafter([b"abc", b"xyz"])(1, b"x") == b"yz"
    assert KnownDrafter([b"abc"])(0, b"b") == KnownDrafter([b"abc"])(1, b"") == b""
    with pytest.raises(ValueError, match="RepeatDrafter: period: expected at least 1, got 0"):
        RepeatDrafter(0)
    with pytest.raises(ValueError, match="LookupDrafter: expected 1 ≤ shortest ≤ longest"):
        LookupDrafter(2, 3)
