"""Weights on disk: safetensors folders, bare safetensors files and the released `.pth` layout, checked on the way in.

A folder holds `model.safetensors`, whose metadata carry the config, and `config.json` with the config and the SHA-256
of the weights, so that damage to either file is found. Shape letters: S bytes a patch, D width.
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

from bgpt_fast.config import VOCAB_SIZE, BGPTConfig
from bgpt_fast.files import atomic_write, write_json
from bgpt_fast.pth import CheckpointError, read_pth

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
LM_HEAD = "byte_level_decoder.base.lm_head.weight"
WTE = "byte_level_decoder.base.transformer.wte.weight"
_PATCH_EMBEDDING = "patch_level_decoder.patch_embedding.weight"
_PATCH_BASE = "patch_level_decoder.base."
_BYTE_BASE = "byte_level_decoder.base.transformer."
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_MAX_CONFIG_BYTES = 1 << 20
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(?<!\.pth)(?<!\.safetensors)(/[^/].*\.(pth|safetensors))?")


class Checkpoint(NamedTuple):
    """A model's sizes and its weights by their released names, `lm_head` included."""

    config: BGPTConfig
    state_dict: dict[str, Tensor]


def load_weights(source: str | os.PathLike[str]) -> Checkpoint:
    """Reads a checkpoint onto the CPU, in the dtype it is stored in; nothing in it is ever executed.

    Sizes that a file does not state are inferred from its tensors, attention heads as one per 64 channels. A folder's
    weights are held against their SHA-256, a `.pth` file's against its checksums, a bare `.safetensors` file's values
    against nothing.

    Args:
        source: a folder of `save_weights`; a `.safetensors` file; a released-style `.pth` file ({'model': weights, …}
            or the weights alone); or, if no such path exists, a Hugging Face hub id "owner/name" or
            "owner/name/file.pth".

    Returns:
        `Checkpoint`: the config and the complete state dict.

    Raises:
        CheckpointError: missing, damaged or unsafe files, or tensors that are no bGPT model; names the file, the
            tensor, what was expected and what came.
        OSError: a file cannot be read.
    """
    path = Path(source)
    if path.is_dir():
        return _load_folder(path)
    if path.is_file() and path.suffix == ".safetensors":
        is_of_folder = path.name == WEIGHTS_FILE and (path.parent / CONFIG_FILE).is_file()
        return _load_folder(path.parent) if is_of_folder else _load_safetensors(path, path.read_bytes())
    if path.is_file() and path.suffix == ".pth":
        state_dict, fields = read_pth(path)
        return _complete(state_dict, fields, str(path))
    if not path.exists() and isinstance(source, str) and _HUB_ID.fullmatch(source):
        return _load_hub(source)
    found = "a file of another kind" if path.exists() else "nothing there"
    raise CheckpointError(
        f"{path}: expected a checkpoint folder, a .safetensors or .pth file, or a hub id 'owner/name', got {found}"
    )


def save_weights(
    directory: str | os.PathLike[str],
    config: BGPTConfig,
    state_dict: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes `model.safetensors` and `config.json` so that at any moment, crashes included, the folder loads as before
    or as after.

    Args:
        directory: made if missing. A checkpoint that stands there is replaced.
        config: the model's sizes.
        state_dict: the weights by their released names, on any device; the tied `lm_head` may be absent.
        dtype: float32, bfloat16, float16 or float64 to store in; None keeps each tensor's own.

    Raises:
        CheckpointError: the weights do not fit the config, or overflow in `dtype`. Nothing was written.
        OSError: the disk is full or refuses; the error names the folder, and what stood there loads as before.
    """
    folder = Path(directory)
    tensors = _storable(config, state_dict, dtype)
    content = safetensors.torch.save(tensors, metadata={"bgpt_config": json.dumps(config.to_dict())})
    digest = hashlib.sha256(content).hexdigest()
    manifest = {"format": "bgpt_fast", "version": 1, "config": config.to_dict(), "sha256": digest, "previous": None}
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


def validate_state_dict(config: BGPTConfig, state_dict: Mapping[str, Tensor], *, source: str = "state dict") -> None:
    """Checks names, shapes and dtypes of the weights against a config.

    `lm_head` is tied to the byte decoder's `wte` and may be absent; if it is there, it must be equal.

    Raises:
        CheckpointError: names `source`, the tensor, what was expected and what came.
    """
    expected = _expected_shapes(config)
    missing = [name for name in expected if name not in state_dict]
    unexpected = [name for name in state_dict if name not in expected and name != LM_HEAD]
    if missing or unexpected:
        raise CheckpointError(
            f"{source}: expected the {len(expected)} tensors of a bGPT model, got {_some(missing)} missing and "
            f"{_some(unexpected)} unexpected; is it another model, or another number of layers?"
        )
    for name, tensor in state_dict.items():
        shape = expected[WTE if name == LM_HEAD else name]
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{source}: {name}: expected a tensor, got {type(tensor).__name__}")
        if tuple(tensor.shape) != shape:
            raise CheckpointError(f"{source}: {name}: expected shape {list(shape)}, got {list(tensor.shape)}")
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(f"{source}: {name}: expected a float of 16 to 64 bits, got {tensor.dtype}")
    if LM_HEAD in state_dict and not _equal(state_dict[LM_HEAD], state_dict[WTE]):
        raise CheckpointError(
            f"{source}: {LM_HEAD}: expected the values of {WTE}, to which it is tied, got others; save them equal"
        )


def _expected_shapes(config: BGPTConfig) -> dict[str, tuple[int, ...]]:
    """Every stored tensor's shape by name: the state dict without the tied `lm_head`."""
    D, S = config.hidden_size, config.patch_size
    shapes: dict[str, tuple[int, ...]] = {
        _PATCH_EMBEDDING: (D, S * VOCAB_SIZE),
        "patch_level_decoder.patch_embedding.bias": (D,),
    }
    for base, vocabulary, positions, layers in (
        (_PATCH_BASE, 1, config.patch_length, config.patch_num_layers),
        (_BYTE_BASE, VOCAB_SIZE, S + 1, config.byte_num_layers),
    ):
        shapes |= {f"{base}wte.weight": (vocabulary, D), f"{base}wpe.weight": (positions, D)}
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
        shapes |= {f"{base}ln_f.{part}": (D,) for part in ("weight", "bias")}
    return shapes


def _inferred_sizes(state_dict: Mapping[str, Tensor], source: str) -> dict[str, int]:
    """The config's sizes as the tensors show them."""
    shapes = {}
    for name in (_PATCH_EMBEDDING, f"{_PATCH_BASE}wpe.weight", f"{_BYTE_BASE}wpe.weight"):
        tensor = state_dict.get(name)
        if tensor is None:
            raise CheckpointError(f"{source}: {name}: expected a tensor of shape [·, ·], got none; is it a bGPT model?")
        if tensor.dim() != 2 or 0 in tensor.shape:
            raise CheckpointError(f"{source}: {name}: expected shape [·, ·], got {list(tensor.shape)}")
        shapes[name] = tensor.shape
    width, inputs = shapes[_PATCH_EMBEDDING]
    if inputs % VOCAB_SIZE:
        raise CheckpointError(
            f"{source}: {_PATCH_EMBEDDING}: expected shape [D, S·{VOCAB_SIZE}], got {[width, inputs]}"
        )
    return {
        "patch_size": inputs // VOCAB_SIZE,
        "patch_length": shapes[f"{_PATCH_BASE}wpe.weight"][0],
        "hidden_size": width,
        "patch_num_layers": _count_layers(state_dict, _PATCH_BASE),
        "byte_num_layers": _count_layers(state_dict, _BYTE_BASE),
    }


def _count_layers(state_dict: Mapping[str, Tensor], base: str) -> int:
    prefix = f"{base}h."
    return len({name[len(prefix) :].split(".")[0] for name in state_dict if name.startswith(prefix)})


def _complete(state_dict: Mapping[str, Any], fields: object, source: str) -> Checkpoint:
    """Checks tensors against the config that came with them (None: infer it) and restores the tied `lm_head`."""
    sizes = _inferred_sizes(state_dict, source)
    config = _parse_config(sizes if fields is None else fields, source)
    for name, size in sizes.items():
        if getattr(config, name) != size:
            raise CheckpointError(
                f"{source}: {name}: expected {getattr(config, name)} as its config says, got tensors of {size}"
            )
    validate_state_dict(config, state_dict, source=source)
    return Checkpoint(config, {**state_dict, LM_HEAD: state_dict[WTE]})


def _parse_config(fields: object, source: str) -> BGPTConfig:
    if not isinstance(fields, dict):
        raise CheckpointError(f"{source}: config: expected the fields of BGPTConfig, got {type(fields).__name__}")
    try:
        return BGPTConfig.from_dict(fields)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: config: {error}") from error


def _storable(config: BGPTConfig, state_dict: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    if dtype is not None and dtype not in _DTYPES:
        raise CheckpointError(f"save: dtype: expected float32, bfloat16, float16, float64 or None, got {dtype}")
    validate_state_dict(config, state_dict)
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


def _load_folder(folder: Path) -> Checkpoint:
    weights = folder / WEIGHTS_FILE
    entries = _read_entries(folder)
    if not weights.is_file():
        raise CheckpointError(f"{weights}: expected the weights that {CONFIG_FILE} names, got no such file")
    content = weights.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    for entry in entries:
        if entry["sha256"] == digest:
            checkpoint = _load_safetensors(weights, content)
            if checkpoint.config != _parse_config(entry["config"], str(folder / CONFIG_FILE)):
                raise CheckpointError(
                    f"{folder / CONFIG_FILE}: config: expected {checkpoint.config.to_dict()} as in {WEIGHTS_FILE}, got "
                    f"{entry['config']}; the file was changed after it was saved: restore it"
                )
            return checkpoint
    raise CheckpointError(
        f"{weights}: expected SHA-256 {entries[0]['sha256']} as {CONFIG_FILE} says, got {digest}; one of the two is "
        "damaged or of another checkpoint: restore both from a copy"
    )


def _read_entries(folder: Path) -> list[dict[str, Any]]:
    """The weights that a folder's config.json vouches for: [{"config", "sha256"}], the newest first."""
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
    if not isinstance(manifest, dict) or set(manifest) != keys or manifest["format"] != "bgpt_fast":
        raise CheckpointError(
            f"{path}: expected the fields {sorted(keys)} of a bgpt_fast checkpoint, got something else; to load "
            "weights without their config.json, move the .safetensors file elsewhere"
        )
    if manifest["version"] != 1:
        raise CheckpointError(f"{path}: version: expected 1, got {manifest['version']!r}; update bgpt_fast")
    entries = [{key: manifest[key] for key in ("config", "sha256")}]
    previous = manifest["previous"]
    if previous is not None:
        if not isinstance(previous, dict) or set(previous) != {"config", "sha256"}:
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


def _load_safetensors(path: Path, content: bytes) -> Checkpoint:
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
    return _complete(state_dict, fields, str(path))


def _load_hub(source: str) -> Checkpoint:
    from huggingface_hub import hf_hub_download, list_repo_files
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    owner, name, *rest = source.split("/", 2)
    repository = f"{owner}/{name}"
    try:
        if rest:
            return load_weights(Path(hf_hub_download(repository, rest[0])))
        try:
            hf_hub_download(repository, CONFIG_FILE)
            return load_weights(Path(hf_hub_download(repository, WEIGHTS_FILE)).parent)
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            files = [file for file in list_repo_files(repository) if file.endswith((".pth", ".safetensors"))]
            if len(files) != 1:
                raise CheckpointError(
                    f"{source}: expected {CONFIG_FILE} and {WEIGHTS_FILE} or one file of weights, got {_some(files)}; "
                    f"name one, as {source}/FILE"
                ) from None
            return load_weights(Path(hf_hub_download(repository, files[0])))
    except CheckpointError:
        raise
    except (OSError, ValueError, EntryNotFoundError) as error:
        raise CheckpointError(
            f"{source}: expected a path that exists or a hub id, got neither: there is no such path, and the hub says: "
            f"{error}"
        ) from error


def _equal(a: Tensor, b: Tensor) -> bool:
    return a is b or bool(((a == b) | (a.isnan() & b.isnan())).all())


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
    return f"{len(names)} ({shown})" if names else "none"
