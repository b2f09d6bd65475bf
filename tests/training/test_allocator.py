"""Freed memory is used again without page faults while a run trains on a CPU, and goes back afterwards."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.paths import ROOT
from support.training import RandomSource, make_trainer

from bgpt_fast.training.allocator import reused_memory

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
pytestmark = [
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting"),
    pytest.mark.skipif(
        _HUGE_PAGES.exists() and "[always]" in _HUGE_PAGES.read_text(), reason="a huge page is one fault for 512"
    ),
]
_FLOATS = 12 << 20
"""48 MiB, more than glibc itself ever keeps."""
_PAGES = 4 * _FLOATS // resource.getpagesize()


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)


def _faults() -> int:
    """Page faults of a large tensor, once the heap has grown: until a freed block has room for it, aligned."""
    for _ in range(10):
        torch.ones(_FLOATS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(_FLOATS)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


_SCRIPT = """
from pathlib import Path
import test_allocator
from bgpt_fast.training.allocator import reused_memory

def resident_pages():
    return int(Path("/proc/self/statm").read_text().split()[1])

pages, faults = test_allocator._PAGES, test_allocator._faults
before = resident_pages()
assert faults() > pages / 2
with reused_memory() as is_reused:
    assert is_reused
    assert faults() < pages / 10
assert resident_pages() < before + pages / 2
assert faults() > pages / 2
"""


def test_the_memory_of_a_freed_tensor_is_used_again() -> None:
    """In a process of its own: in a heap with free blocks of this size, memory is used again without the setting."""
    folders = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]
    subprocess.run(
        [sys.executable, "-c", _SCRIPT], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    )


def test_settings_of_the_environment_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MALLOC_TRIM_THRESHOLD_": "131072", "GLIBC_TUNABLES": "glibc.malloc.mmap_max=1"}.items():
        monkeypatch.setenv(name, value)
        with reused_memory() as is_reused:
            assert not is_reused
        monkeypatch.delenv(name)


def test_a_run_keeps_memory_until_it_ends(tmp_path: Path) -> None:
    faults: list[int] = []
    trainer = make_trainer(tmp_path, RandomSource(before=lambda _: faults.append(_faults())), steps=2, prefetch=0)
    trainer.train()
    assert max(faults) < _PAGES / 10
