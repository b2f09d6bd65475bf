"""Scores have the bits of generation: at once or byte by byte, alone or in a batch."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from support.byte_decode import decided_model
from torch import Tensor

from bgpt_fast import BGPT, BGPTConfig, Generator, PackedPatches, Prompt
from bgpt_fast.generation import scoring
from bgpt_fast.generation.decoders import cpu
from bgpt_fast.generation.decoders.eager import EagerDecoder
from bgpt_fast.generation.scoring import ByteStreams, context_bytes, score, score_files
from bgpt_fast.kernels.byte_decode.op import Decoded, byte_decode
from bgpt_fast.kernels.byte_decode.packed import PackedByteDecoder
from bgpt_fast.kernels.byte_decode.sampling import Sampling, choose

CONFIG = BGPTConfig(patch_size=4, patch_length=10, hidden_size=32, patch_num_layers=2, byte_num_layers=2, num_heads=4)
CAPACITY = 36
Documents = list[tuple[str, bytes]]


@pytest.fixture(scope="module")
def model() -> BGPT:
    return decided_model(CONFIG, end=0.0).eval()


def random_documents(count: int, seed: int = 0) -> Documents:
    stream = random.Random(seed)
    sizes = [0, 1, 3, 4, 5, CAPACITY - 1, CAPACITY, *(stream.randrange(CAPACITY + 1) for _ in range(count))][:count]
    return [(stream.choice(["bin", "txt", "", "a_long_one"]), stream.randbytes(size)) for size in sizes]


def byte_by_byte(model: BGPT, documents: Documents) -> list[Tensor]:
    streams = ByteStreams(model, [extension for extension, _ in documents])
    logits_of: list[list[Tensor]] = [[] for _ in documents]
    for i in range(CAPACITY):
        rows = [row for row, (_, content) in enumerate(documents) if i <= len(content)]
        for row, logits in zip(rows, streams.logits(rows) if rows else (), strict=True):
            logits_of[row].append(logits)
        unfinished = [row for row in rows if i < len(documents[row][1])]
        streams.append(unfinished, [documents[row][1][i] for row in unfinished])
    assert [streams.content(row) for row in range(len(streams))] == [content for _, content in documents]
    return [torch.stack(rows) for rows in logits_of]


def equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(one, two) for one, two in zip(left, right, strict=True))


def test_the_same_bits_at_once_and_byte_by_byte_alone_and_in_a_batch(model: BGPT) -> None:
    documents = random_documents(24)
    together = list(score(model, documents, max_batch=24))
    assert [len(rows) for rows in together] == [min(len(content) + 1, CAPACITY) for _, content in documents]
    for batch in (1, 2, 7):
        assert equal(together, list(score(model, documents, max_batch=batch)))
    assert equal(together, byte_by_byte(model, documents))
    assert equal(together[:9], [byte_by_byte(model, [document])[0] for document in documents[:9]])
    assert not equal(together, [rows.nextafter(rows.new_tensor(9.0)) for rows in together]), "the last bit counts"


def test_generation_samples_from_these_logits(model: BGPT) -> None:
    """The bytes that the generator samples are those that the scores of its own output give."""
    prompts = [
        Prompt(extension, content[:9], index) for index, (extension, content) in enumerate(random_documents(20, 1))
    ]
    options = {"temperature": 1.3, "top_p": 0.97, "seed": 5}
    files = Generator(model, max_batch=8).generate(prompts, **options)
    documents = [(prompt.extension, file.data) for prompt, file in zip(prompts, files, strict=True)]
    for prompt, file, rows in zip(prompts, files, score(model, documents), strict=True):
        start = file.prompt_bytes
        expected = [*file.new_bytes, 256] if file.finished else [*file.new_bytes]
        stop = start + len(expected)
        chosen = choose(rows[start:stop], Sampling(**options), [prompt.index] * len(expected), range(start, stop))
        assert chosen == expected


def test_the_bits_are_those_that_generation_computed(model: BGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    generated: dict[tuple[int, int], Tensor] = {}

    def recording(weights: PackedByteDecoder, *request: Any) -> Decoded:
        decoded = byte_decode(weights, *request, return_logits=True)
        assert decoded.logits is not None
        _, _, _, rng_streams, byte_offsets, *_ = request
        for stream, offset, logits in zip(rng_streams.tolist(), byte_offsets.tolist(), decoded.logits, strict=True):
            for s, row in enumerate(logits):
                if not bool(row.isnan().any()):
                    generated[stream, offset + s] = row
        return decoded

    prompts = [Prompt(extension, content[:9], index) for index, (extension, content) in enumerate(random_documents(9))]
    with monkeypatch.context() as patch:
        patch.setattr(cpu, "byte_decode", recording)
        files = Generator(model, max_batch=4).generate(prompts, temperature=1.0)
    documents = [(prompt.extension, file.data) for prompt, file in zip(prompts, files, strict=True)]
    scored = list(score(model, documents))
    assert len(generated) >= sum(len(file.new_bytes) for file in files) > 100
    for (index, i), row in generated.items():
        if i < len(scored[index]):
            assert torch.equal(scored[index][i], row)
    assert any(not torch.equal(scored[index][i - 1], row) for (index, i), row in generated.items() if i)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_every_precision_has_its_own_bits(model: BGPT, precision: str) -> None:
    documents = random_documents(9, 3)
    rough = list(score(model, documents, precision=precision))
    streams = ByteStreams(model, [documents[8][0]], precision=precision)
    assert torch.equal(streams.logits([0])[0], rough[8][0])
    assert not equal(rough, list(score(model, documents)))


def test_the_eager_decoder_agrees(model: BGPT) -> None:
    documents = random_documents(9, 4)
    decoder = EagerDecoder(model, 4, 16)
    for rows, expected in zip(scoring._score(decoder, CONFIG, documents, 4), score(model, documents), strict=True):
        torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-4)


def test_against_the_model_itself(model: BGPT) -> None:
    documents = random_documents(12, 2)
    for document, rows in zip(documents, score(model, documents), strict=True):
        with torch.no_grad():
            packed = PackedPatches.from_bytes([document], CONFIG, end_of_file=len(document[1]) < CAPACITY)
            expected = model.logits(packed).flatten(0, 1)[: len(rows)]
        torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-4)


def test_files(model: BGPT, tmp_path: Path) -> None:
    contents = {"a.txt": b"hello there", "b.bin": b"", "c": bytes(CAPACITY), "d.bin": bytes(range(100))}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    paths = [tmp_path / name for name in contents]
    with pytest.raises(ValueError, match=r"d\.bin': expected at most 36 bytes.* got 100"):
        score_files(model, paths)
    scores = score_files(model, paths, truncation="head", max_batch=3)
    with pytest.warns(DeprecationWarning, match="overlong is now called truncation"):
        assert score_files(model, paths, overlong="head") == scores  # type: ignore[call-arg]
    assert [file.num_bytes for file in scores] == [11, 0, 36, 36]
    assert [file.is_cut for file in scores] == [False, False, False, True]
    assert math.isnan(scores[1].bits_per_byte)
    packed = PackedPatches.from_bytes([("txt", b"hello there")], CONFIG)
    with torch.no_grad():
        nats = -model.logits(packed).flatten(0, 1)[:12].double().log_softmax(1)
    assert scores[0].nats == pytest.approx(float(nats[range(12), [*b"hello there", 256]].sum()), rel=1e-5)
    assert scores == [score_files(model, [path], truncation="head")[0] for path in paths]


def test_wrong_arguments_are_named(model: BGPT) -> None:
    assert context_bytes(CONFIG) == CAPACITY
    with pytest.raises(ValueError, match=r"documents\[1\]: expected at most 36 bytes"):
        score(model, [("", b""), ("", bytes(37))])
    with pytest.raises(TypeError, match="model: expected a BGPT"):
        score(model.byte_level_decoder, [])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="precision: expected None or one of"):
        score(model, [], precision="float8")
    with pytest.raises(ValueError, match="max_batch"):
        score(model, [], max_batch=0)
    assert list(score(model, [])) == []
    with pytest.raises(ValueError, match=r"length: expected 0…36"):
        ByteStreams(model, [""], length=37)
    streams = ByteStreams(model, ["", "bin"], length=1)
    with pytest.raises(ValueError, match="each document once"):
        streams.logits([0, 0])
    streams.logits([1])
    with pytest.raises(ValueError, match="byte must be in"):
        streams.append([1], [256])
    streams.append([1], [255])
    with pytest.raises(ValueError, match=r"append: expected documents .* since their last byte, got document 1"):
        streams.append([1], [0])
    with pytest.raises(ValueError, match="got document 0"):
        streams.append([0], [0])
    assert (streams.content(0), streams.content(1)) == (b"", b"\xff")
    with pytest.raises(ValueError, match="document 1 has all"):
        streams.logits([1])
