"""Reads weights: safetensors folders, single safetensors files, `.pth` files in the released layout, and hub ids.

A folder holds `model.safetensors`, whose metadata contain the config (and a classifier's label map), and `config.json`
with the same data plus the SHA-256 of the weights, which detects damage to either file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
from torch import Tensor

from bgpt_fast.checkpoint.hub import hub_path, is_hub_id
from bgpt_fast.checkpoint.names import released_names
from bgpt_fast.checkpoint.pth import read_pth
from bgpt_fast.checkpoint.schema import (
    CLASSIFIER,
    CONFIG_FILE,
    LM_HEAD,
    WEIGHTS_FILE,
    WTE,
    CheckpointError,
    check_finite,
    inferred_sizes,
    parse_config,
    parse_labels,
    read_entries,
    refuse_shards,
    validate_state_dict,
)
from bgpt_fast.checkpoint.task import ModelTask, parse_task
from bgpt_fast.config import NOTAGEN_ALPHABET, BGPTConfig
from bgpt_fast.device import default_cpu
from bgpt_fast.files import FileContentError, open_regular, read_file
from bgpt_fast.memory import named_out_of_memory
from bgpt_fast.parsing import parse_json

_MAX_HEADER_BYTES = 10**8
"""As safetensors itself limits it."""
_MAX_POINTER_BYTES = 4096


class _Content(NamedTuple):
    config: BGPTConfig
    state_dict: dict[str, Tensor]
    labels: dict[str, int] | None


class Checkpoint(_Content):
    """A model's config, its weights under the released names (with `lm_head`), and a classifier's label map.

    `labels` maps class name → index 0…n − 1, sorted by index; None for a generative model. `task` is what the model was
    trained for, None if the checkpoint does not say; it is an attribute, not an element of the tuple.
    """

    task: ModelTask | None = None


def load_weights(
    source: str | os.PathLike[str], *, labels: Mapping[str, int] | None = None, revision: str | None = None
) -> Checkpoint:
    """Reads a checkpoint onto the CPU in its stored dtype; never executes anything in it.

    Sizes that a file does not state are inferred from its tensors, assuming one attention head per 64 channels. A
    folder is verified by SHA-256, a `.pth` file by its zip checksums; a single `.safetensors` file has no checksum.

    Args:
        source: a folder written by `save_weights`; a training run's folder (its latest checkpoint is loaded), or its
            `checkpoints/latest` or `checkpoints/best`; a `.safetensors` file; a released-style `.pth` file
            ({'model': weights, …} or the weights alone); or, if no such path exists, a Hugging Face hub id
            "owner/name" or "owner/name/file.pth", which without network is read from the hub's cache.
        labels: the label map for a classifier whose file has none, such as the released `.pth` files; if the file has
            one, the two must be equal.

    Returns:
        `Checkpoint`: the config, the complete state dict, and the label map of a classifier.

    Raises:
        CheckpointError: missing, damaged or unsafe files, tensors that do not form a bGPT model, weights that are NaN
            or infinite, or a label map that is missing or does not fit; names the file, the tensor, the expected and
            the actual value.
        OutOfMemoryError: the weights do not fit memory.
        OSError: a file cannot be read.
    """
    path = followed(Path(source))
    with (
        default_cpu(),
        named_out_of_memory(lambda: f"the weights in {path}, {_size(path):,} bytes", advice="load a smaller model"),
    ):
        try:
            return _load(path, source, labels, revision)
        except CheckpointError as error:
            is_folder = path.is_dir() and not (path / WEIGHTS_FILE).exists()
            refuse_shards(str(source), [*os.listdir(path)] if is_folder else [path.name], error)
            raise


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))


def _load(
    path: Path, source: str | os.PathLike[str], labels: Mapping[str, int] | None, revision: str | None
) -> Checkpoint:
    if not path.exists() and isinstance(source, str) and is_hub_id(source):
        local = hub_path(source, revision=revision)
        try:
            return load_weights(local, labels=labels)
        except CheckpointError as error:
            raise CheckpointError(f"{source}, in the cache: {error}") from error
    if revision is not None:
        raise CheckpointError(
            f"{path}: revision: expected None for what is no hub id, got {revision!r}; name the hub's repository"
        )
    if path.is_dir():
        return _load_folder(path, labels)
    if path.is_file() and path.suffix == ".safetensors":
        is_of_folder = path.name == WEIGHTS_FILE and (path.parent / CONFIG_FILE).is_file()
        if is_of_folder:
            return _load_folder(path.parent, labels)
        return _load_safetensors(path, _read_safetensors(path), labels)
    if path.is_file() and path.suffix == ".pth":
        state_dict, fields = read_pth(path)
        return _complete(state_dict, fields, None, labels, str(path))
    actual = "a file of another kind" if path.exists() else "nothing there"
    raise CheckpointError(
        f"{path}: expected a checkpoint folder, a .safetensors or .pth file, or a hub id 'owner/name', got {actual}"
    )


def followed(path: Path) -> Path:
    """Resolves a training run's folder, or its `latest` or `best`, to a checkpoint folder; returns others unchanged."""
    if not (path / CONFIG_FILE).exists() and (path / "checkpoints" / "latest").is_file():
        path = path / "checkpoints" / "latest"
    if path.name not in ("latest", "best") or not path.is_file():
        return path
    try:
        named = read_file(path, _MAX_POINTER_BYTES).decode("utf-8", "replace").strip()
    except FileContentError as error:
        raise CheckpointError(f"{error}; it holds the name of a checkpoint folder beside it") from error
    if not named or Path(named).name != named or not (path.parent / named).is_dir():
        raise CheckpointError(f"{path}: expected the name of a checkpoint folder beside it, got {named!r}")
    return path.parent / named


def _complete(
    state_dict: Mapping[str, Any], fields: object, stored: object, labels: Mapping[str, int] | None, source: str
) -> Checkpoint:
    """Checks tensors against the config and labels stored with them, and adds the tied `lm_head`.

    Args:
        state_dict: the tensors of a file.
        fields: the stored config's fields; None infers the config from the tensors.
        stored: the stored label map, or None.
        labels: the caller's label map, or None.
        source: prefix of error messages.
    """
    state_dict = released_names(state_dict, source)
    own = None if stored is None else parse_labels(stored, source)
    if labels is not None:
        labels = parse_labels(labels, source)
        if f"{CLASSIFIER}.weight" not in state_dict:
            raise CheckpointError(f"{source}: labels: expected none for a generative model, got {len(labels)}")
        if own is not None and own != labels:
            raise CheckpointError(
                f"{source}: labels: expected those it was saved with, {own!r:.200}, got {labels!r:.200}"
            )
    labels = own if labels is None else labels
    if labels is None and f"{CLASSIFIER}.weight" in state_dict:
        raise CheckpointError(
            f"{source}: labels: expected a label map beside the weights of a classifier, got none, as in released "
            "files; load it by BGPTForClassification.from_pretrained(…, labels={class name: index}), or on the command "
            "line with --labels"
        )
    sizes = inferred_sizes(state_dict, source, is_classifier=labels is not None)
    if fields is None:
        is_notagen = sizes.get("vocab_size") == NOTAGEN_ALPHABET["vocab_size"]
        fields = {**sizes, **NOTAGEN_ALPHABET} if is_notagen else sizes
    config = parse_config(fields, source)
    for name, size in sizes.items():
        if getattr(config, name) != size:
            raise CheckpointError(
                f"{source}: {name}: expected {getattr(config, name)} as its config says, got tensors of {size}"
            )
    validate_state_dict(config, state_dict, labels=labels, source=source)
    check_finite(state_dict, source)
    tied = {} if labels is not None else {LM_HEAD: state_dict[WTE]}
    return Checkpoint(config, {**state_dict, **tied}, labels)


def _load_folder(folder: Path, labels: Mapping[str, int] | None) -> Checkpoint:
    weights = folder / WEIGHTS_FILE
    entries = read_entries(folder)
    if not weights.is_file():
        raise CheckpointError(f"{weights}: expected the weights that {CONFIG_FILE} names, got no such file")
    content = _read_safetensors(weights)
    digest = hashlib.sha256(content).hexdigest()
    for entry in entries:
        if entry["sha256"] == digest:
            checkpoint = _load_safetensors(weights, content, labels)
            source = str(folder / CONFIG_FILE)
            if checkpoint.config != parse_config(entry["config"], source):
                raise CheckpointError(
                    f"{source}: config: expected {checkpoint.config.to_dict()} as in {WEIGHTS_FILE}, got "
                    f"{entry['config']}; the file was changed after it was saved: restore it"
                )
            stored = parse_labels(entry["labels"], source) if "labels" in entry else None
            if checkpoint.labels != stored:
                raise CheckpointError(
                    f"{source}: labels: expected {checkpoint.labels!r:.200} as in {WEIGHTS_FILE}, got "
                    f"{stored!r:.200}; the file was changed after it was saved: restore it"
                )
            task = parse_task(entry.get("task"), source)
            if checkpoint.task != task:
                raise CheckpointError(
                    f"{source}: task: expected {checkpoint.task} as in {WEIGHTS_FILE}, got {task}; the file was "
                    "changed after it was saved: restore it"
                )
            return checkpoint
    raise CheckpointError(
        f"{weights}: expected SHA-256 {entries[0]['sha256']} as {CONFIG_FILE} says, got {digest}; one of the two is "
        "damaged or of another checkpoint: restore both from a copy"
    )


def _read_safetensors(path: Path) -> bytes:
    """The content of a safetensors file, which is read only if the file is as long as its header says.

    Raises:
        CheckpointError: it is not, or has no header.
        OSError: as `open_regular`.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        try:
            if not 0 < length <= min(size - 8, _MAX_HEADER_BYTES):
                raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
            tensors = parse_json(file.read(length), "header")
            ends = [about["data_offsets"][1] for name, about in tensors.items() if name != "__metadata__"]
            expected = 8 + length + max(ends, default=0)
            if size != expected:
                raise ValueError(f"{size:,} bytes, where its header says {expected:,}")
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise CheckpointError(
                f"{path}: expected a safetensors file, got damage: {error!s:.200}; restore the file"
            ) from error
        file.seek(0)
        return file.read()


def _load_safetensors(path: Path, content: bytes, labels: Mapping[str, int] | None) -> Checkpoint:
    try:
        state_dict = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: expected a safetensors file, got damage: {error}; restore the file") from error
    # safetensors has already validated this header; the first 8 bytes are its length.
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    text = header.get("__metadata__", {}).get("bgpt_config")
    try:
        fields = None if text is None else parse_json(text, f"{path}: metadata bgpt_config")
    except FileContentError as error:
        raise CheckpointError(f"{error}; the file is damaged") from error
    stored = fields.pop("labels", None) if isinstance(fields, dict) else None
    task = fields.pop("task", None) if isinstance(fields, dict) else None
    checkpoint = _complete(state_dict, fields, stored, labels, str(path))
    checkpoint.task = parse_task(task, str(path))
    return checkpoint
