"""Options of `bgpt-fast train` from files, JSON or YAML, and from presets."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args, get_origin, get_type_hints

import yaml

from bgpt_fast.training.presets import PRESETS

if TYPE_CHECKING:
    from bgpt_fast.cli.train import Train


def preset_options(name: str, base: Train) -> Train:
    """`base` with a preset's model, settings and batch.

    Raises:
        ValueError: no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"--preset: expected one of {list(PRESETS)}, got {name!r}")
    preset = PRESETS[name]
    return dataclasses.replace(
        base,
        preset=cast(Any, name),
        model=preset.model,
        training=preset.training,
        patches_per_batch=preset.patches_per_batch,
    )


def read_options_file(path: Path, base: Train) -> Train:
    """Options from a file that `bgpt-fast train` or `migrate-config` wrote, or a part of one; the rest is `base`'s.

    Args:
        path: JSON, or YAML if it is named .yaml or .yml.
        base: what holds where the file says nothing, unless it names a preset, or data, which means "tiny".

    Raises:
        ValueError: no mapping of options, an unknown name, or a bad value; says which.
        OSError: the file cannot be read.
    """
    text = path.read_text(encoding="utf-8")
    is_yaml = path.suffix in (".yaml", ".yml")
    try:
        found = yaml.safe_load(text) if is_yaml else json.loads(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: expected {'YAML' if is_yaml else 'JSON'}, got {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected options by name, got {type(found).__name__}")
    preset = found.get("preset") or ("tiny" if found.get("data") else None)
    if preset is not None:
        base = preset_options(str(preset), base)
    return _filled(base, found, str(path))


def _filled(base: Any, found: Mapping[str, Any], where: str) -> Any:
    """A dataclass with some of its fields replaced by plain values."""
    hints = get_type_hints(type(base))
    unknown = sorted(map(str, set(found) - set(hints)))
    if unknown:
        raise ValueError(f"{where}: unknown options {unknown}; known are {sorted(hints)}")
    values = {}
    for name, value in found.items():
        current = getattr(base, name)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, dict):
                raise ValueError(f"{where}: {name}: expected options by name, got {value!r}")
            values[name] = _filled(current, value, f"{where}: {name}")
        else:
            values[name] = _typed(value, hints[name], f"{where}: {name}")
    try:
        return dataclasses.replace(base, **values)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from error


def _typed(value: Any, hint: Any, where: str) -> Any:
    """A plain value as the type that a field has."""
    options = get_args(hint)
    if get_origin(hint) is Literal:
        if value not in options:
            raise ValueError(f"{where}: expected one of {list(options)}, got {value!r}")
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where}: expected a list, got {value!r}")
        return tuple(_typed(item, options[0], where) for item in value)
    if type(None) in options:
        return None if value is None else _typed(value, options[0], where)
    wanted = str if hint is Path else hint
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, wanted) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where}: expected {'a path' if hint is Path else hint.__name__}, got {value!r}")
    return hint(value)


def named_before(words: Sequence[str], option: str) -> str | None:
    """What an option is given as, read before the others, which take their defaults from there."""
    for index, word in enumerate(words):
        if word.startswith(f"{option}="):
            return word.removeprefix(f"{option}=")
        if word == option and index + 1 < len(words):
            return words[index + 1]
    return None
