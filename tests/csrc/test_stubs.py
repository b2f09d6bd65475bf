"""bgpt_fast/_C.pyi: the signatures of the extension, by which mypy checks the calls."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

STUBS = ROOT / "bgpt_fast" / "_C.pyi"


def test_the_stubs_are_those_of_the_extension(tmp_path: Path) -> None:
    pytest.importorskip("pybind11_stubgen")
    pytest.importorskip("ruff")
    output = tmp_path / "_C.pyi"
    subprocess.run([sys.executable, ROOT / "tools" / "stubs.py", output], check=True)
    assert output.read_text() == STUBS.read_text(), "run `make stubs`"


def test_every_type_is_known() -> None:
    text = STUBS.read_text()
    assert "Any" not in text
    assert "object" not in text
    assert text.count(" -> ") == text.count("def ")


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("_C.patches_in_range(0, 3, 5)", None),
        ("_C.patches_in_range(0.5, 3, 5)", "arg-type"),
        ("_C.patches_in_range(0)", "call-arg"),
        ("_C.patches_in_ranges(0, 3, 5)", "attr-defined"),
        ("_C.PackedCache(0, 1, 1)", "arg-type"),
        ("_C.cpu_states_run(memory='', values=b'')", "arg-type"),
        ("x: str = _C.best_isa()", "assignment"),
    ],
)
def test_mypy_refuses_wrong_calls(tmp_path: Path, call: str, error: str | None) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "bgpt_fast").mkdir()
    (tmp_path / "bgpt_fast" / "__init__.py").touch()
    shutil.copy(STUBS, tmp_path / "bgpt_fast")
    caller = tmp_path / "caller.py"
    caller.write_text(f"from bgpt_fast import _C\n\n{call}\n")
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", "--cache-dir", tmp_path, caller]
    report = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path).stdout
    assert (f"[{error}]" in report) if error else report.startswith("Success"), report
