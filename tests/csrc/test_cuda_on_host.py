"""The bodies of the CUDA kernels on the host, under the sanitizers, beside the ops of the CPU."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support.cpp import compile_driver, run_driver
from support.paths import ROOT

SOURCES = ["csrc/patch_embed/patch_embed.cu", "csrc/cpu_states/cpu_states.cu"]
COOPERATIVE_SOURCES = ["csrc/byte_decode/byte_decode.cu"]
"""Kernels whose threads communicate: tests/csrc/test_byte_decode_on_host.py runs their bodies."""
CPU_SOURCES = [
    "csrc/patch_embed/patch_embed.cpp",
    "csrc/cpu_states/philox_stream.cpp",
]


def host_source(text: str) -> str:
    """CUDA source with each `kernel<<<grid, block, shared, stream>>>(arguments)` as a call of cuda_on_host::launch."""
    launches = re.compile(r"(?P<kernel>\w+(?:<[\w:, ]*>)?)<<<(?P<shape>[^;]*?)>>>\(")
    while match := launches.search(text):
        end, depth = match.end(), 1
        while depth:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        call = f"{match['kernel']}({text[match.end() : end]}"
        text = f"{text[: match.start()]}cuda_on_host::launch([&] {{ {call}; }}, {match['shape']}){text[end:]}"
    return text


def cuda_headers(folder: Path) -> list[str]:
    """The include flags of nvcc's headers."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("needs CUDA's headers: no nvcc here")
    source = folder / "empty.cu"
    source.touch()
    plan = subprocess.run([nvcc, "--dryrun", str(source)], capture_output=True, text=True, check=True).stderr
    return re.findall(r"-isystem \S+|-I\S+", re.findall(r'INCLUDES="(.*?)"', plan)[0])


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cuda_on_host")
    flags = [flag.replace("-I", "-isystem", 1) for flag in cuda_headers(folder)]
    sources = [ROOT / name for name in CPU_SOURCES]
    for name in SOURCES:
        sources.append(folder / f"{Path(name).stem}_on_host.cpp")
        text = host_source((ROOT / name).read_text())
        sources[-1].write_text(f'#include "{ROOT / "tests/csrc/cuda_on_host.h"}"\n{text}')
    flags.append("-DBGPT_FAST_WITH_CUDA")
    return compile_driver(folder, "cuda_on_host_driver", sources, *flags, sanitizers="address,undefined")


@pytest.mark.parametrize("op", ["patch_embed", "cpu_states"])
def test_kernels_compute_what_the_cpu_computes(program: Path, op: str) -> None:
    process = run_driver(program, op, "60", "0")
    assert process.returncode == 0, process.stderr
    assert process.stdout == "60 rounds\n"


@pytest.mark.slow
@pytest.mark.parametrize(("op", "rounds"), [("patch_embed", "1000"), ("cpu_states", "10000")])
def test_kernels_compute_what_the_cpu_computes_in_many_rounds(program: Path, op: str, rounds: str) -> None:
    process = run_driver(program, op, rounds, "1")
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("op", ["patch_embed", "cpu_states"])
def test_an_overrun_is_detected(program: Path, op: str) -> None:
    process = run_driver(program, op, "10", "0", "overrun")
    assert process.returncode != 0
    assert "AddressSanitizer" in process.stderr


@pytest.mark.parametrize("op", ["patch_embed", "cpu_states"])
def test_a_wrong_value_is_detected(program: Path, op: str) -> None:
    process = run_driver(program, op, "10", "0", "value")
    assert process.returncode == 1
    assert f"{op}: " in process.stderr


def test_all_cuda_sources_are_run() -> None:
    assert sorted([*SOURCES, *COOPERATIVE_SOURCES]) == sorted(
        str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*.cu")
    )
    for name in SOURCES:
        text = (ROOT / name).read_text()
        launches = host_source(text).count("cuda_on_host::launch(")
        assert launches == text.count("<<<") > 0


def test_a_launch_is_rewritten() -> None:
    text = "_add_kernel<T><<<dim3(f(1), 2), 32, 0, s>>>(g(x, (y)), z);"
    assert host_source(text) == "cuda_on_host::launch([&] { _add_kernel<T>(g(x, (y)), z); }, dim3(f(1), 2), 32, 0, s);"
