"""Identifiers are the field's terms: the words below must not come back as names in Python, C++ or CUDA."""

from __future__ import annotations

import io
import keyword
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import ROOT

FOLDERS = ("bgpt_fast", "kernels", "csrc", "benchmarks", "tools", "tests", "examples")
PARTICIPLES = {
    *("found", "given", "told", "kept", "asked", "written", "wanted", "gone"),
    *("made", "held", "shown", "seen", "taken", "drawn", "noted", "standing"),
}
"""Refused as whole identifiers: a name says what the value is, not what was done to it."""
METAPHORS = {"room", "rooms", "house", "houses", "receipt", "receipts", "ceiling", "ceilings", "contender"}
PARTS = METAPHORS | {"found", "told", "asked", "kept", "given"}
"""Refused also as a part of an identifier, as in `is_kept` or `RoomSize`."""
RENAMED = {
    *("FoundFile", "CachedDecoder", "FusedDecoder", "DeviceDecoder", "AnyDecoder", "Writing", "Written"),
    *("RunSaves", "RunPlace", "BackgroundSaves", "Assessor", "in_parts", "part_like", "checked_rule"),
}
"""Classes and functions of earlier versions that have a new name."""
FOREIGN = re.compile(r"\w*NotFoundError|found_inf")
"""Names of Python and of other libraries that would be refused."""
HYPOTHESIS = ("from hypothesis import", "@given(")
"""Beginnings of lines that name Hypothesis's `given`."""


def python_identifiers(source: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and not (keyword.iskeyword(token.string) or token.line.startswith(HYPOTHESIS)):
            yield token.start[0], token.string


def cpp_identifiers(source: str) -> Iterator[tuple[int, str]]:
    code = re.sub(
        r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"',
        lambda match: "\n" * match.group().count("\n"),
        source,
        flags=re.DOTALL,
    )
    for number, line in enumerate(code.splitlines(), 1):
        for name in re.findall(r"[A-Za-z_]\w*", line):
            yield number, name


def is_refused(name: str) -> bool:
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_")
    is_old = name.strip("_") in PARTICIPLES or name in RENAMED or not PARTS.isdisjoint(parts)
    return is_old and not FOREIGN.fullmatch(name)


def refused_names(path: Path) -> list[str]:
    identifiers = python_identifiers if path.suffix in (".py", ".pyi") else cpp_identifiers
    return [f"{path}:{line}: {name}" for line, name in identifiers(path.read_text()) if is_refused(name)]


def sources() -> list[Path]:
    suffixes = {".py", ".pyi", ".cpp", ".h", ".cu", ".cuh"}
    paths = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))
    return [path for path in paths if path.suffix in suffixes and path.name != Path(__file__).name]


def test_no_private_word_is_an_identifier() -> None:
    paths = sources()
    assert len(paths) > 300
    refused = [line for path in paths for line in refused_names(path)]
    assert not refused, f"{len(refused)} names; see docs/glossary.md:\n" + "\n".join(refused[:50])


@pytest.mark.parametrize("name", ["found", "_kept", "free_rooms", "RoomSize", "FoundFile", "test_what_was_told"])
def test_private_words_are_refused(name: str, tmp_path: Path) -> None:
    for suffix in ("py", "cpp"):
        path = tmp_path / f"sample.{suffix}"
        path.write_text(f"{name} = 1;\n")
        assert refused_names(path) == [f"{path}:1: {name}"]


@pytest.mark.parametrize("name", ["entries", "broom", "foundation", "held_out", "unwritten_bytes", "FileNotFoundError"])
def test_other_words_pass(name: str) -> None:
    assert not is_refused(name)


def test_comments_and_strings_are_free(tmp_path: Path) -> None:
    python, cpp = tmp_path / "sample.py", tmp_path / "sample.cpp"
    python.write_text('value = "found"  # kept\n')
    cpp.write_text('int value = f("found"); // kept\n/* room\n room */ int other;\n')
    assert refused_names(python) == refused_names(cpp) == []
