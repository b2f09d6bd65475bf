"""The decoders' C++ has the same bits on every processor, shown for those that are not at hand by emulation."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.cpp import compile_driver, op_sources, run_driver
from support.paths import ROOT

from bgpt_fast import _C

FOLDERS = "byte_decode", "packed_linear", "cached_attention"
MODELS = "30", "0"
"""Number of random models, and seed."""

REPLACED = {
    "common/vec.h": {
        '__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq" BGPT_MORE_FEATURES)))': "",
    },
    "common/cpu.h": {
        'return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? Isa::avx2 : Isa::portable;': (
            "return Isa::avx512;"
        ),
    },
    "packed_linear/packed_linear.cpp": {
        "#define BGPT_WITH_BF16_DOT\n": "",
        "if (isa == Isa::avx512 && has_bf16_dot()) return avx512_bf16::packed_panels(call, begin, end);": "",
    },
}
"""Texts of csrc/ by file, each there once, and what takes their place in a copy."""


@pytest.mark.slow
@pytest.mark.skipif(_C.best_isa() < 1, reason="the driver also runs the code for AVX2, which this processor lacks")
def test_avx512(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vectors of 16, the tiles and the order of addition are compiled as they are; the few intrinsics are loops."""
    sources = tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc", sources)
    for name, replacements in REPLACED.items():
        text = (sources / name).read_text()
        for before, after in replacements.items():
            assert text.count(before) == 1, before
            text = text.replace(before, after)
        (sources / name).write_text(text)
    flags = [f"-I{sources}", "-include", str(ROOT / "tests/csrc/avx512_emulated.h"), "-Wno-psabi"]
    program = compile_driver(tmp_path, "byte_decode_driver", op_sources(*FOLDERS, root=sources), *flags)
    process = run_driver(program, *MODELS, "blocks")
    assert process.returncode == 0, process.stderr
    monkeypatch.setenv("TWO_ROUNDINGS", "1")
    assert "the bits differ" in run_driver(program, *MODELS, "blocks").stderr


@pytest.mark.slow
def test_arm(tmp_path: Path) -> None:
    """64-bit Arm under QEMU, with its own compiler and C library, has the digest of this machine."""
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("needs qemu-aarch64")
    arm, here = tmp_path / "arm", tmp_path / "here"
    arm.mkdir()
    here.mkdir()
    compiler = "aarch64-linux-gnu-g++"
    program = compile_driver(arm, "byte_decode_driver", op_sources(*FOLDERS), "-static", compiler=compiler)
    process = run_driver(program, *MODELS, "bits", emulator=("qemu-aarch64",))
    assert process.returncode == 0, process.stderr
    program = compile_driver(here, "byte_decode_driver", op_sources(*FOLDERS))
    assert process.stderr == run_driver(program, *MODELS, "bits").stderr
