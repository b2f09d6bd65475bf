"""The required content of a checkpoint: names, shapes and dtypes of weights, and config.json.

Shape letters: S bytes per patch, D width, n classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bgpt_fast.config import NOTAGEN_ALPHABET, VOCAB_SIZE, BGPTConfig
from bgpt_fast.files import FileContentError
from bgpt_fast.parsing import read_json

LM_HEAD = "byte_level_decoder.base.lm_head.weight"
WTE = "byte_level_decoder.base.transformer.wte.weight"
CLASSIFIER = "classifier"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PATCH_EMBEDDING = "patch_level_decoder.patch_embedding.weight"
_PATCH_BASE = "patch_level_decoder.base."
_BYTE_BASE = "byte_level_decoder.base.transformer."
_SHARD = re.compile(r"-\d+-of-\d+\.(safetensors|pth|pt|bin)$|\.(safetensors|bin)\.index\.json$")
_OPTIONAL = {"labels", "task"}
HUGGING_FACE_FIELDS = {"model_type", "architectures", "auto_map", "extension"}
"""Fields of config.json that only transformers reads."""


class CheckpointError(ValueError):
    """Weights that are missing, damaged, unsafe or of the wrong shape."""


def validate_state_dict(
    config: BGPTConfig,
    state_dict: Mapping[str, Tensor],
    *,
    labels: Mapping[str, int] | None = None,
    source: str = "state dict",
) -> None:
    """Checks names, shapes and dtypes of the weights against a config.

    Args:
        config: the model's sizes.
        state_dict: the weights under their released names. `lm_head` is tied to the byte decoder's `wte` and may be
            absent; if present, it must be equal.
        labels: a classifier's label map (instead of the byte decoder it has a head with one row per class); None for
            a generative model.
        source: prefix of error messages.

    Raises:
        CheckpointError: names `source`, the tensor, the expected and the actual value.
    """
    expected = _expected_shapes(config, None if labels is None else len(labels))
    missing = [name for name in expected if name not in state_dict]
    unexpected = [name for name in state_dict if name not in expected and (labels is not None or name != LM_HEAD)]
    if missing or unexpected:
        kind = "bGPT model" if labels is None else "bGPT classifier"
        raise CheckpointError(
            f"{source}: expected the {len(expected)} tensors of a {kind}, got {some(missing)} missing and "
            f"{some(unexpected)} unexpected; is it another model, or another number of layers?"
        )
    for name, tensor in state_dict.items():
        shape = expected[WTE if name == LM_HEAD else name]
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{source}: {name}: expected a tensor, got {type(tensor).__name__}")
        if tuple(tensor.shape) != shape:
            hint = f"; the label map has {len(labels)} classes" if labels and name.startswith(CLASSIFIER) else ""
            raise CheckpointError(f"{source}: {name}: expected shape {list(shape)}, got {list(tensor.shape)}{hint}")
        if tensor.dtype not in DTYPES:
            raise CheckpointError(f"{source}: {name}: expected a float of 16 to 64 bits, got {tensor.dtype}")
    if LM_HEAD in state_dict and not _equal(state_dict[LM_HEAD], state_dict[WTE]):
        raise CheckpointError(
            f"{source}: {LM_HEAD}: expected the values of {WTE}, to which it is tied, got others; save them equal"
        )


def check_finite(state_dict: Mapping[str, Tensor], source: str) -> None:
    """Raises CheckpointError, which begins with `source` and names the tensor, if a weight is NaN or infinite."""
    bad = [name for name, tensor in state_dict.items() if not bool(tensor.isfinite().all())]
    if bad:
        tensor = state_dict[bad[0]]
        count = tensor.numel() - int(tensor.isfinite().sum())
        more = f", and others in {some(bad[1:])} more tensors" if bad[1:] else ""
        raise CheckpointError(
            f"{source}: {bad[0]}: expected finite weights, got {count:,} of {tensor.numel():,} that are NaN or "
            f"infinite{more}; the training that made them diverged: use an earlier checkpoint"
        )


def inferred_sizes(state_dict: Mapping[str, Tensor], source: str, *, is_classifier: bool = False) -> dict[str, int]:
    """The config's sizes, inferred from the tensors; byte decoder sizes only for a generative model.

    Raises:
        CheckpointError: a tensor that determines a size is missing or has the wrong rank.
    """
    shapes = {}
    tables = (PATCH_EMBEDDING, f"{_PATCH_BASE}wpe.weight", *(() if is_classifier else (f"{_BYTE_BASE}wpe.weight",)))
    for name in tables:
        tensor = state_dict.get(name)
        if tensor is None:
            raise CheckpointError(f"{source}: {name}: expected a tensor of shape [·, ·], got none; is it a bGPT model?")
        if tensor.dim() != 2 or 0 in tensor.shape:
            raise CheckpointError(f"{source}: {name}: expected shape [·, ·], got {list(tensor.shape)}")
        shapes[name] = tensor.shape
    width, inputs = shapes[PATCH_EMBEDDING]
    table = None if is_classifier else state_dict.get(WTE)
    tokens: int = NOTAGEN_ALPHABET["vocab_size"]
    if table is None or table.dim() != 2 or len(table) != tokens:
        tokens = VOCAB_SIZE
    if inputs % tokens:
        raise CheckpointError(f"{source}: {PATCH_EMBEDDING}: expected shape [D, S·{tokens}], got {[width, inputs]}")
    sizes = {
        "patch_size": inputs // tokens,
        "patch_length": shapes[f"{_PATCH_BASE}wpe.weight"][0],
        "hidden_size": width,
        "patch_num_layers": _count_layers(state_dict, _PATCH_BASE),
    }
    if is_classifier:
        return sizes
    return {**sizes, "byte_num_layers": _count_layers(state_dict, _BYTE_BASE), "vocab_size": tokens}


def checked_labels(labels: object, source: str) -> dict[str, int]:
    """The label map sorted by index.

    Args:
        labels: class name → index; each of 0…n − 1 exactly once, n ≥ 1.
        source: prefix of error messages.

    Raises:
        ValueError: `labels` is not such a map.
    """
    if not isinstance(labels, Mapping):
        raise ValueError(f"{source}: labels: expected a dict, got {type(labels).__name__}")
    are_typed = all(isinstance(name, str) and type(index) is int for name, index in labels.items())
    if not are_typed or not labels or sorted(labels.values()) != list(range(len(labels))):
        raise ValueError(
            f"{source}: labels: expected class names with the indices 0…n − 1, each once, got {dict(labels)!r:.200}"
        )
    return dict(sorted(labels.items(), key=lambda entry: entry[1]))


def some(names: list[str]) -> str:
    """Text with the number of names and the first few of them."""
    listed = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
    return f"{len(names)} ({listed})" if names else "none"


def refuse_shards(source: str, names: Iterable[str], cause: CheckpointError | None = None) -> None:
    """Raises if one of these files is a part of weights that are spread over several, as transformers writes them.

    Raises:
        CheckpointError: names `source` and the file; its cause is `cause`.
    """
    part = next((name for name in sorted(names) if _SHARD.search(name)), None)
    if part is not None:
        raise CheckpointError(
            f"{source}: expected the weights in one file, got {part} of several (shards); write them as one, in "
            'transformers by save_pretrained(…, max_shard_size="100GB"), or by safetensors.torch.save_file of all '
            "their tensors together"
        ) from cause


def parse_config(fields: object, source: str) -> BGPTConfig:
    if not isinstance(fields, dict):
        raise CheckpointError(f"{source}: config: expected the fields of BGPTConfig, got {type(fields).__name__}")
    try:
        return BGPTConfig.from_dict(fields)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: config: {error}") from error


def parse_labels(labels: object, source: str) -> dict[str, int]:
    try:
        return checked_labels(labels, source)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def read_entries(folder: Path) -> list[dict[str, Any]]:
    """The entries of a folder's config.json, newest first: [{"config", "sha256"}], some with "task", a classifier's
    with "labels".

    During a save, or after an interrupted one, there are two; the SHA-256 of the weights tells which one is valid.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a file as save_pretrained writes it, got none")
    try:
        manifest = read_json(path)
    except FileContentError as error:
        raise CheckpointError(f"{error}; restore the file") from error
    keys = {"format", "version", "config", "sha256", "previous"}
    if (
        not isinstance(manifest, dict)
        or set(manifest) - _OPTIONAL - HUGGING_FACE_FIELDS != keys
        or manifest["format"] != "bgpt_fast"
    ):
        raise CheckpointError(
            f"{path}: expected the fields {sorted(keys)} of a bgpt_fast checkpoint, got something else; to load "
            "weights without their config.json, move the .safetensors file elsewhere"
        )
    if manifest["version"] != 1:
        raise CheckpointError(f"{path}: version: expected 1, got {manifest['version']!r}; update bgpt_fast")
    entries = [{key: manifest[key] for key in ("config", "labels", "task", "sha256") if key in manifest}]
    previous = manifest["previous"]
    if previous is not None:
        if not isinstance(previous, dict) or set(previous) - _OPTIONAL != {"config", "sha256"}:
            raise CheckpointError(f"{path}: previous: expected null or a config and a sha256, got {previous!r:.80}")
        entries.append(previous)
    return entries


def _expected_shapes(config: BGPTConfig, num_labels: int | None) -> dict[str, tuple[int, ...]]:
    """The shape of every stored tensor by name: the state dict without the tied `lm_head`."""
    D, S = config.hidden_size, config.patch_size
    shapes: dict[str, tuple[int, ...]] = {
        PATCH_EMBEDDING: (D, S * config.vocab_size),
        "patch_level_decoder.patch_embedding.bias": (D,),
    }
    shapes |= _transformer_shapes(_PATCH_BASE, 1, config.patch_length, config.patch_num_layers, D)
    if num_labels is None:
        return shapes | _transformer_shapes(_BYTE_BASE, config.vocab_size, S + 1, config.byte_num_layers, D)
    return shapes | {f"{CLASSIFIER}.weight": (num_labels, D), f"{CLASSIFIER}.bias": (num_labels,)}


def _transformer_shapes(base: str, vocabulary: int, positions: int, layers: int, D: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{base}wte.weight": (vocabulary, D), f"{base}wpe.weight": (positions, D)}
    for layer in range(layers):
        for name, inputs, outputs in (
            ("attn.c_attn", D, 3 * D),
            ("attn.c_proj", D, D),
            ("mlp.c_fc", D, 4 * D),
            ("mlp.c_proj", 4 * D, D),
        ):
            shapes[f"{base}h.{layer}.{name}.weight"] = (inputs, outputs)
            shapes[f"{base}h.{layer}.{name}.bias"] = (outputs,)
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{base}h.{layer}.{name}.{part}": (D,) for part in ("weight", "bias")}
    return shapes | {f"{base}ln_f.{part}": (D,) for part in ("weight", "bias")}


def _count_layers(state_dict: Mapping[str, Tensor], base: str) -> int:
    prefix = f"{base}h."
    return len({name[len(prefix) :].split(".")[0] for name in state_dict if name.startswith(prefix)})


def _equal(a: Tensor, b: Tensor) -> bool:
    return a is b or bool(((a == b) | (a.isnan() & b.isnan())).all())
