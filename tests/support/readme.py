"""The README's program."""

from __future__ import annotations

import re

from support.paths import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def readme_program() -> str:
    """The README's Python, which any working folder can run: its one relative path is the repository's."""
    [program] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    return program.replace('"examples/', f'"{ROOT}/examples/')
