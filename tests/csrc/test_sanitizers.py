"""The C++ of the CPU under the sanitizers: each driver compares with the simplest code on random input."""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

import pytest
from support.cpp import compile_driver, op_sources, run_driver


class Driver(NamedTuple):
    folders: tuple[str, ...]
    """Folders of csrc/ that it tests."""
    unit: str
    """What it counts."""
    mode: tuple[str, ...] = ()
    """Its arguments before the count."""

    def check(self, program: Path, count: int, seed: int) -> None:
        process = run_driver(program, *self.mode, str(count), str(seed))
        assert process.returncode == 0, process.stderr
        assert process.stdout == f"{count} {self.unit}\n"

    def check_overrun(self, program: Path) -> None:
        """The negative control: a buffer one element short."""
        process = run_driver(program, *self.mode, "10", "0", "overrun")
        assert process.returncode != 0
        assert "AddressSanitizer" in process.stderr


DRIVERS = {
    "byte_decode": Driver(("byte_decode", "packed_linear", "cached_attention"), "models"),
    "cpu_states": Driver(("cpu_states",), "memories", ("check",)),
    "patches": Driver(("patches",), "documents"),
}


def build(folder: Path, name: str, sanitizers: str = "") -> Path:
    return compile_driver(folder, f"{name}_driver", op_sources(*DRIVERS[name].folders), sanitizers=sanitizers)


@pytest.mark.parametrize(
    ("name", "sanitizers", "count", "seed"),
    [
        ("cpu_states", "address,undefined", 20_000, 0),
        ("patches", "address,undefined", 10_000, 0),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("byte_decode", "address,undefined", 100, 0),
                ("byte_decode", "thread", 20, 0),
                ("cpu_states", "address,undefined", 1_000_000, 1),
                ("cpu_states", "thread", 100_000, 1),
                ("patches", "address,undefined", 1_000_000, 1),
                ("patches", "thread", 1_000_000, 1),
            ]
        ),
    ],
)
def test_the_sanitizers_report_nothing(tmp_path: Path, name: str, sanitizers: str, count: int, seed: int) -> None:
    program = build(tmp_path, name, sanitizers)
    DRIVERS[name].check(program, count, seed)
    if "address" in sanitizers:
        DRIVERS[name].check_overrun(program)


def test_the_mersenne_twister_is_that_of_python(tmp_path: Path) -> None:
    program = build(tmp_path, "cpu_states")
    for seed in (0, 1, 12345, 2**31, 2**32 - 1, 2**32, 2**64 - 1, 2**64, 3**500):
        words = [str(seed >> shift & 0xFFFFFFFF) for shift in range(0, max(1, seed.bit_length()), 32)]
        output = run_driver(program, "twister", "2000", *words).stdout
        twister = random.Random(seed)
        expected = []
        for i in range(2000):
            expected += [twister.getrandbits(1 + i % 32), twister.randint(0, i * i)]
        assert [int(line) for line in output.split()] == expected, seed
