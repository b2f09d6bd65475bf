"""The programs of docs/hugging-face.md run as they stand there, against a hub on this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support.hub import LocalHub
from support.paths import ROOT

from tools.kernels_hub import build

pytest.importorskip("transformers")
pytest.importorskip("kernels")


def test_the_programs_run(hub: LocalHub, tmp_path: Path) -> None:
    text = (ROOT / "docs/hugging-face.md").read_text()
    blocks = re.findall(r"^( *)```python\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    build(tmp_path / "empty/build/kernels-hub")
    program = "\n".join(textwrap.dedent(block) for _, block in blocks)
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Once upon" in done.stdout
    assert "b'BM\\x8a\\x00" in done.stdout
    assert "| bits per byte, held out | 1.93 |" in (hub.root / "owner/my-model/README.md").read_text()
    assert (tmp_path / "empty/my-model/modeling_bgpt_fast.py").exists()
