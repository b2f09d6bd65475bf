"""What `make gpu-extension` checks after the build: the file is loaded by the other Python, alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bgpt_fast import _C
from tools.gpu_check.extension import LOAD


def load(folder: Path) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-I", "-S", "-c", LOAD, str(folder)]
    return subprocess.run(program, capture_output=True, text=True, check=False)


def test_an_extension_with_cuda_is_loaded_and_another_refused(tmp_path: Path) -> None:
    path = Path(_C.__file__)
    (tmp_path / path.name).symlink_to(path)
    ended = load(tmp_path)
    if _C.with_cuda:
        assert (ended.returncode, ended.stdout) == (0, f"{tmp_path / path.name}\n")
    else:
        assert ended.returncode == 1
        assert "built without CUDA" in ended.stderr


def test_a_missing_extension_is_an_error(tmp_path: Path) -> None:
    ended = load(tmp_path)
    assert ended.returncode == 1
    assert "No such file" in ended.stderr
