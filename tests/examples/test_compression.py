"""examples/compression restores every file to the last bit, whatever shares the batch, and refuses what it cannot."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import lzma
import random
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from support.paths import EXAMPLES

from bgpt_fast import _C, BGPT, BGPTConfig
from bgpt_fast.generation import scoring
from bgpt_fast.generation.decoders.base import Decoder, make_decoder
from bgpt_fast.generation.decoders.cpu import CpuDecoder
from bgpt_fast.tasks.cpu_states import generate

CONFIG = BGPTConfig(patch_size=16, patch_length=5, hidden_size=16, patch_num_layers=1, byte_num_layers=1, num_heads=2)


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES / "compression")
    return importlib.import_module("compress")


@pytest.fixture
def container(tool: ModuleType) -> ModuleType:
    return importlib.import_module("container")


@pytest.fixture(scope="module")
def model() -> BGPT:
    torch.manual_seed(0)
    scaled = BGPT(CONFIG).eval()
    with torch.no_grad():
        for parameter in scaled.parameters():
            parameter.mul_(8)
    return scaled


CONTENTS = {
    "empty": b"",
    "one byte": b"x",
    "a patch": bytes(range(16)),
    "a patch and a byte": bytes(17),
    "the context": random.Random(0).randbytes(64),
    "two blocks": random.Random(1).randbytes(65),
    "all values": bytes(range(256)),
    "zeros": bytes(200),
    "random": random.Random(2).randbytes(333),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_round_trip(tool: ModuleType, model: BGPT, name: str) -> None:
    content = CONTENTS[name]
    data = tool.compress(model, "bin", content)
    for batch in (1, 3, 64):
        assert tool.compress(model, "bin", content, max_batch=batch) == data
        assert tool.restore(model, data, max_batch=batch) == content
    assert tool.restore(model, tool.compress(model, "a_long.öne", content, block_bytes=7)) == content


def test_the_coder_alone_with_any_frequencies(tool: ModuleType) -> None:
    numbers = np.random.default_rng(0)
    for _ in range(30):
        weights = numbers.integers(1, 2 ** int(numbers.integers(1, 20)), 9)
        bounds = [0, *weights.cumsum().tolist()]
        symbols = numbers.choice(9, 200, p=weights / weights.sum()).tolist()
        encoder = tool.Encoder()
        for symbol in symbols:
            encoder.encode(bounds[symbol], bounds[symbol + 1], bounds[-1])
        coded = encoder.finish()
        entropy = -np.log2(weights[symbols] / weights.sum()).sum() / 8
        assert entropy - 1 <= len(coded) <= entropy + 3
        decoder = tool.Decoder(coded)
        for symbol in symbols:
            result = int(np.searchsorted(bounds, decoder.target(bounds[-1]), "right")) - 1
            assert result == symbol
            decoder.decode(bounds[result], bounds[result + 1], bounds[-1])


def test_every_byte_has_a_frequency_close_to_its_probability(tool: ModuleType) -> None:
    """Integers instead of real numbers cost less than a hundred thousandth of a bit a byte."""
    for scale in (0, 1, 3, 10, 1e4, 1e37):
        logits = (np.random.default_rng(0).standard_normal((50, 257)) * scale).astype(np.float32)
        bounds = tool.cumulative_frequencies(logits)
        assert bounds.shape == (50, 257)
        assert (bounds[:, 0] == 0).all()
        assert (bounds[:, -1] == tool.TOTAL).all()
        shares = np.diff(bounds) / tool.TOTAL
        assert (shares >= 2**-14).all()
        scores = logits[:, :256].astype(np.float64)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        exact = weights / weights.sum(1, keepdims=True) * 63 / 64 + 1 / 64 / 256
        assert (exact * np.log2(exact / shares)).sum(1).max() < 1e-5
        for row in (0, 49):
            assert (tool.cumulative_frequencies(logits[row : row + 1]) == bounds[row]).all()


EXACT_CONFIG = BGPTConfig(
    patch_size=4, patch_length=40, hidden_size=40, patch_num_layers=2, byte_num_layers=1, num_heads=2, byte_num_heads=4
)
EXACT_CONTENT = b"The same bytes on every processor. " + bytes(range(0, 256, 3)) + b"The same bytes, again."

LOGITS_SHA256 = "05f5e8742fb9a18206ba0236e82d92ec368983f18b480eb47e364a6030f92e78"
COMPRESSED = (
    "624750542d616332ea16f1ad966a29338f00000000000000640000000374787415e19f667a000000740e31893f496d92480d"
    "035acacc861a352d1e085e7fd14ceb47301a6ed97d2586f064f058f45be754c4a0b8835e3d65fd81e6b415ddd4ffae769eda"
    "5ec0f791c841cb9dc7b296a55a571b0473d7830cef60cc800e5bc18de2f0ce2919175ebbfc11dda68b0029619293d5eee92f"
    "f5b3ad6dfd5edb69d073c5208adf0d903b000000c9012000c9cab8d428421aeea6ceced698119c1e7e4ecdfcf770116c99d7"
    "4ced9bc8c1f6b6a40396a605fd5a0dd317a8f4faa2ea7524c2726195ae4313ee60"
)


@pytest.fixture(scope="module")
def exact_model() -> BGPT:
    """Weights that integer arithmetic makes, so that they are the same everywhere."""
    model = BGPT(EXACT_CONFIG).eval()
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(sorted(model.named_parameters())):
            numbers = np.random.PCG64(seed).random_raw(parameter.numel()) >> np.uint64(40)
            values = (numbers.astype(np.float32) - 2**23) / 2**24
            parameter.copy_(torch.from_numpy(values).view(parameter.shape))
            if ".ln_" in name and name.endswith("weight"):
                parameter.add_(1)
    return model


def use_instruction_set(monkeypatch: pytest.MonkeyPatch, isa: int) -> None:
    """Scoring computes with this instruction set at most: 0 portable, 1 AVX2, 2 AVX-512."""

    def make(*arguments: Any, **options: Any) -> Decoder:
        decoder = make_decoder(*arguments, **options)
        assert isinstance(decoder, CpuDecoder)
        decoder.weights.patch_decoder.isa = decoder.weights.byte_decoder.transformer.isa = isa
        return decoder

    monkeypatch.setattr(scoring, "make_decoder", make)


@pytest.mark.parametrize(("isa", "threads"), [(0, 1), (0, 3), (1, 1), (1, 2), (2, 1), (2, 3)])
def test_every_instruction_set_has_the_same_logits_and_file(
    tool: ModuleType, exact_model: BGPT, monkeypatch: pytest.MonkeyPatch, isa: int, threads: int
) -> None:
    """Those that are written here: equal on all processors, not only on all code paths of one.

    If they change, the format needs another version: files compressed before could not be restored any more.
    """
    if isa > _C.best_isa():
        pytest.skip(
            f"this processor has no {('', 'AVX2', 'AVX-512')[isa]}; tests/csrc/test_instruction_sets.py emulates it"
        )
    use_instruction_set(monkeypatch, isa)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        [logits] = scoring.score(exact_model, [("txt", EXACT_CONTENT)], precision="float32")
        assert hashlib.sha256(logits.numpy().astype("<f4").tobytes()).hexdigest() == LOGITS_SHA256
        data = tool.compress(exact_model, "txt", EXACT_CONTENT, block_bytes=100)
        assert data.hex() == COMPRESSED
        assert tool.restore(exact_model, bytes.fromhex(COMPRESSED)) == EXACT_CONTENT
    finally:
        torch.set_num_threads(before)


def test_damaged_compressed_files_are_errors_that_name_the_place(
    tool: ModuleType, container: ModuleType, model: BGPT
) -> None:
    content = CONTENTS["random"]
    data = tool.compress(model, "bin", content)
    for size in range(len(data)):
        with pytest.raises(tool.CompressedError):
            container.unpack(data[:size])
    with pytest.raises(tool.CompressedError, match="damaged"):
        tool.restore(model, data + b"x")
    _, chunks = container.unpack(data)
    assert [chunk.size for chunk in chunks] == [64, 64, 64, 64, 64, 13]
    for i in (0, 2, 5):
        damaged = bytearray(data)
        damaged[chunks[i].offset + 8] ^= 1  # the code
        with pytest.raises(tool.CompressedError, match=rf"chunk {i} at byte {chunks[i].offset} of the compressed file"):
            tool.restore(model, bytes(damaged))
        damaged = bytearray(data)
        damaged[chunks[i].offset + 4] ^= 1  # the CRC
        with pytest.raises(tool.CompressedError, match=rf"chunk {i} at byte {chunks[i].offset} of the compressed file"):
            tool.restore(model, bytes(damaged))
        damaged = bytearray(data)
        damaged[chunks[i].offset + 3] ^= 1  # the length
        with pytest.raises(tool.CompressedError, match=rf"chunk {i} at byte {chunks[i].offset}: expected 167"):
            tool.restore(model, bytes(damaged))
    for place in range(8, chunks[0].offset):
        damaged = bytearray(data)
        damaged[place] ^= 1
        with pytest.raises(tool.CompressedError):
            container.unpack(bytes(damaged))


def test_chunks_cannot_change_places(tool: ModuleType, container: ModuleType, model: BGPT) -> None:
    data = tool.compress(model, "bin", CONTENTS["two blocks"] + CONTENTS["the context"])
    _, chunks = container.unpack(data)
    offsets = [*(chunk.offset for chunk in chunks), len(data)]
    parts = [data[start:stop] for start, stop in zip([0, *offsets], offsets, strict=False)]
    assert len(parts) == 4
    with pytest.raises(tool.CompressedError, match="chunk 0"):
        tool.restore(model, b"".join([parts[0], parts[2], parts[1], parts[3]]))


def test_other_models_versions_and_files_are_errors(tool: ModuleType, model: BGPT) -> None:
    data = tool.compress(model, "bin", b"content")
    other = BGPT(CONFIG).eval()
    digest = data[8:16].hex()
    with pytest.raises(
        tool.CompressedError, match=rf"expected the model with digest {digest}, .* got one with [0-9a-f]+"
    ):
        tool.restore(other, data)
    with pytest.raises(
        tool.CompressedError, match="expected a file of version 2, got version '1'; restore it with the"
    ):
        tool.restore(model, b"bGPT-ac1" + data[8:])
    for start in (b"", b"\x1f\x8b", b"bGPT"):
        with pytest.raises(tool.CompressedError, match=r"expected a file of compress\.py, got one that begins with"):
            tool.restore(model, start)
    for size in (0, 65):
        with pytest.raises(ValueError, match="block_bytes: expected 1…64"):
            tool.compress(model, "bin", b"content", block_bytes=size)


def test_the_digest_covers_weights_and_heads_alone(container: ModuleType, model: BGPT) -> None:
    digest = container.model_digest(model)
    same = BGPT(BGPTConfig(**{**CONFIG.to_dict(), "position_init_std": 0.5}))
    same.load_state_dict(model.state_dict())
    assert container.model_digest(same) == digest
    for name in ("num_heads", "byte_num_heads"):
        heads = BGPT(BGPTConfig(**{**CONFIG.to_dict(), name: 4}))
        heads.load_state_dict(model.state_dict())
        assert container.model_digest(heads) != digest
    with torch.no_grad():
        same.byte_level_decoder.base.lm_head.weight[3, 4] += 1
    assert container.model_digest(same) != digest


def test_arithmetic_with_other_bits_is_refused(tool: ModuleType, model: BGPT) -> None:
    data = tool.compress(model, "bin", b"content")
    with pytest.raises(ValueError, match="expected one on the CPU"):
        tool.restore(BGPT(CONFIG).to("meta"), data)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        with pytest.raises(FloatingPointError, match="expected IEEE 754 arithmetic"):
            tool.restore(model, data)
    finally:
        torch.set_flush_denormal(False)
    assert tool.restore(model, data) == b"content"


def test_a_cpu_state_trace_by_the_shipped_model(tool: ModuleType) -> None:
    shipped = BGPT.from_pretrained(EXAMPLES / "cpu_states/checkpoint", dtype=torch.float32)
    [trace] = generate(
        1, seed=9, num_registers=2, memory_size=64, min_program=15, max_program=15, stream="philox", split="eval"
    )
    content = trace.to_bytes()
    data = tool.compress(shipped, "bin", content)
    assert tool.restore(shipped, data) == content
    assert len(data) < len(gzip.compress(content, 9)) < len(lzma.compress(content, preset=9))
