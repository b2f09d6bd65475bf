"""JSON and YAML of untrusted files: values, and limits that hold before anything is built."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest

from bgpt_fast.files import FileContentError
from bgpt_fast.parsing import MAX_BYTES, dump_yaml, parse_json, parse_yaml, read_json, read_yaml

VALUE: dict[str, Any] = {"a": [1, 2.5, None, True], "b": {"c": '[[[{{{ " \\'}, "ü": "ß"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-be"])
def test_values_with_and_without_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a"
    mark = "\ufeff" if encoding.endswith("be") else ""  # the others write it
    path.write_bytes((mark + json.dumps(VALUE, ensure_ascii=False)).encode(encoding))
    assert read_json(path) == read_yaml(path) == VALUE


def test_a_cut_text_with_a_mark_is_named() -> None:
    with pytest.raises(FileContentError, match=r"^name: expected text in UTF-16, .*save it as UTF-8"):
        parse_json("{}".encode("utf-16")[:-1], "name")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("1e-3", 1e-3), ("1E5", 1e5), ("-2.5e+3", -2500.0), ("1.e-3", 1e-3), (".5e-3", 5e-4), ("+1e3", 1e3)],
        *[("010", 10), ("08", 8), ("0o17", 15), ("0x1F", 31), ("1_000", 1000), ("1_000.5", 1000.5), ("-1", -1)],
        *[("1e", "1e"), ("e5", "e5"), ("1:30", "1:30"), ("0b11", "0b11"), ("2024-01-31", "2024-01-31"), ("'1'", "1")],
        *[("yes", "yes"), ("no", "no"), ("on", "on"), ("off", "off"), ("true", True), ("False", False)],
        *[("", None), ("~", None), ("null", None), (".inf", math.inf), ("-.Inf", -math.inf)],
    ],
)
def test_plain_values_are_those_of_yaml_1_2(text: str, value: object) -> None:
    assert parse_yaml(f"a: {text}", "name") == {"a": value}
    for plain in (text, value):
        for context in ({"a": plain}, [plain], {plain: 1}):
            read = parse_yaml(dump_yaml(context), "name")
            assert read == context
            assert repr(read) == repr(context), "types, too"


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
        ("a: *b", "expected YAML"),
        ("a: " + "1" * 5000, "a number of 5,000 digits; expected at most 1,000"),
        ("a: 1\na: 2", "expected each name once, got 'a' twice"),
        ("a: &x {b: 1, b: 1}\nc: *x", "expected each name once, got 'b' twice"),
        ("- - {b: [{c: 1, 'c': 2}]}", "expected each name once, got 'c' twice"),
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
        ("1" * 10_000, "expected JSON, got a number of 10,000 digits; expected at most 1,000"),
        ('[{"a": {"b": 1, "c": 2, "b": 1}}]', "expected JSON, got 'b' twice; expected each name once"),
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
