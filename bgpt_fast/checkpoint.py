"""Weights on disk: safetensors folders, bare safetensors files and the released `.pth` layout, checked on the way in.

A folder holds `model.safetensors`, whose metadata carry the config (and a classifier's label map), and `config.json`
with the same and the SHA-256 of the weights, so that damage to either file is found.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from bgpt_fast.config import BGPTConfig
from bgpt_fast.files import atomic_write, write_json
from bgpt_fast.pth import CheckpointError, read_pth
from bgpt_fast.state_dict import (
    CLASSIFIER,
    DTYPES,
    LM_HEAD,
    WTE,
    checked_labels,
    inferred_sizes,
    some,
    validate_state_dict,
)

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_MAX_CONFIG_BYTES = 1 << 20
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(?<!\.pth)(?<!\.safetensors)(/[^/].*\.(pth|safetensors))?")


class Checkpoint(NamedTuple):
    """A model's sizes, its weights by their released names, `lm_head` included, and a classifier's label map.

    `labels` is class name → index 0…n − 1, in the order of the indices; None says that the model is a generative one.
    """

    config: BGPTConfig
    state_dict: dict[str, Tensor]
    labels: dict[str, int] | None


def load_weights(source: str | os.PathLike[str], *, labels: Mapping[str, int] | None = None) -> Checkpoint:
    """Reads a checkpoint onto the CPU, in the dtype it is stored in; nothing in it is ever executed.

    Sizes that a file does not state are inferred from its tensors, attention heads as one per 64 channels. A folder's
    weights are held against their SHA-256, a `.pth` file's against its checksums, a bare `.safetensors` file's values
    against nothing.

    Args:
        source: a folder of `save_weights`; a training run's folder, of which the latest checkpoint is taken, or its
            `checkpoints/latest` or `checkpoints/best`; a `.safetensors` file; a released-style `.pth` file
            ({'model': weights, …} or the weights alone); or, if no such path exists, a Hugging Face hub id
            "owner/name" or "owner/name/file.pth".
        labels: the label map of a classifier whose file has none, as the released `.pth` files; where the file has
            one, the two must be equal.

    Returns:
        `Checkpoint`: the config, the complete state dict, and the label map of a classifier.

    Raises:
        CheckpointError: missing, damaged or unsafe files, tensors that are no bGPT model, or a label map that is
            missing or does not fit; names the file, the tensor, what was expected and what came.
        OSError: a file cannot be read.
    """
    path = _followed(Path(source))
    if path.is_dir():
        return _load_folder(path, labels)
    if path.is_file() and path.suffix == ".safetensors":
        is_of_folder = path.name == WEIGHTS_FILE and (path.parent / CONFIG_FILE).is_file()
        if is_of_folder:
            return _load_folder(path.parent, labels)
        return _load_safetensors(path, path.read_bytes(), labels)
    if path.is_file() and path.suffix == ".pth":
        state_dict, fields = read_pth(path)
        return _complete(state_dict, fields, None, labels, str(path))
    if not path.exists() and isinstance(source, str) and _HUB_ID.fullmatch(source):
        return _load_hub(source, labels)
    found = "a file of another kind" if path.exists() else "nothing there"
    raise CheckpointError(
        f"{path}: expected a checkpoint folder, a .safetensors or .pth file, or a hub id 'owner/name', got {found}"
    )


def _followed(path: Path) -> Path:
    """The checkpoint folder that a training run, or one of its pointers, names; any other path as it is."""
    if not (path / CONFIG_FILE).exists() and (path / "checkpoints" / "latest").is_file():
        path = path / "checkpoints" / "latest"
    if path.name not in ("latest", "best") or not path.is_file():
        return path
    named = path.read_text("utf-8", "replace").strip()
    if not named or Path(named).name != named or not (path.parent / named).is_dir():
        raise CheckpointError(f"{path}: expected the name of a checkpoint folder beside it, got {named!r}")
    return path.parent / named


def save_weights(
    directory: str | os.PathLike[str],
    config: BGPTConfig,
    state_dict: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    labels: Mapping[str, int] | None = None,
) -> None:
    """Writes `model.safetensors` and `config.json` so that at any moment, crashes included, the folder loads as before
    or as after.

    Args:
        directory: made if missing. A checkpoint that stands there is replaced.
        config: the model's sizes.
        state_dict: the weights by their released names, on any device; the tied `lm_head` may be absent.
        dtype: float32, bfloat16, float16 or float64 to store in; None keeps each tensor's own.
        labels: of a classifier, class name → index 0…n − 1; None for a generative model.

    Raises:
        CheckpointError: the weights do not fit the config and labels, or overflow in `dtype`. Nothing was written.
        OSError: the disk is full or refuses; the error names the folder, and what stood there loads as before.
    """
    folder = Path(directory)
    entry: dict[str, Any] = {"config": config.to_dict()}
    if labels is not None:
        entry["labels"] = _parse_labels(labels, "save")
    tensors = _storable(config, state_dict, dtype, entry.get("labels"))
    # One entry, not two: safetensors writes them in an order that changes, and the same weights make the same file.
    fields = {**entry["config"], **({} if labels is None else {"labels": entry["labels"]})}
    content = safetensors.torch.save(tensors, metadata={"bgpt_config": json.dumps(fields)})
    entry["sha256"] = hashlib.sha256(content).hexdigest()
    manifest = {"format": "bgpt_fast", "version": 1, **entry, "previous": None}
    try:
        previous = _intact_entry(folder)
        with atomic_write(folder / WEIGHTS_FILE) as file:
            file.write(content)
            # Until the weights are renamed, the folder's config.json vouches for the old ones as well.
            write_json(folder / CONFIG_FILE, {**manifest, "previous": previous})
    except OSError as error:
        raise OSError(
            error.errno, f"{error.strerror}; the checkpoint was not saved, an older one there is whole", str(folder)
        ) from error
    if previous is not None:
        # The new checkpoint is whole already; vouching for the old weights a while longer does no harm.
        with contextlib.suppress(OSError):
            write_json(folder / CONFIG_FILE, manifest)


def to_released(config: BGPTConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights as a strict load of the paper's model takes them: every released name, on the CPU, contiguous.

    The paper's model is the authors' code on today's transformers, which keeps no `attn.bias` buffers.

    Raises:
        CheckpointError: the weights do not fit the config.
    """
    tensors = _storable(config, state_dict, None)
    return {**tensors, LM_HEAD: tensors[WTE]}


def save_released(path: str | os.PathLike[str], config: BGPTConfig, state_dict: Mapping[str, Tensor]) -> None:
    """Writes a released-style `.pth` file {'model': `to_released(…)`, 'config': sizes}, atomically.

    Raises:
        CheckpointError: the weights do not fit the config. Nothing was written.
        OSError: the file cannot be written; what stood there is untouched.
    """
    buffer = io.BytesIO()
    torch.save({"model": to_released(config, state_dict), "config": config.to_dict()}, buffer)
    try:
        with atomic_write(path) as file:
            file.write(buffer.getbuffer())
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; the file was not saved", os.fspath(path)) from error


def _complete(
    state_dict: Mapping[str, Any], fields: object, stored: object, given: Mapping[str, int] | None, source: str
) -> Checkpoint:
    """Checks tensors against the config and label map that came with them (None: infer it, take the given one), and
    restores the tied `lm_head`."""
    labels = None if stored is None else _parse_labels(stored, source)
    if given is not None:
        given = _parse_labels(given, source)
        if f"{CLASSIFIER}.weight" not in state_dict:
            raise CheckpointError(f"{source}: labels: expected none for a generative model, got {len(given)}")
        if labels is not None and labels != given:
            raise CheckpointError(
                f"{source}: labels: expected those it was saved with, {labels!r:.200}, got {given!r:.200}"
            )
        labels = given
    if labels is None and f"{CLASSIFIER}.weight" in state_dict:
        raise CheckpointError(
            f"{source}: labels: expected a label map beside the weights of a classifier, got none, as in released "
            "files; load it by BGPTForClassification.from_pretrained(…, labels={class name: index}), or on the command "
            "line with --labels"
        )
    sizes = inferred_sizes(state_dict, source, is_classifier=labels is not None)
    config = _parse_config(sizes if fields is None else fields, source)
    for name, size in sizes.items():
        if getattr(config, name) != size:
            raise CheckpointError(
                f"{source}: {name}: expected {getattr(config, name)} as its config says, got tensors of {size}"
            )
    validate_state_dict(config, state_dict, labels=labels, source=source)
    tied = {} if labels is not None else {LM_HEAD: state_dict[WTE]}
    return Checkpoint(config, {**state_dict, **tied}, labels)


def _parse_config(fields: object, source: str) -> BGPTConfig:
    if not isinstance(fields, dict):
        raise CheckpointError(f"{source}: config: expected the fields of BGPTConfig, got {type(fields).__name__}")
    try:
        return BGPTConfig.from_dict(fields)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: config: {error}") from error


def _parse_labels(labels: object, source: str) -> dict[str, int]:
    try:
        return checked_labels(labels, source)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _storable(
    config: BGPTConfig,
    state_dict: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    labels: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    if dtype is not None and dtype not in DTYPES:
        raise CheckpointError(f"save: dtype: expected float32, bfloat16, float16, float64 or None, got {dtype}")
    validate_state_dict(config, state_dict, labels=labels)
    tensors = {}
    for name, tensor in state_dict.items():
        if name == LM_HEAD:
            continue
        stored = tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()
        if stored.dtype != tensor.dtype and not torch.equal(stored.isfinite(), tensor.detach().cpu().isfinite()):
            raise CheckpointError(
                f"save: {name}: expected values that {dtype} holds, got up to {float(tensor.abs().max()):g}; use "
                "bfloat16 or float32"
            )
        tensors[name] = stored
    return tensors


def _load_folder(folder: Path, labels: Mapping[str, int] | None) -> Checkpoint:
    weights = folder / WEIGHTS_FILE
    entries = _read_entries(folder)
    if not weights.is_file():
        raise CheckpointError(f"{weights}: expected the weights that {CONFIG_FILE} names, got no such file")
    content = weights.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    for entry in entries:
        if entry["sha256"] == digest:
            checkpoint = _load_safetensors(weights, content, labels)
            source = str(folder / CONFIG_FILE)
            if checkpoint.config != _parse_config(entry["config"], source):
                raise CheckpointError(
                    f"{source}: config: expected {checkpoint.config.to_dict()} as in {WEIGHTS_FILE}, got "
                    f"{entry['config']}; the file was changed after it was saved: restore it"
                )
            stored = _parse_labels(entry["labels"], source) if "labels" in entry else None
            if checkpoint.labels != stored:
                raise CheckpointError(
                    f"{source}: labels: expected {checkpoint.labels!r:.200} as in {WEIGHTS_FILE}, got "
                    f"{stored!r:.200}; the file was changed after it was saved: restore it"
                )
            return checkpoint
    raise CheckpointError(
        f"{weights}: expected SHA-256 {entries[0]['sha256']} as {CONFIG_FILE} says, got {digest}; one of the two is "
        "damaged or of another checkpoint: restore both from a copy"
    )


def _read_entries(folder: Path) -> list[dict[str, Any]]:
    """The weights that a folder's config.json vouches for: [{"config", "sha256"}], the newest first.

    The entry of a classifier has "labels" beside them.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a file as save_pretrained writes it, got none")
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise CheckpointError(f"{path}: expected at most {_MAX_CONFIG_BYTES} bytes, got {path.stat().st_size}")
    try:
        manifest = json.loads(path.read_bytes().decode())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected JSON in UTF-8, got damage: {error}") from error
    keys = {"format", "version", "config", "sha256", "previous"}
    if not isinstance(manifest, dict) or set(manifest) - {"labels"} != keys or manifest["format"] != "bgpt_fast":
        raise CheckpointError(
            f"{path}: expected the fields {sorted(keys)} of a bgpt_fast checkpoint, got something else; to load "
            "weights without their config.json, move the .safetensors file elsewhere"
        )
    if manifest["version"] != 1:
        raise CheckpointError(f"{path}: version: expected 1, got {manifest['version']!r}; update bgpt_fast")
    entries = [{key: manifest[key] for key in ("config", "labels", "sha256") if key in manifest}]
    previous = manifest["previous"]
    if previous is not None:
        if not isinstance(previous, dict) or set(previous) - {"labels"} != {"config", "sha256"}:
            raise CheckpointError(f"{path}: previous: expected null or a config and a sha256, got {previous!r:.80}")
        entries.append(previous)
    return entries


def _intact_entry(folder: Path) -> dict[str, Any] | None:
    """The config.json entry of the weights that stand in `folder`, or None if they cannot be loaded anyway."""
    try:
        entries = _read_entries(folder)
        with open(folder / WEIGHTS_FILE, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (CheckpointError, FileNotFoundError):
        return None
    return next((entry for entry in entries if entry["sha256"] == digest), None)


def _load_safetensors(path: Path, content: bytes, labels: Mapping[str, int] | None) -> Checkpoint:
    try:
        state_dict = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: expected a safetensors file, got damage: {error}; restore the file") from error
    # The library has just parsed this header: its first 8 bytes are the header's length.
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    text = header.get("__metadata__", {}).get("bgpt_config")
    try:
        fields = None if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: metadata bgpt_config: expected JSON, got damage: {error}") from error
    stored = fields.pop("labels", None) if isinstance(fields, dict) else None
    return _complete(state_dict, fields, stored, labels, str(path))


def _load_hub(source: str, labels: Mapping[str, int] | None) -> Checkpoint:
    from huggingface_hub import hf_hub_download, list_repo_files
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    owner, name, *rest = source.split("/", 2)
    repository = f"{owner}/{name}"
    try:
        if rest:
            return load_weights(Path(hf_hub_download(repository, rest[0])), labels=labels)
        try:
            hf_hub_download(repository, CONFIG_FILE)
            return load_weights(Path(hf_hub_download(repository, WEIGHTS_FILE)).parent, labels=labels)
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            files = [file for file in list_repo_files(repository) if file.endswith((".pth", ".safetensors"))]
            if len(files) != 1:
                raise CheckpointError(
                    f"{source}: expected {CONFIG_FILE} and {WEIGHTS_FILE} or one file of weights, got {some(files)}; "
                    f"name one, as {source}/FILE"
                ) from None
            return load_weights(Path(hf_hub_download(repository, files[0])), labels=labels)
    except CheckpointError:
        raise
    except (OSError, ValueError, EntryNotFoundError) as error:
        raise CheckpointError(
            f"{source}: expected a path that exists or a hub id, got neither: there is no such path, and the hub says: "
            f"{error}"
        ) from error
