"""Reads untrusted `.pth` files as plain tensors, or refuses them.

`torch.load(weights_only=True)` runs no code from the file, but allocates whatever it asks for and does not detect
damage, so sizes, checksums and the pickle's calls are checked first.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bgpt_fast.checkpoint.schema import CheckpointError
from bgpt_fast.memory import is_shortage

_KEYS = ("model", "state_dict", "model_state_dict")
"""Under which training programs store the weights, beside other things."""
_MAX_PICKLE_BYTES = 1 << 24
_PLAIN_GLOBAL = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch(\.storage)? \w+Storage"
    r"|torch (device|Size|b?float\d+|u?int\d+|bool)"
)


def read_pth(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Reads a released-style `.pth` file, {'model': weights, 'config': …} or just the weights; runs no code from it.

    The weights may also be under "state_dict" or "model_state_dict".

    Returns:
        The tensors on the CPU, under the names of the file; and the value of "config", or None.

    Raises:
        CheckpointError: damaged, unsafe, or not a dict of tensors.
    """
    _check_archive(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if is_shortage(error):
            raise
        # The restricted unpickler may raise anything on a hostile pickle; refuse the file, nothing in it has run.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path}: expected plain tensors, got a file that torch refuses: {reason:.300}"
        ) from error
    key = next((key for key in _KEYS if isinstance(loaded, dict) and isinstance(loaded.get(key), dict)), None)
    weights = loaded if key is None else loaded[key]
    if not isinstance(weights, dict):
        raise CheckpointError(f"{path}: expected a dict of tensors, got {type(weights).__name__}")
    state_dict = {}
    storages = {}
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path}: {name!r:.80}: expected a named tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise CheckpointError(f"{path}: {name}: expected a dense tensor, got {tensor.layout} on {tensor.device}")
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        if tensor.nbytes > storage.nbytes() or sum(storages.values()) > path.stat().st_size:
            raise CheckpointError(
                f"{path}: {name}: expected tensors no larger than the file, got {tensor.nbytes} bytes"
            )
        state_dict[name] = tensor.contiguous()
    return state_dict, None if key is None else loaded.get("config")


def _check_archive(path: Path) -> None:
    """Refuses damaged archives, compressed ones, and pickles that call anything but tensor constructors."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # torch.save does not compress, so an archive that unpacks to more than its file size is hostile.
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise CheckpointError(
                    f"{path}: expected an archive of torch.save, got one that unpacks to more; refused"
                )
            # Readers differ in which of two entries they take, and torch's does not tell upper from lower case.
            names = Counter(entry.filename.lower() for entry in entries)
            twice = [name for name, count in names.items() if count > 1]
            if twice:
                raise CheckpointError(f"{path}: expected one entry of each name, got several {twice[0]!r:.80}; refused")
            pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > _MAX_PICKLE_BYTES:
                raise CheckpointError(
                    f"{path}: expected one small data.pkl as torch.save writes it, got others; refused"
                )
            damaged = archive.testzip()
            if damaged is not None:
                raise CheckpointError(f"{path}: {damaged}: checksum differs, the file is damaged; download it again")
            for opcode, argument, _ in pickletools.genops(archive.read(pickles[0])):
                if opcode.name in ("GLOBAL", "STACK_GLOBAL", "INST") and not _PLAIN_GLOBAL.fullmatch(str(argument)):
                    raise CheckpointError(f"{path}: expected plain tensors, got a call of {argument!r:.80}; refused")
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
        if is_shortage(error):
            raise
        raise CheckpointError(
            f"{path}: expected a zip archive of torch.save, got damage or another format: {error}; download it again"
        ) from error
