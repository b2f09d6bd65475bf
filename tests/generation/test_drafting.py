"""Drafted generation writes what plain generation writes, and takes fewer rounds where guesses are right."""

from __future__ import annotations

import random

import pytest
import torch

from bgpt_fast import BGPT, BGPTConfig, Generation, Generator, Prompt
from bgpt_fast.generation import packed
from bgpt_fast.generation.drafting import Drafter, KnownDrafter, LookupDrafter, RepeatDrafter

CONFIG = BGPTConfig(patch_size=4, patch_length=12, hidden_size=32, patch_num_layers=2, byte_num_layers=2, num_heads=4)
ROOM = 44
OPTIONS = {"greedy": {}, "sampled": {"temperature": 0.9, "top_k": 200, "top_p": 0.98, "seed": 3}}


@pytest.fixture(scope="module")
def model() -> BGPT:
    torch.manual_seed(0)
    model = BGPT(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
        base = model.byte_level_decoder.base.transformer
        base.ln_f.bias += 7.5 * base.wte.weight[256] / base.wte.weight[256].square().sum()
    return model


def prompts_of(count: int, seed: int = 0) -> list[Prompt]:
    stream = random.Random(seed)
    sizes = [0, 1, 4, 7, *(stream.randrange(ROOM - 8) for _ in range(count))][:count]
    return [Prompt("bin", stream.randbytes(size), i) for i, size in enumerate(sizes)]


def spoiled(files: list[Generation], rate: float, seed: int) -> list[bytes]:
    """The files with some bytes wrong, some bytes more or none at all."""
    stream = random.Random(seed)
    found = []
    for file in files:
        data = bytearray(file.data)
        for i in range(file.prompt_bytes, len(data)):
            if stream.random() < rate:
                data[i] = stream.randrange(256)
        found.append(bytes(data) + stream.randbytes(stream.randrange(9)))
    return found


class Healing:
    """A drafter that knows a file of the same length better than its bytes so far: guesses go on after a wrong one."""

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
    drafters += [Healing(spoiled(plain, rate, seed)) for seed, rate in enumerate((0.0, 0.03, 0.1, 0.5, 1.0))]
    for drafter in drafters:
        drafted = engine.generate(prompts, max_new_bytes=max_new_bytes, drafter=drafter, **options)
        assert drafted == plain
        assert all(0 <= file.accepted <= file.drafted for file in drafted)


def test_a_guess_that_is_believed_is_noticed(model: BGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: a decoder that takes guesses for given bytes."""
    prompts = prompts_of(8)
    plain = Generator(model).generate(prompts)
    decode = packed.PackedByteDecoder.decode

    def believing(self: packed.PackedByteDecoder, features: torch.Tensor, given: torch.Tensor, *rest, **named):  # type: ignore[no-untyped-def]
        drafts = named.pop("drafts")
        return decode(self, features, torch.where(given < 0, drafts, given), *rest, **named)

    monkeypatch.setattr(packed.PackedByteDecoder, "decode", believing)
    assert Generator(model).generate(prompts, drafter=Healing(spoiled(plain, 0.3, 1))) != plain


def test_only_what_a_file_says_can_be_damaged(model: BGPT) -> None:
    """NaN behind a wrong guess is of no file; NaN in a file is told, guesses or not."""
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


def test_right_guesses_are_accepted_and_save_rounds(model: BGPT) -> None:
    prompts = [prompt for prompt in prompts_of(14) if len(prompt.data) < 12]
    plain = Generator(model).generate(prompts)

    def rounds(drafter: Drafter | None) -> tuple[int, list[Generation]]:
        calls: list[int] = []
        files = Generator(model).generate(prompts, drafter=drafter, progress=lambda *_: calls.append(1))
        return len(calls), files

    slow, _ = rounds(None)
    fast, files = rounds(KnownDrafter([file.data for file in plain]))
    assert fast < slow / 2
    assert files == plain
    # A byte right behind what one pass has confirmed comes for nothing, and is not guessed.
    assert all(file.drafted == file.accepted >= 0.6 * (len(file.new_bytes) - 1) for file in files)
    _, wrong = rounds(KnownDrafter([bytes(byte ^ 255 for byte in file.data) for file in plain]))
    assert sum(file.accepted for file in wrong) <= sum(file.drafted for file in wrong) / 10


def test_guesses_stay_within_the_memory_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """The features of what is guessed at once weigh as much as the caches where layers are few."""
    config = BGPTConfig(patch_length=70, hidden_size=16, patch_num_layers=1, byte_num_layers=1, num_heads=1)
    torch.manual_seed(0)
    engine = Generator(BGPT(config))
    each, activations = engine.sequence_bytes(69), engine._activations(drafting=True)
    engine.max_memory = activations + 10 * each
    taken: list[int] = []
    decode, make = packed.PackedByteDecoder.decode, Generator._decoder
    slots: list[int] = []

    def made(engine: Generator, count: int, length: int) -> object:
        slots.append(count)
        return make(engine, count, length)

    def decoding(self: packed.PackedByteDecoder, features: torch.Tensor, *rest, **named):  # type: ignore[no-untyped-def]
        taken.append(slots[-1] * each + 2 * features.nbytes)  # in parts, and put together
        return decode(self, features, *rest, **named)

    monkeypatch.setattr(Generator, "_decoder", made)
    monkeypatch.setattr(packed.PackedByteDecoder, "decode", decoding)
    prompts = [Prompt("bin")] * 20
    assert len(engine.generate(prompts, max_new_bytes=1100, drafter=lambda *_: bytes(1024))) == 20
    assert activations + max(taken) <= engine.max_memory < activations + 2 * max(taken)
    assert 1 < slots[0] < 10


def test_drafters_guess_what_they_say() -> None:
    assert RepeatDrafter(3)(0, b"abcdef") == b"def"
    assert RepeatDrafter(3)(0, b"ab") == b""
    lookup = LookupDrafter(longest=3, shortest=2, length=4)
    assert lookup(0, b"xxabcdefgh1abc") == b"defg"
    assert lookup(0, b"bc1abc2bc") == b"2bc"  # of two runs as long, the later one
    assert lookup(0, b"abcdef") == lookup(0, b"") == lookup(0, b"a") == b""
    assert lookup(0, b"aaaa") == b"a"  # the run may overlap what it is found by
    assert KnownDrafter([b"abc", b"xyz"])(1, b"x") == b"yz"
    assert KnownDrafter([b"abc"])(0, b"b") == KnownDrafter([b"abc"])(1, b"") == b""
    with pytest.raises(ValueError, match="RepeatDrafter: period: expected at least 1, got 0"):
        RepeatDrafter(0)
    with pytest.raises(ValueError, match="LookupDrafter: expected 1 ≤ shortest ≤ longest"):
        LookupDrafter(2, 3)
