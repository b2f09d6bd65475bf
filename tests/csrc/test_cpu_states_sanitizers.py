"""The C++ of the CPU states under the sanitizers, and its Mersenne Twister beside Python's."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from support.cpp import compile_driver, op_sources


def build(tmp_path: Path, sanitizers: str = "") -> Path:
    return compile_driver(tmp_path, "cpu_states_driver", op_sources("cpu_states"), sanitizers=sanitizers)


def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    program = build(tmp_path, "address,undefined")
    process = subprocess.run([program, "check", "20000", "0"], capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    assert process.stdout == "20000 memories\n"
    overrun = subprocess.run([program, "check", "10", "0", "overrun"], capture_output=True, text=True, timeout=60)
    assert overrun.returncode != 0
    assert "AddressSanitizer" in overrun.stderr, "the sanitizer sees a write past the end"


@pytest.mark.slow
@pytest.mark.parametrize(("sanitizers", "memories"), [("address,undefined", 1_000_000), ("thread", 100_000)])
def test_sanitizers_find_nothing_in_many_memories(tmp_path: Path, sanitizers: str, memories: int) -> None:
    program = build(tmp_path, sanitizers)
    process = subprocess.run([program, "check", str(memories), "1"], capture_output=True, text=True, timeout=280)
    assert process.returncode == 0, process.stderr
    assert process.stdout == f"{memories} memories\n"


def test_the_twister_is_pythons(tmp_path: Path) -> None:
    program = build(tmp_path)
    for seed in (0, 1, 12345, 2**31, 2**32 - 1, 2**32, 2**64 - 1, 2**64, 3**500):
        words = [str(seed >> shift & 0xFFFFFFFF) for shift in range(0, max(1, seed.bit_length()), 32)]
        process = subprocess.run([program, "twister", "2000", *words], capture_output=True, text=True, check=True)
        draw = random.Random(seed)
        expected = []
        for i in range(2000):
            expected += [draw.getrandbits(1 + i % 32), draw.randint(0, i * i)]
        assert [int(line) for line in process.stdout.split()] == expected, seed
