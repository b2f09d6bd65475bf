"""JSON and YAML of untrusted files: values, and limits that hold before anything is built."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from bgpt_fast.files import FileContentError
from bgpt_fast.parsing import MAX_BYTES, parse_json, parse_yaml, read_json, read_yaml

VALUE: dict[str, Any] = {"a": [1, 2.5, None, True], "b": {"c": '[[[{{{ " \\'}, "ü": "ß"}


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_values_with_and_without_a_byte_order_mark(tmp_path: Path, mark: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(mark + json.dumps(VALUE, ensure_ascii=False).encode())
    assert read_json(path) == read_yaml(path) == VALUE


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("1E5", 1e5), ("-2.5e+3", -2500.0), ("1e", "1e"), ("e5", "e5"), ("", None)]
)
def test_yaml_numbers_are_those_of_json(text: str, value: object) -> None:
    assert parse_yaml(f"a: {text}", "name") == {"a": value}


def test_aliases_are_resolved_within_the_limit() -> None:
    assert parse_yaml("a: &x {k: 1}\nb: *x\nc: {<<: *x, l: 2}", "name") == {
        "a": {"k": 1}, "b": {"k": 1}, "c": {"k": 1, "l": 2},
    }  # fmt: skip
    assert parse_yaml("", "name") is None


def _laughs() -> str:
    lines = ["a0: &a0 " + "x" * 100]
    return "\n".join([*lines, *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10))])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_laughs(), "aliases resolved"),
        ("a: &a [*a]", "alias inside of the value"),
        ("&a {*a : 1}", "alias inside of the value"),
        ("a0: &a0 [1]\n" + "\n".join(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 100)), "64 deep"),
        ("[" * 5000, "64 deep"),
        ("- " * 5000, "64 deep"),
        ("{a: " * 100 + "}" * 100, "64 deep"),
        ("a: [1, 2", "expected YAML"),
        ("a: 2024-99-99", "expected YAML"),
        ("a: *b", "expected YAML"),
        ("[1, 2]: 3", "expected YAML"),
        ("!!python/object/apply:os.system [x]", "expected YAML"),
        ("a: \x00", "expected YAML"),
    ],
)
def test_yaml_that_is_refused_is_named_at_once(text: str, message: str) -> None:
    start = time.monotonic()
    with pytest.raises(FileContentError, match=f"^name: .*{message}") as caught:
        parse_yaml(text, "name")
    assert len(str(caught.value)) < 600
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "64 deep"),
        ('{"a":' * 65 + "1" + "}" * 65, "64 deep"),
        ('["' + '\\"[' * 100_000, "expected JSON"),
        ("1" * 10_000, "expected JSON"),
        ("{'a': 1}", "expected JSON"),
        (b"\xff", "line 1"),
        (b'{\n"a": "\xe4"}', "0xe4 in line 2"),
    ],
)
def test_json_that_is_refused_is_named(text: str | bytes, message: str) -> None:
    with pytest.raises(FileContentError, match=f"^name: .*{message}"):
        parse_json(text, "name")


def test_json_up_to_the_limit_passes() -> None:
    assert parse_json("[" * 64 + "]" * 64, "name")
    assert parse_json(json.dumps("[" * 500), "name") == "[" * 500


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_files_that_are_none_or_too_large_are_named(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.truncate(10 << 30)
    with pytest.raises(FileContentError, match=r"a: expected at most .* bytes, got 10,737,418,240"):
        read(path)
    assert MAX_BYTES < 10 << 30
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"regular file.*pipe"):
        read(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"regular file.*/dev/zero"):
        read("/dev/zero")
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read(tmp_path / "nowhere")
