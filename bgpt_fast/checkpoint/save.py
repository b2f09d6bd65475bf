"""Writes weights: safetensors folders, and `.pth` files in the released layout."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bgpt_fast.checkpoint.hugging_face import config_fields, default_extension, write_hub_files
from bgpt_fast.checkpoint.model_card import ModelCard
from bgpt_fast.checkpoint.names import notagen_names, released_names
from bgpt_fast.checkpoint.schema import (
    CONFIG_FILE,
    DTYPES,
    LM_HEAD,
    WEIGHTS_FILE,
    WTE,
    CheckpointError,
    check_finite,
    parse_labels,
    read_entries,
    validate_state_dict,
)
from bgpt_fast.checkpoint.task import ModelTask
from bgpt_fast.config import VOCAB_SIZE, BGPTConfig
from bgpt_fast.files import atomic_write, open_regular, write_json

_STORED_DTYPES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names in the header of a safetensors file, in the order in which the safetensors library stores the tensors."""


def save_weights(
    directory: str | os.PathLike[str],
    config: BGPTConfig,
    state_dict: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    labels: Mapping[str, int] | None = None,
    task: ModelTask | None = None,
    hf: bool = False,
    extension: str | None = None,
    card: ModelCard | None = None,
) -> None:
    """Writes `model.safetensors` and `config.json`; after a crash the folder loads as either the old or the new model.

    Args:
        directory: created if missing; a checkpoint in it is replaced.
        config: the model's sizes.
        state_dict: the weights under their released names, on any device, as `released_names` accepts them.
        dtype: storage dtype: float32, bfloat16, float16 or float64; None keeps each tensor's own.
        labels: a classifier's class name → index 0…n − 1; None for a generative model.
        task: what the model was trained for; None if that is not known.
        hf: also writes what transformers needs to load the folder with `trust_remote_code=True`, and a model card.
        extension: with `hf`, that of the documents that transformers' rows of tokens are; None means the one that the
            task knows, or "txt".
        card: with `hf`, what the model card says that the weights do not.

    Raises:
        CheckpointError: the weights do not fit the config and labels, are NaN or infinite, or overflow in `dtype`;
            nothing is saved.
        ValueError: `hf` and a model whose symbols are not bytes.
        OSError: the disk is full or fails; the error names the folder, and an earlier checkpoint there still loads.
    """
    if hf:
        config.check_bytes("save_weights: hf")
    folder = Path(directory)
    entry: dict[str, Any] = {"config": config.to_dict()}
    if labels is not None:
        entry["labels"] = parse_labels(labels, "save")
    if task is not None:
        entry["task"] = task.to_dict()
    tensors = _storable(config, state_dict, dtype, entry.get("labels"))
    fields = {**entry["config"], **{name: entry[name] for name in ("labels", "task") if name in entry}}
    parts = safetensors_parts(tensors, {"bgpt_config": json.dumps(fields)})
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    entry["sha256"] = digest.hexdigest()
    manifest = {"format": "bgpt_fast", "version": 1, **entry, "previous": None}
    try:
        if hf:
            manifest |= config_fields(labels is not None, default_extension(task) if extension is None else extension)
            card = card or ModelCard(folder.resolve().name)
            card_text = card.text(config, task, entry.get("labels"), sum(tensor.numel() for tensor in tensors.values()))
            write_hub_files(folder, config, is_classifier=labels is not None, card=card_text)
        previous = _intact_entry(folder)
        with atomic_write(folder / WEIGHTS_FILE) as file:
            file.writelines(parts)
            # Until the new weights are renamed into place, config.json also keeps the SHA-256 of the old ones.
            write_json(folder / CONFIG_FILE, {**manifest, "previous": previous})
    except OSError as error:
        raise OSError(
            error.errno, f"{error.strerror}; the checkpoint was not saved, an older one there is intact", str(folder)
        ) from error
    if previous is not None:
        # The new checkpoint is complete; a leftover entry for the old weights is harmless.
        with contextlib.suppress(OSError):
            write_json(folder / CONFIG_FILE, manifest)


def safetensors_parts(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> list[bytes | memoryview]:
    """The parts of a safetensors file, one after the other: the header, and the memory of each tensor.

    The library's own writer copies all tensors, and ends the process where memory runs out. The bytes are the same;
    the format is https://github.com/huggingface/safetensors#format.

    Args:
        tensors: those that are contiguous and on the CPU are not copied: they must not change until all is written.
        metadata: texts by name, which are stored in this order; the library's order of several varies.

    Raises:
        KeyError: a tensor of a dtype that no part of a checkpoint has, such as complex64.
    """
    ranks = {dtype: rank for rank, dtype in enumerate(_STORED_DTYPES)}
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    parts: list[bytes | memoryview] = []
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (ranks[item[1].dtype], item[0])):
        begin, end = end, end + tensor.nbytes
        dtype, shape = _STORED_DTYPES[tensor.dtype], list(tensor.shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        parts.append(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *parts]


def to_released(config: BGPTConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights for a strict load into the paper's model, of bGPT or of NotaGen: every released name, on the
    CPU, contiguous.

    The paper's model is the authors' code with current transformers, which has no persistent `attn.bias` buffers.

    Raises:
        CheckpointError: the weights do not fit the config, or are NaN or infinite.
    """
    tensors = _storable(config, state_dict, None)
    tensors = {**tensors, LM_HEAD: tensors[WTE]}
    return tensors if config.vocab_size == VOCAB_SIZE else notagen_names(tensors)


def save_released(path: str | os.PathLike[str], config: BGPTConfig, state_dict: Mapping[str, Tensor]) -> None:
    """Writes a released-style `.pth` file {'model': `to_released(…)`, 'config': sizes}, atomically.

    Raises:
        CheckpointError: the weights do not fit the config, or are NaN or infinite; nothing is written.
        OSError: the file cannot be written; an existing one is unchanged.
    """
    buffer = io.BytesIO()
    torch.save({"model": to_released(config, state_dict), "config": config.to_dict()}, buffer)
    try:
        with atomic_write(path) as file:
            file.write(buffer.getbuffer())
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; the file was not saved", os.fspath(path)) from error


def _storable(
    config: BGPTConfig,
    state_dict: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    labels: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    if dtype is not None and dtype not in DTYPES:
        raise CheckpointError(f"save: dtype: expected float32, bfloat16, float16, float64 or None, got {dtype}")
    state_dict = released_names(state_dict, "save")
    validate_state_dict(config, state_dict, labels=labels)
    tensors = {name: tensor.detach().cpu() for name, tensor in state_dict.items() if name != LM_HEAD}
    check_finite(tensors, "save")
    for name, tensor in tensors.items():
        stored = tensor.to(dtype or tensor.dtype).contiguous()
        if stored.dtype != tensor.dtype and not bool(stored.isfinite().all()):
            raise CheckpointError(
                f"save: {name}: expected values that {dtype} holds, got up to {float(tensor.abs().max()):g}; use "
                "bfloat16 or float32"
            )
        tensors[name] = stored
    return tensors


def _intact_entry(folder: Path) -> dict[str, Any] | None:
    """The config.json entry of the weights in `folder`, or None if they do not load."""
    try:
        entries = read_entries(folder)
        with open_regular(folder / WEIGHTS_FILE) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (CheckpointError, FileNotFoundError):
        return None
    return next((entry for entry in entries if entry["sha256"] == digest), None)
