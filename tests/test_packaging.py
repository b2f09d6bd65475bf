"""A wheel holds the package, the kernels and the extension, and works where nothing else of the project is."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.paths import ROOT

PROGRAM = """
import torch
from bgpt_fast import BGPT, BGPTConfig, PackedPatches
from bgpt_fast.kernels.patch_embed import op
import bgpt_fast
config = BGPTConfig(patch_size=4, patch_length=9, hidden_size=8, patch_num_layers=1, byte_num_layers=1, num_heads=1)
print(bgpt_fast.__file__, float(BGPT(config)(PackedPatches.from_bytes([("txt", b"hello")], config)).loss))
"""


@pytest.mark.slow
def test_wheel(tmp_path: Path) -> None:
    environment = {**os.environ, "BGPT_FAST_CUDA": "OFF"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", str(ROOT)]
    subprocess.run([*wheel, "--wheel-dir", str(tmp_path)], check=True, env=environment)
    [path] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(path).namelist()
    kernels = [str(file.relative_to(ROOT)) for file in ROOT.glob("kernels/*/*.py")]
    assert len(kernels) > 10
    assert {f"bgpt_fast/{file}" for file in kernels} <= set(names)
    assert "bgpt_fast/py.typed" in names
    assert [name for name in names if name.startswith("bgpt_fast/_C.") and name.endswith(".so")]
    assert not [name for name in names if name.split("/")[0] in ("tests", "benchmarks", "tools", "kernels", "examples")]

    target = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(path)]
    subprocess.run(install, check=True)
    alone = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=alone, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert str(target) in done.stdout
