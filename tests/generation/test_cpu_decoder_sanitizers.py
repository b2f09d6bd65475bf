"""The C++ of generation under the sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from support.paths import ROOT


def sanitized(tmp_path: Path, sanitizers: str) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    program = tmp_path / "driver"
    sources = [ROOT / "tests" / "csrc" / "byte_decode_driver.cpp", ROOT / "csrc" / "attention" / "cached_attention.cpp"]
    for folder in ("byte_decode", "linear", "attention"):
        sources += (ROOT / "csrc" / folder).glob("*.cpp")
    flags = ["-std=c++20", "-O1", "-g", "-pthread", "-ffp-contract=off", "-Wall", "-Wextra", f"-I{ROOT / 'csrc'}"]
    flags += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    subprocess.run([compiler, *flags, *sorted(set(sources)), "-o", program], check=True)
    return program


@pytest.mark.slow
@pytest.mark.parametrize(("sanitizers", "models"), [("address,undefined", 100), ("thread", 20)])
def test_sanitizers_find_nothing(tmp_path: Path, sanitizers: str, models: int) -> None:
    program = sanitized(tmp_path, sanitizers)
    done = subprocess.run([program, str(models), "0"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{models} models\n"
    if "address" in sanitizers:
        planted = subprocess.run([program, "1", "0", "overrun"], capture_output=True, text=True, timeout=60)
        assert planted.returncode != 0
        assert "AddressSanitizer" in planted.stderr, "the sanitizer sees a read past the end"
