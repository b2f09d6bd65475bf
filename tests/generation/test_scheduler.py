"""The bookkeeping of many files: what a plain loop over one file at a time gives, in any number of slots."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from oracles.generation import DamagedError, generate_file
from support.hash_decoder import HashDecoder, HashModel, LateHashDecoder

from bgpt_fast import BGPT, BGPTConfig, Generation, Generator, Prompt
from bgpt_fast.generation import generator
from bgpt_fast.generation.decoders.request import DecodeRequest, DecodeResult
from bgpt_fast.generation.drafting import Drafter, KnownDrafter, LookupDrafter, RepeatDrafter

CONFIG = BGPTConfig(patch_size=4, patch_length=24, hidden_size=8, patch_num_layers=1, byte_num_layers=1, num_heads=1)
CAPACITY = 92
SEED = 2**63 + 12345
GOLDEN = "5b0e48a8b5b053eb9d67b358d2f0c13a9663b2f84793c85738c94294e59d3146"
GOLDEN_DRAFTED = "10ac9d7709d64450e31e107ebcbb2c4fc3f7245b338a068fe639178a4b737385"
Make = Callable[[HashModel, int, int], HashDecoder]


def random_prompts(count: int, seed: int = 0) -> list[Prompt]:
    """Prompts of all lengths, most of which end inside a patch; some have a source, some a stream of their own."""
    stream = random.Random(seed)
    prompts = []
    for _ in range(count):
        source = ("abc", stream.randbytes(stream.randrange(20))) if stream.random() < 0.2 else None
        context = CAPACITY - (0 if source is None else 4 * (1 - -len(source[1]) // 4))
        size = stream.choice([0, 1, 4, context - 1, stream.randrange(context), stream.randrange(context)])
        index = stream.choice([None, None, stream.randrange(2**63, 2**64)])
        prompts.append(Prompt(stream.choice(["bin", "", "a_long_one"]), stream.randbytes(size), index, source))
    return prompts


def make_generator(
    monkeypatch: pytest.MonkeyPatch, model: HashModel, make: Make = HashDecoder, **options: Any
) -> Generator:
    """A Generator whose decoder is a `HashDecoder`."""
    monkeypatch.setattr(generator, "make_decoder", lambda _, slots, length, **__: make(model, slots, length))
    torch.manual_seed(0)
    return Generator(BGPT(CONFIG), **options)


def expected_files(model: HashModel, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
    return [generate_file(model, CONFIG, prompt, i, **options) for i, prompt in enumerate(prompts)]


@pytest.fixture(scope="module")
def thousand() -> tuple[list[Prompt], list[Generation]]:
    """A thousand prompts, and the files of a plain loop."""
    prompts = random_prompts(1000)
    return prompts, expected_files(HashModel(), prompts, seed=SEED)


def spoiled(files: Sequence[Generation], rate: float, seed: int) -> list[bytes]:
    """The files with some bytes wrong, and up to 8 more bytes."""
    stream = random.Random(seed)

    def content(file: Generation) -> bytes:
        new = [stream.randrange(256) if stream.random() < rate else byte for byte in file.new_bytes]
        return file.data[: file.prompt_bytes] + bytes(new) + stream.randbytes(stream.randrange(9))

    return [content(file) for file in files]


class SameOffsetDrafter:
    """Drafts from another file at the same offset, also after a wrong draft."""

    def __init__(self, files: list[bytes]) -> None:
        self.files = files

    def __call__(self, place: int, data: bytes) -> bytes:
        return self.files[place][len(data) :]


@pytest.mark.parametrize("make", [HashDecoder, LateHashDecoder])
@pytest.mark.parametrize(("slots", "count"), [(1, 150), (2, 300), (7, 1000), (64, 1000), (1000, 1000), (4096, 1000)])
def test_a_thousand_files_are_those_of_a_plain_loop(
    monkeypatch: pytest.MonkeyPatch, thousand: tuple[list[Prompt], list[Generation]], slots: int, count: int, make: Make
) -> None:
    prompts, expected = thousand
    files = make_generator(monkeypatch, HashModel(), make, max_batch=slots).generate(prompts[:count], seed=SEED)
    assert files == expected[:count]
    assert {file.finished for file in files} == {True, False}


@pytest.mark.parametrize(("make", "slots"), [(HashDecoder, 32), (LateHashDecoder, 32), (LateHashDecoder, 300)])
@pytest.mark.parametrize("max_new_bytes", [0, 1, 3, 4, 9])
def test_limits_within_and_at_patches(
    monkeypatch: pytest.MonkeyPatch, max_new_bytes: int, make: Make, slots: int
) -> None:
    model, prompts = HashModel(), random_prompts(300, seed=1)
    files = make_generator(monkeypatch, model, make, max_batch=slots).generate(prompts, max_new_bytes=max_new_bytes)
    assert files == expected_files(model, prompts, max_new_bytes=max_new_bytes)


def wrong_prefix(request: DecodeRequest) -> DecodeRequest:
    prefix = request.prefix_tokens
    return request._replace(prefix_tokens=torch.where(prefix >= 0, prefix ^ 1, prefix))


MISTAKES: dict[str, Callable[[DecodeRequest], DecodeRequest]] = {
    "a prefix": wrong_prefix,
    "a stream": lambda request: request._replace(rng_streams=request.rng_streams[:1].expand(len(request.features))),
    "an offset": lambda request: request._replace(byte_offsets=request.byte_offsets[:1].expand(len(request.features))),
    "a feature": lambda request: request._replace(features=request.features.roll(1, 0)),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_wrong_row_is_noticed(
    monkeypatch: pytest.MonkeyPatch, mistake: Callable[[DecodeRequest], DecodeRequest]
) -> None:
    """The negative control of the equalities of this file."""

    class Mistaken(HashDecoder):
        def write(self, request: DecodeRequest) -> DecodeResult:
            return super().write(mistake(request))

    model, prompts = HashModel(), random_prompts(50, seed=2)
    assert make_generator(monkeypatch, model, Mistaken).generate(prompts) != expected_files(model, prompts)


@pytest.mark.parametrize("max_new_bytes", [None, 7])
@pytest.mark.parametrize(("slots", "count"), [(1, 40), (16, 200), (400, 200)])
def test_a_thousand_drafted_files_are_those_of_a_plain_loop(
    monkeypatch: pytest.MonkeyPatch, slots: int, count: int, max_new_bytes: int | None
) -> None:
    model, prompts = HashModel(end=6), random_prompts(count, seed=3)
    files = expected_files(model, prompts, max_new_bytes=max_new_bytes, seed=SEED)
    engine = make_generator(monkeypatch, model, max_batch=slots)
    drafters: list[Drafter] = [RepeatDrafter(4), LookupDrafter(3, 1, 9), KnownDrafter([file.data for file in files])]
    drafters += [SameOffsetDrafter(spoiled(files, rate, seed)) for seed, rate in enumerate((0.03, 0.3))]
    for drafter in drafters:
        drafted = engine.generate(prompts, max_new_bytes=max_new_bytes, drafter=drafter, seed=SEED)
        assert drafted == files
        assert all(0 <= file.accepted <= file.drafted for file in drafted)


@pytest.mark.parametrize(("drafted", "make"), [(False, HashDecoder), (False, LateHashDecoder), (True, HashDecoder)])
def test_nan_rows_are_named_if_a_file_has_them(monkeypatch: pytest.MonkeyPatch, drafted: bool, make: Make) -> None:
    """NaN after a wrong draft, or after a file's end, belongs to no file; NaN in a file stops it, and names the
    prompts."""
    model, prompts = HashModel(damaged=1000), random_prompts(400, seed=4)
    files, damaged = [], []
    for i, prompt in enumerate(prompts):
        try:
            files.append(generate_file(model, CONFIG, prompt, i))
        except DamagedError:
            damaged.append(i)
            files.append(Generation(prompt.data, False, len(prompt.data)))
    assert 20 < len(damaged) < 380
    good = [Prompt(p.extension, p.data, i if p.index is None else p.index, p.source) for i, p in enumerate(prompts)]
    finite = [i for i in range(len(prompts)) if i not in damaged]
    drafter = SameOffsetDrafter(spoiled([files[i] for i in finite], 0.2, 1)) if drafted else None
    engine = make_generator(monkeypatch, model, make, max_batch=400 if make is LateHashDecoder else 50)
    assert engine.generate([good[i] for i in finite], drafter=drafter) == [files[i] for i in finite]
    for i in damaged[:20]:
        with pytest.raises(FloatingPointError, match=r"NaN or infinite logits for prompts \[1\]; the model's weights"):
            engine.generate([good[finite[0]], good[i]], drafter=None if drafter is None else RepeatDrafter(4))


def test_a_round_begins_before_the_one_before_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """But not while a file waits for a slot, and not after all files are at their limits."""
    decoders: list[LateHashDecoder] = []

    def make(*arguments: Any) -> LateHashDecoder:
        decoders.append(LateHashDecoder(*arguments))
        return decoders[-1]

    engine = make_generator(monkeypatch, HashModel(end=0), make, max_batch=2)
    files = engine.generate([Prompt("bin", b"")] * 3, max_new_bytes=12)
    assert [len(file.data) for file in files] == [12, 12, 12]
    assert decoders[0].log == ["begin", "wait"] * 3 + ["begin", "begin", "wait", "begin", "wait", "wait"]


def test_a_file_that_ends_early_costs_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    decoders: list[LateHashDecoder] = []

    def make(*arguments: Any) -> LateHashDecoder:
        decoders.append(LateHashDecoder(*arguments))
        return decoders[-1]

    model, prompt = HashModel(end=100), Prompt("bin", b"")
    (file,) = make_generator(monkeypatch, model, make, max_batch=1).generate([prompt])
    assert file == generate_file(model, CONFIG, prompt, 0)
    assert file.finished
    rounds = len(file.data) // CONFIG.patch_size + 1
    assert decoders[0].log.count("wait") == rounds
    assert decoders[0].log.count("begin") == rounds + 1


@pytest.mark.parametrize("make", [HashDecoder, LateHashDecoder])
def test_progress_and_order_of_the_files(monkeypatch: pytest.MonkeyPatch, make: Make) -> None:
    """As before the bookkeeping was in arrays: the same calls, the same order, the same drafts; by their hashes."""
    model, prompts = HashModel(end=6), random_prompts(300, seed=5)
    engine = make_generator(monkeypatch, model, make, max_batch=40)
    files = expected_files(model, prompts)
    for drafter, expected in ((None, GOLDEN), (SameOffsetDrafter(spoiled(files, 0.1, 0)), GOLDEN_DRAFTED)):
        log: list[object] = []

        def note(*counts: int, log: list[object] = log) -> None:
            log.append(counts)

        for place, file in engine.generate_iter(prompts, drafter=drafter, progress=note, max_new_bytes=40):
            log.append((place, file.data, file.finished, file.drafted, file.accepted))
        assert hashlib.sha256(repr(log).encode()).hexdigest() == expected
