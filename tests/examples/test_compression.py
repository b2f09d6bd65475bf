"""examples/compression restores every file to the last bit, whatever shares the batch, and refuses what it cannot."""

from __future__ import annotations

import gzip
import importlib
import lzma
import random
from types import ModuleType

import numpy as np
import pytest
import torch
from support.paths import EXAMPLES

from bgpt_fast import BGPT, BGPTConfig
from bgpt_fast.tasks.cpu_states import generate

CONFIG = BGPTConfig(patch_size=16, patch_length=5, hidden_size=16, patch_num_layers=1, byte_num_layers=1, num_heads=2)


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES / "compression")
    return importlib.import_module("compress")


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


def test_every_byte_has_a_frequency(tool: ModuleType) -> None:
    for scale in (0, 1, 1e4):
        logits = (np.random.default_rng(0).standard_normal(257) * scale).astype(np.float32)
        shares = tool.cumulative_frequencies(logits)
        assert (shares[0], shares[-1], len(shares)) == (0, tool.TOTAL, 257)
        assert (np.diff(shares) >= 1).all()


def test_damaged_compressed_files_are_errors(tool: ModuleType, model: BGPT) -> None:
    content = CONTENTS["random"]
    data = tool.compress(model, "bin", content)
    for size in (0, 5, 40, len(data) - 1):
        with pytest.raises(tool.CompressedError):
            tool.restore(model, data[:size])
    with pytest.raises(tool.CompressedError, match="damaged"):
        tool.restore(model, data + b"x")
    flipped = bytearray(data)
    flipped[60] ^= 1
    with pytest.raises(tool.CompressedError, match="another checksum"):
        tool.restore(model, bytes(flipped))
    other = BGPT(CONFIG).eval()
    with pytest.raises(tool.CompressedError, match="expected the model that compressed"):
        tool.restore(other, data)
    for size in (0, 65):
        with pytest.raises(ValueError, match="block_bytes: expected 1…64"):
            tool.compress(model, "bin", content, block_bytes=size)


def test_a_cpu_state_trace_by_the_shipped_model(tool: ModuleType) -> None:
    shipped = BGPT.from_pretrained(EXAMPLES / "cpu_states/checkpoint", dtype=torch.float32)
    [trace] = generate(
        1, seed=9, num_registers=2, memory_size=64, min_program=15, max_program=15, stream="philox", split="eval"
    )
    content = trace.to_bytes()
    data = tool.compress(shipped, "bin", content)
    assert tool.restore(shipped, data) == content
    assert len(data) < len(gzip.compress(content, 9)) < len(lzma.compress(content, preset=9))
