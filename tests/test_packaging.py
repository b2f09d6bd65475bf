"""A wheel holds the package, the kernels and the extension, and works where nothing else of the project is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
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


def test_extras_that_texts_name_exist() -> None:
    """The package is on no index, so that every text names the repository, as in pip install ".[data]"."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = {*project["optional-dependencies"]}
    folders = ("bgpt_fast", "examples", "docs", "benchmarks", "tools", "tests")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md")]
    texts = {path: path.read_text(encoding="utf-8") for path in [*paths, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]}
    index_name = "bgpt-fast" + "["
    assert [str(path) for path, text in texts.items() if index_name in text] == []
    named = {
        extra
        for text in texts.values()
        for extras in re.findall(r"[\"']\.\[([\w,-]+)\]", text)
        for extra in extras.split(",")
    }
    assert {"data", "plot", "train", "music", "image", "audio"} <= named <= known
    guide = (ROOT / "docs/installation.md").read_text(encoding="utf-8")
    assert known - set(re.findall(r"`([\w-]+)`", guide)) == {"peers", "dev", "bench-baselines"}


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
