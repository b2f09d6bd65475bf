"""NotaGen against the model that its authors assemble from Hugging Face's GPT-2: loss, gradients, files, generation."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from oracles import notagen as oracle
from torch import Tensor

from benchmarks.hugging_face import HuggingFaceNotaGen
from bgpt_fast import BGPT, BGPTConfig, Generator, PackedPatches
from bgpt_fast.checkpoint.names import notagen_names
from bgpt_fast.checkpoint.save import save_released
from bgpt_fast.config import NOTAGEN_ALPHABET
from bgpt_fast.generation.decoders.base import Decoder
from bgpt_fast.generation.decoders.request import DecodeRequest, DecodeResult
from bgpt_fast.kernels.byte_decode.sampling import uniform
from bgpt_fast.models.notagen import (
    TuneError,
    TuneSource,
    generate,
    notagen_config,
    pack_tunes,
    split_bars,
    text_of,
    tune_patches,
)
from bgpt_fast.tasks.evaluation import evaluate_files
from bgpt_fast.training import TrainConfig, Trainer

CONFIG = BGPTConfig(16, 24, 128, 2, 2, **NOTAGEN_ALPHABET)
TUNE = """%Baroque
%Bach, Johann Sebastian
X:1
M:3/4
K:G
V:1 treble nm="Violino"
V:2 bass
[V:1]|:"^Allegro"d2 GABc|d2 G2 G2|[V:2]|:z6|z4 z2|
[V:1]e2 cdef|g2 G2 G2:|[V:2]z6|z4 z2:|
[V:1]B2 GA|[V:2]G,6|
[V:1]G6|][V:2]G,,6|]
"""


def models(seed: int = 0, config: BGPTConfig = CONFIG) -> tuple[BGPT, HuggingFaceNotaGen]:
    """The same random weights in both; large enough that a choice depends on the whole context."""
    torch.manual_seed(seed)
    model, plain = BGPT(config).eval(), HuggingFaceNotaGen(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3).add_(0.02 * torch.randn_like(parameter))
    plain.load_state_dict(notagen_names(model.state_dict()))
    return model, plain


def tunes() -> list[list[list[int]]]:
    texts = [TUNE, TUNE[TUNE.index("X:") :], "X:1\n" + "[V:1]c d|e f|\n" * 3]
    return [tune_patches(text, CONFIG) for text in texts]


def test_loss_and_gradients_equal_hugging_faces() -> None:
    """Relative to the largest gradient of each weight."""
    model, plain = models()
    batch = tunes()
    output = model(pack_tunes(batch))
    expected = plain([torch.tensor(tune) for tune in batch])
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=0)
    output.loss.backward()
    expected.backward()
    theirs = {name: parameter.grad for name, parameter in plain.named_parameters()}
    compared = 0
    ours = notagen_names(
        {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    )
    for name, gradient in ours.items():
        gradient = gradient.t() if name.endswith("patch_embedding.weight") else gradient
        other = theirs[name]
        assert other is not None
        assert (gradient - other).abs().max() <= 1e-4 * other.abs().max(), name
        compared += 1
    assert compared > 50
    changed = pack_tunes(batch)
    changed.patches[5, 3] = 99
    assert model(changed).loss != output.loss


def test_the_loss_does_not_read_what_follows_eos() -> None:
    """And the mean is over the other symbols: in chunks too, where the gradient is computed by hand."""
    model, _ = models()
    batch = pack_tunes(tunes())
    output = model(batch)
    is_pad = batch.patches[output.indices] == CONFIG.pad
    assert is_pad.any()
    assert not output.nats[is_pad].any()
    torch.testing.assert_close(output.loss.detach(), output.nats.sum() / (~is_pad).sum())


def test_chunks_of_the_byte_decoder_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = models()
    batch = pack_tunes(tunes())
    whole = model(batch).loss
    expected = torch.autograd.grad(whole, list(model.byte_level_decoder.parameters()))
    monkeypatch.setattr("bgpt_fast.byte_decoder.CHUNK", 7)
    loss = model(batch).loss
    torch.testing.assert_close(loss, whole)
    for ours, same in zip(
        torch.autograd.grad(loss, list(model.byte_level_decoder.parameters())), expected, strict=True
    ):
        torch.testing.assert_close(ours, same, rtol=1e-4, atol=1e-4 * float(same.abs().max()))


def test_released_files_load_and_are_written(tmp_path: Path) -> None:
    """As the public code saves them: with the optimiser's state and old masks; sizes inferred from the tensors."""
    model, plain = models()
    weights = {**plain.state_dict(), "char_level_decoder.base.transformer.h.0.attn.bias": torch.ones(1, 1, 17, 17)}
    state = {
        "model": weights,
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}},
        "epoch": 3,
        "min_eval_loss": 0.5,
    }
    torch.save(state, tmp_path / "weights_notagen.pth")
    loaded = BGPT.from_pretrained(tmp_path / "weights_notagen.pth")
    assert loaded.config == CONFIG
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    loaded.save_pretrained(tmp_path / "ours")
    assert BGPT.from_pretrained(tmp_path / "ours").config == CONFIG
    save_released(tmp_path / "again.pth", CONFIG, loaded.state_dict())
    plain.load_state_dict(torch.load(tmp_path / "again.pth", weights_only=True)["model"])


def test_patches_of_tunes() -> None:
    for length in (14, 16, 20, 60):
        config = BGPTConfig(16, length, 64, 1, 1, **NOTAGEN_ALPHABET)
        results = set()
        for seed in range(20):
            ours, stream = (random.Random(seed) for _ in range(2))
            patches = tune_patches(TUNE, config, window=ours)
            assert patches == oracle.training_patches(TUNE, length, stream)
            assert ours.random() == stream.random()
            results.add(str(patches))
        assert (len(results) > 2) == (length < 60)
    whole = tune_patches(TUNE, BGPTConfig(16, 60, 64, 1, 1, **NOTAGEN_ALPHABET), stream=False)
    assert text_of(whole) == TUNE
    assert (whole[0], whole[-1]) == ([1] * 15 + [2], [1] + [2] * 15)


@pytest.mark.parametrize(
    ("line", "bars"),
    [
        ("[V:1]abc|def|\n", ["[V:1]abc", "|def|\n"]),
        ("|:[V:1]abc:|\n", ["|:[V:1]abc:|\n"]),
        ("[V:1]a|b|[V:2]c|d|\n", ["[V:1]a", "|b", "|[V:2]c", "|d|\n"]),
        ("[V:1]a|b", ["[V:1]a|b"]),
        ("[V:1]a|", ["[V:1]a|"]),
        ("abc\n", ["abc\n"]),
    ],
)
def test_bars(line: str, bars: list[str]) -> None:
    assert split_bars(line) == bars


def next_patch_of(plain: HuggingFaceNotaGen, index: int, settings: dict[str, float]) -> oracle.NextPatch:
    """The model of Hugging Face with the oracle's sampling, on the random numbers of `generate`."""

    def next_patch(context: list[list[int]], known: list[int], count: int) -> list[int]:
        def choose(probabilities: Tensor, position: int) -> int:
            number = float(uniform(0, [index], [count * 16 + position])[0])
            return oracle.sample(probabilities.double().numpy(), uniform=number, **settings)  # type: ignore[arg-type]

        return plain.next_patch(torch.tensor(context), choose, known)

    return next_patch


HEADERS = [[], ["%Romantic\n"], ["%Classical\n", "%Haydn, Joseph, of Rohrau\n"]]
SETTINGS = {"top_k": 9, "top_p": 0.9, "temperature": 1.2}


def compare_generation(count: int, headers: list[list[str]]) -> int:
    """The number of equal patches of `generate` and of the public code's loop, each tune up to `count`."""
    model, plain = models()
    prompts = ["".join(header) for header in headers]
    ours = generate(model, prompts, max_patches=count, **SETTINGS)  # type: ignore[arg-type]
    equal = 0
    for index, (header, tune) in enumerate(zip(headers, ours, strict=True)):
        patches, finished = oracle.write(next_patch_of(plain, index, SETTINGS), header, CONFIG.patch_length, count)
        assert tune.patches == patches
        assert tune.finished == finished
        assert tune.text == "".join(header) + text_of(patches)
        equal += len(patches)
    return equal


def test_generated_patches_equal_hugging_faces() -> None:
    assert compare_generation(12, HEADERS) > 20


@pytest.mark.slow
def test_a_thousand_generated_patches_equal_hugging_faces() -> None:
    assert compare_generation(20, [[f"%Period {number}\n"] for number in range(60)]) >= 1000


class ScriptedDecoder:
    """Writes a text again and again, a patch at a time, whatever the context; heeds known symbols. A `Decoder`."""

    device = torch.device("cpu")

    def __init__(self, next_patch: oracle.NextPatch) -> None:
        self.next_patch = next_patch
        self.cache: dict[int, list[list[int]]] = {}

    def prefill(self, patches: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        for patch, slot, position in zip(patches.tolist(), slots.tolist(), positions.tolist(), strict=True):
            self.cache[slot] = [*self.cache.get(slot, [])[:position], patch]
            assert len(self.cache[slot]) == position + 1
        return slots[:, None].float()

    def write(self, request: DecodeRequest) -> DecodeResult:
        tokens = []
        for row, slot in enumerate(request.features[:, 0].int().tolist()):
            known = [token for token in request.prefix_tokens[row].tolist() if token >= 0]
            count = int(request.byte_offsets.view(torch.int64)[row]) // 16
            patch = known + self.next_patch(self.cache[slot], known, count)
            end = patch.index(2, len(known)) + 1 if 2 in patch[len(known) :] else 16
            tokens.append(patch[:end] + [0] * (16 - end))
        return DecodeResult(torch.tensor(tokens, dtype=torch.int16), torch.full((len(tokens),), 16))

    def logits(self, features: Tensor, tokens: Tensor, count: int) -> Tensor:
        raise NotImplementedError


def script(text: str) -> oracle.NextPatch:
    """A model that writes this text's patches, and after them the end; of a patch that has begun, other symbols."""
    lines = [line + "\n" for line in text.split("\n") if line]
    at = min(i for i, line in enumerate(lines) if "[V:" in line)
    parts = [*lines[:at], *(bar for line in lines[at:] for bar in oracle.bars_of(line))]
    patches = [patch for part in parts for patch in oracle.cut(part)] + [oracle.END]

    def next_patch(context: list[list[int]], known: list[int], count: int) -> list[int]:
        patch = [*map(ord, patches[min(count, len(patches) - 1)])]
        patch += [7] * (16 - len(patch))  # after the end of a patch a model may choose anything
        return patch[: 16 - len(known)] if len(known) not in (0, 5) else patch[len(known) :]

    return next_patch


def with_script(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    def make(*_: object, **__: object) -> Decoder:
        return ScriptedDecoder(script(text))

    monkeypatch.setattr("bgpt_fast.models.notagen.generator.make_decoder", make)


@pytest.mark.parametrize("length", [8, 10, 13, 24, 60])
def test_the_end_and_a_full_context(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    """With contexts that fill up several times, between lines, within bars and (10) after a bar line within a line."""
    config = BGPTConfig(16, length, 64, 1, 1, **NOTAGEN_ALPHABET)
    body = "".join(f"[r:{9 - n}/{n}][V:1]{'c' * n}|d|[V:2]e{'f' * n}|\n" for n in range(10))
    with_script(monkeypatch, body)
    model = BGPT(config)
    ours = generate(model, ["", "%A\n", "%B\n"], max_batch=2, max_patches=80)
    for header, tune in zip(([], ["%A\n"], ["%B\n"]), ours, strict=True):
        patches, finished = oracle.write(script(body), header, length, 80)
        assert (tune.patches, tune.finished) == (patches, finished)
        assert "[r:0/" in tune.text
        assert "[r:9/" not in tune.text


def test_a_tune_does_not_depend_on_the_others() -> None:
    model, _ = models()
    together = generate(model, ["", "%A\n", "%B\n"], max_patches=6)
    assert generate(model, ["", "%A\n", "%B\n"], max_patches=6, max_batch=1) == together
    assert generate(model, ["", "%A\n", "%B\n"], max_patches=6, seed=1) != together
    greedy = generate(model, [""], max_patches=4, temperature=0.0)
    assert greedy == generate(model, [""], max_patches=4, temperature=0.0, seed=5)
    assert generate(model, []) == []


def test_training_learns_a_tune_and_resumes(tmp_path: Path) -> None:
    config = BGPTConfig(16, 60, 64, 1, 1, **NOTAGEN_ALPHABET)
    source = lambda: TuneSource([TUNE, TUNE[11:]], config, 60)  # noqa: E731
    settings = TrainConfig(steps=30, learning_rate=3e-3, precision="fp32", seed=0)
    torch.manual_seed(0)
    model = BGPT(config)
    batch = pack_tunes([tune_patches(TUNE, config)])
    before = float(model(batch).loss.detach())
    Trainer(model, source(), settings, tmp_path / "run").train()
    model.eval()
    assert float(model(batch).loss.detach()) < 0.7 * before
    state = source()
    first = [state.next_batch() for _ in range(3)]
    position = state.state_dict()
    expected = [state.next_batch().patches for _ in range(3)]
    resumed = source()
    resumed.load_state_dict(position)
    assert all(torch.equal(resumed.next_batch().patches, patches) for patches in expected)
    assert {batch.num_documents for batch in first} == {2}


def test_ranks_share_the_batches_of_one() -> None:
    config = BGPTConfig(16, 24, 64, 1, 1, **NOTAGEN_ALPHABET)
    texts = ["X:1\n" + f"[V:1]{'c' * n}|\n" for n in range(1, 8)]
    alone = TuneSource(texts, config, 24, seed=3)
    parts = [TuneSource(texts, config, 24, seed=3, rank=rank, world_size=2) for rank in range(2)]
    for _ in range(3):
        for part in parts:
            assert torch.equal(part.next_batch().patches, alone.next_batch().patches)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: notagen_config("7B"), ValueError, "size: expected one of"),
        (lambda: tune_patches("K:C\nabc", CONFIG), TuneError, r"expected lines with voices such as \[V:1\]"),
        (lambda: tune_patches("[V:1]é|", CONFIG), TuneError, "expected characters of ASCII"),
        (lambda: generate(BGPT(BGPTConfig(16, 8, 64, 1, 1)), [""]), ValueError, "expected NotaGen's alphabet"),
        (lambda: generate(BGPT(CONFIG), "X:1"), TypeError, "prompts: expected a list of str"),
        (lambda: generate(BGPT(CONFIG), ["%" * 999]), ValueError, r"prompts\[0\]: expected fewer patches than"),
        (lambda: Generator(BGPT(CONFIG)), ValueError, "notagen"),
        (lambda: evaluate_files(BGPT(CONFIG), "."), ValueError, "evaluate_files: model: .*notagen"),
        (lambda: BGPT(CONFIG).save_pretrained("none", hf=True), ValueError, "hf: .*notagen"),
        (lambda: PackedPatches.from_bytes([("txt", b"a")], CONFIG), ValueError, "notagen"),
        (lambda: TuneSource([], CONFIG, 24), ValueError, "at least one text"),
        (lambda: TuneSource(["[V:1]a|", "b"], CONFIG, 24), TuneError, r"tunes\[1\]"),
        (lambda: BGPTConfig(vocab_size=100), ValueError, r"vocab_size: expected one of \(128, 257\), got 100"),
        (lambda: BGPTConfig(vocab_size=128), ValueError, "eop: expected a symbol 0…127, got 256"),
        (lambda: BGPTConfig(vocab_size=128, eop=2, bos=1), ValueError, "bos, eos, pad: expected three symbols"),
        (lambda: BGPTConfig(eop=5), ValueError, "expected eop 256"),
    ],
)
def test_errors(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_sizes_are_those_of_the_released_models() -> None:
    for size, millions in (("110M", 110), ("244M", 244), ("516M", 516)):
        with torch.device("meta"):
            model = BGPT(notagen_config(size))
        assert round(model.num_parameters() / 1e6) == pytest.approx(millions, abs=6)


def test_the_config_of_bgpt_is_stored_as_before() -> None:
    assert "vocab_size" not in BGPTConfig().to_dict()
    assert BGPTConfig.from_dict(CONFIG.to_dict()) == CONFIG
