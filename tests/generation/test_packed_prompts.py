"""Prompts as arrays: the same as one by one."""

from __future__ import annotations

import random

import numpy as np
import pytest

from bgpt_fast import BGPTConfig, Prompt
from bgpt_fast.generation.packed_prompts import PackedPrompts

CONFIG = BGPTConfig(patch_size=4, patch_length=8, hidden_size=8, patch_num_layers=1, byte_num_layers=1, num_heads=1)


def test_prompts_are_what_they_were() -> None:
    prompts = [
        Prompt("bin", b"", 0),
        Prompt("", b"123", 2**64 - 1),
        Prompt("txt", b"1234", 5, ("abc", b"12345")),
        Prompt("m\udcff", b"123456789", 7, ("", b"")),
    ]
    packed = PackedPrompts.from_prompts(prompts, CONFIG)
    assert list(packed) == prompts
    assert packed[1:3] == prompts[1:3]
    assert packed[-1] == prompts[-1]
    assert packed.offsets.tolist() == [0, 1, 3, 8, 13]
    assert packed.source_patches.tolist() == [0, 0, 3, 1]
    assert packed.patches[1].tolist() == [256] * 4
    assert packed.patches[2].tolist() == [49, 50, 51, 256]
    assert len(PackedPrompts.from_prompts([], CONFIG)) == 0


@pytest.mark.parametrize("size", [0, 3, 4, 9])
def test_rows_are_prompts_of_one_size(size: int) -> None:
    stream = random.Random(size)
    data = [stream.randbytes(size) for _ in range(5)]
    rows = np.frombuffer(b"".join(data), np.uint8).reshape(5, size)
    packed = PackedPrompts.from_rows("bin", rows, CONFIG)
    one_by_one = PackedPrompts.from_prompts([Prompt("bin", one) for one in data], CONFIG)
    assert list(packed) == list(one_by_one)
    for name in ("patches", "offsets", "source_patches", "sizes", "rng_streams"):
        np.testing.assert_array_equal(getattr(packed, name), getattr(one_by_one, name), strict=True)
    with pytest.raises(ValueError, match=r"expected fewer than 28 bytes, .*, got 28"):
        PackedPrompts.from_rows("bin", np.zeros((2, 28), np.uint8), CONFIG)


def test_each_prompt_may_have_a_limit_of_its_own() -> None:
    from support.byte_decode import decided_model

    from bgpt_fast import Generator

    rows = np.arange(12, dtype=np.uint8).reshape(4, 3)
    engine = Generator(decided_model(CONFIG, end=-50.0))
    whole = engine.generate(PackedPrompts.from_rows("bin", rows, CONFIG))
    limits = np.array([0, 3, 11, 100])
    packed = PackedPrompts.from_rows("bin", rows, CONFIG, limits)
    files = engine.generate(packed)
    assert [len(file.new_bytes) for file in files] == [0, 3, 11, 25]
    assert all(one.data.startswith(file.data) for one, file in zip(whole, files, strict=True))
    assert [len(file.new_bytes) for file in engine.generate(packed, max_new_bytes=5)] == [0, 3, 5, 5]
