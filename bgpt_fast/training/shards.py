"""Stores tensors sharded over ranks in a folder: torch's distributed checkpoints, as safetensors."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from bgpt_fast.training.distributed import Ranks


class ShardWriter:
    """Writes DTensors collectively on all ranks.

    Rank 0 calls it with the folder, and `abandon` at the end; the others call `follow`. All may do so in threads.

    Args:
        tensors: DTensors by name.
        ranks: the ranks that hold their shards.
    """

    def __init__(self, tensors: Mapping[str, Tensor], ranks: Ranks) -> None:
        self._tensors = dict(tensors)
        self._ranks = ranks
        self._called = False

    def __call__(self, folder: Path) -> None:
        """Writes into `folder`, which must exist.

        Raises:
            OSError: writing failed on a rank.
        """
        self._called = True
        self._write(self._ranks.broadcast(str(folder), saving=True))

    def follow(self) -> None:
        """Writes this rank's shards; errors are raised on rank 0."""
        folder = self._ranks.broadcast(None, saving=True)
        if folder is not None:
            with contextlib.suppress(OSError):
                self._write(folder)

    def abandon(self) -> None:
        """Releases the other ranks, which wait for a folder name, if the writer was never called."""
        if not self._called:
            self._ranks.broadcast(None, saving=True)

    def _write(self, folder: str) -> None:
        writer = dcp.HuggingFaceStorageWriter(folder, save_distributed=True)
        try:
            dcp.save(self._tensors, storage_writer=writer, process_group=self._ranks.saving)
        except CheckpointException as error:
            raise OSError(f"{folder}: {error}") from error


def load_shards(folder: Path) -> dict[str, Tensor]:
    """Loads the full tensors written by `ShardWriter`s on any number of ranks, onto the CPU."""
    metadata = dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    tensors: dict[str, Any] = {
        name: torch.empty(part.size, dtype=part.properties.dtype, device="cpu")
        for name, part in metadata.items()
        if isinstance(part, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        # Every rank loads independently.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=True)
    return tensors
