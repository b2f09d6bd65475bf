"""The C++ of generation under the sanitizers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.cpp import compile_driver, op_sources


def sanitized(tmp_path: Path, sanitizers: str) -> Path:
    sources = op_sources("byte_decode", "packed_linear", "cached_attention")
    return compile_driver(tmp_path, "byte_decode_driver", sources, sanitizers=sanitizers)


@pytest.mark.slow
@pytest.mark.parametrize(("sanitizers", "models"), [("address,undefined", 100), ("thread", 20)])
def test_sanitizers_find_nothing(tmp_path: Path, sanitizers: str, models: int) -> None:
    program = sanitized(tmp_path, sanitizers)
    process = subprocess.run([program, str(models), "0"], capture_output=True, text=True, timeout=280)
    assert process.returncode == 0, process.stderr
    assert process.stdout == f"{models} models\n"
    if "address" in sanitizers:
        overrun = subprocess.run([program, "1", "0", "overrun"], capture_output=True, text=True, timeout=60)
        assert overrun.returncode != 0
        assert "AddressSanitizer" in overrun.stderr, "the sanitizer sees a read past the end"
