"""JSON and YAML of untrusted files: limits on size, nesting and repetition hold before anything is built."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from typing import Any, ClassVar

import yaml

from bgpt_fast.files import FileContentError, PathLike, decode_text, read_file

MAX_BYTES = 1 << 20
_MAX_YAML_BYTES = 1 << 18
_MAX_DEPTH = 64
_MAX_DIGITS = 1000
_JSON_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)


class _Loader(yaml.SafeLoader):
    """Reads plain values as YAML 1.2 does, and JSON; PyYAML reads YAML 1.1.

    There 1e-3 and 1e3 are text, 010 is 8, 1:30 is 90, "no" is false and 2024-01-31 a date. Here, as in YAML 1.2, they
    are 0.001, 1000, 10 and texts. Kept of YAML 1.1 are 1_000 for 1000, and merge keys.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # none of PyYAML's


class _Dumper(yaml.SafeDumper):
    """Quotes a text that either version of YAML would read as something else."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        key: list(pairs) for key, pairs in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


_DIGITS = r"[0-9]+(?:_[0-9]+)*"
_PLAIN_VALUES = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", rf"[-+]?{_DIGITS}|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", rf"[-+]?(?:\.[0-9]+|{_DIGITS}(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),
)
"""Type, pattern and first characters of the plain values that are no text."""
for _kind in (_Loader, _Dumper):
    for _type, _pattern, _first in _PLAIN_VALUES:
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_type}", re.compile(rf"^(?:{_pattern})$"), _first)


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return _whole_number(str(loader.construct_scalar(node)))


def _whole_number(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits; expected at most {_MAX_DIGITS:,}")
    return int(text, 0 if text[:2] in ("0o", "0x") else 10)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The dict of an object, whose names must differ: which value of two is meant nobody knows."""
    values = dict(pairs)
    if len(values) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{name!r:.80} twice; expected each name once")
    return values


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def read_json(path: PathLike, most: int = MAX_BYTES) -> Any:
    """The value of a JSON file in UTF-8 of at most `most` bytes, nested at most 64 deep.

    Raises:
        FileContentError: too large, nested too deeply, or not JSON in UTF-8; begins with the path.
        OSError: as `open_regular`.
    """
    return parse_json(read_file(path, most), os.fspath(path))


def read_yaml(path: PathLike) -> Any:
    """The value of a YAML file in UTF-8 of at most 256 KiB, nested at most 64 deep.

    Aliases are resolved as long as the text that they stand for is not larger than the limit either.

    Raises:
        FileContentError: too large, nested too deeply, or not YAML in UTF-8; begins with the path.
        OSError: as `open_regular`.
    """
    return parse_yaml(read_file(path, _MAX_YAML_BYTES), os.fspath(path))


def parse_json(content: bytes | str, name: str) -> Any:
    """The value of a JSON text; errors as `read_json`, beginning with `name`."""
    text = decode_text(content, name) if isinstance(content, bytes) else content
    depth = 0
    for token in _JSON_TOKEN.finditer(text):
        depth += (token[0] in "[{") - (token[0] in "]}")
        if depth > _MAX_DEPTH:
            raise _too_deep(name)
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_int=_whole_number)
    except ValueError as error:
        raise FileContentError(f"{name}: expected JSON, got {error!s:.200}") from error


def parse_yaml(content: bytes | str, name: str) -> Any:
    """The value of a YAML text; errors as `read_yaml`, beginning with `name`."""
    text = decode_text(content, name) if isinstance(content, bytes) else content
    try:
        depth = 0
        for event in yaml.parse(text, _Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                raise _too_deep(name)
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        size, depth = _expanded(node, name, {})
        _check_unique(node, name)
        if depth > _MAX_DEPTH:
            raise _too_deep(name)
        if size > _MAX_YAML_BYTES:
            raise FileContentError(
                f"{name}: expected at most {_MAX_YAML_BYTES:,} bytes with its aliases resolved, got {size:,}"
            )
        return loader.construct_document(node)
    except FileContentError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # a number may be too large
        raise FileContentError(f"{name}: expected YAML, got {error!s:.400}") from error


def dump_yaml(value: Any) -> str:
    """The text of a value in YAML, in the order of its keys; `parse_yaml` returns the value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _expanded(node: yaml.Node, name: str, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Bytes and depth of a node with its aliases resolved; `known` holds those of other nodes, None of unfinished ones.

    An alias follows what it stands for, so that the recursion is no deeper than the text is nested.
    """
    if id(node) in known:
        result = known[id(node)]
        if result is None:
            raise FileContentError(f"{name}: expected values, got an alias inside of the value that it stands for")
        return result
    known[id(node)] = None
    size, depth = 1, 0
    for part in [node.value] if isinstance(node.value, str) else node.value:
        for one in part if isinstance(part, tuple) else (part,):
            more, below = (len(one), 0) if isinstance(one, str) else _expanded(one, name, known)
            size, depth = size + more, max(depth, below)
    known[id(node)] = (size, depth + 1)
    return size, depth + 1


def _check_unique(root: yaml.Node, name: str) -> None:
    """Raises FileContentError if a mapping has a name twice; names beside a merged mapping replace its."""
    nodes, known = [root], set()
    while nodes:
        node = nodes.pop()
        if id(node) in known or isinstance(node.value, str):
            continue
        known.add(id(node))
        if isinstance(node, yaml.MappingNode):
            names = Counter(
                key.value for key, _ in node.value if isinstance(key.value, str) and not key.tag.endswith(":merge")
            )
            twice = next((key for key, count in names.items() if count > 1), None)
            if twice is not None:
                raise FileContentError(f"{name}: expected each name once, got {twice!r:.80} twice")
        nodes += [one for part in node.value for one in (part if isinstance(part, tuple) else (part,))]


def _too_deep(name: str) -> FileContentError:
    return FileContentError(f"{name}: expected values nested at most {_MAX_DEPTH} deep, got more")
