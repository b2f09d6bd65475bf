"""The C++ of the CPU under the sanitizers: each driver compares with the simplest code on random input."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from support.cpp import check_driver, compile_driver, op_sources, run_driver
from support.paths import ROOT


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


THREADED = {
    "bias_gelu": "bias_gelu/bias_gelu.cpp",
    "byte_embed": "byte_embed/byte_embed.cpp",
    "invariant_linear": "invariant_linear/invariant_linear.cpp",
    "layer_norm": "layer_norm/layer_norm.cpp",
    "linear_cross_entropy": "linear_cross_entropy/cross_entropy.cpp",
    "matrix_product": "matrix_product/matrix_product.cpp",
    "patch_attention": "patch_attention/short_attention.cpp",
    "patch_embed": "patch_embed/patch_embed.cpp",
    "symmetric_product": "symmetric_product/symmetric_product.cpp",
    "cached_attention": "cached_attention/cached_attention.cpp",
    "patches": "patches/patches.cpp",
    "cpu_states": "cpu_states/philox_stream.cpp",
    "cpu_states, traces": "cpu_states/traces.cpp",
    "byte_decode": "byte_decode/byte_decode.cpp",
    "byte_decode, layers": "byte_decode/transformer.cpp",
    "team": "common/team.h",
}
"""The files of csrc/ that share work among threads, by what runs them."""
SHARED = r"\]\(int64_t begin, int64_t end\) \{"


@pytest.mark.parametrize(
    ("driver", "flag"),
    [
        *((f"{name}_driver", "") for name in DRIVERS),
        *(
            ("threads_driver", f"-DBGPT_TEST_{name}")
            for name in dict.fromkeys(name.partition(",")[0] for name in THREADED)
            if name not in ("byte_decode", "team")
        ),
    ],
)
def test_each_driver_compiles(driver: str, flag: str) -> None:
    """What the slow tests run is compiled at every change."""
    check_driver(driver, *filter(None, [flag]))


def plant_race(text: str) -> str:
    """Adds a plain counter to each part that threads share, or takes the synchronisation out of a team."""
    planted, count = re.subn(SHARED, r"\g<0> static int64_t planted = 0; planted += end - begin;", text)
    release = "done_.fetch_add(1, std::memory_order_release)"
    planted = planted.replace(release, release.replace("release", "relaxed"))
    assert count or planted != text
    return planted


def test_every_threaded_file_has_a_planted_race() -> None:
    threaded = {
        str(path.relative_to(ROOT / "csrc"))
        for path in ROOT.glob("csrc/*/*.cpp")
        if re.search(r"\b(parallel_for|for_each|std::thread)\(", path.read_text())
    }
    assert threaded | {"common/team.h"} == set(THREADED.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", THREADED)
def test_the_thread_sanitizer_finds_a_planted_race_and_no_other(tmp_path: Path, name: str) -> None:
    """RELIABILITY R13."""
    sources = tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc", sources)
    folder = name.partition(",")[0]
    if folder in ("byte_decode", "team"):
        folders, driver, flags, arguments = DRIVERS["byte_decode"].folders, "byte_decode_driver", [], ["20", "0"]
    else:
        folders, driver, flags, arguments = (folder,), "threads_driver", [f"-DBGPT_TEST_{folder}"], []

    def run() -> subprocess.CompletedProcess[str]:
        files = op_sources(*folders, root=sources)
        flags_here = [*flags, f"-I{sources}"]
        return run_driver(compile_driver(tmp_path, driver, files, *flags_here, sanitizers="thread"), *arguments)

    assert run().returncode == 0
    file = sources / THREADED[name]
    file.write_text(plant_race(file.read_text()))
    racing = run()
    assert racing.returncode != 0
    assert "ThreadSanitizer: data race" in racing.stderr


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
