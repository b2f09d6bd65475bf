"""FSDP2: a model, its gradients and its optimiser state in parts, one on each rank."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from bgpt_fast.model import BGPT
from bgpt_fast.training.distributed import Ranks
from bgpt_fast.training.objectives import Model, same_kind
from bgpt_fast.training.parallel import DataParallel, with_layout_of


class FullySharded(DataParallel):
    """`DataParallel` with the model split in place: its parameters become DTensors."""

    def _prepare(self) -> None:
        mesh = dist.init_device_mesh(self.ranks.device.type, (self.ranks.world_size,))
        for block in self.model.patch_level_decoder.base.h:
            fully_shard(block, mesh=mesh)
        if isinstance(self.model, BGPT):
            # As one: its loss runs forward and backward chunk by chunk on whole weights.
            fully_shard(self.model.byte_level_decoder, mesh=mesh)
        fully_shard(self.model, mesh=mesh)

    @contextlib.contextmanager
    def _collecting(self, last: bool) -> Iterator[None]:
        cast(FSDPModule, self.model).set_requires_gradient_sync(last)
        yield

    def clip(self, parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
        return cast(DTensor, super().clip(parameters, limit)).full_tensor()

    def weights(self) -> dict[str, Tensor]:
        weights = {}
        for name, shard in self.model.state_dict().items():
            tensor = shard.full_tensor()
            if self.ranks.is_main:
                weights[name] = tensor.cpu()
        return weights

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        shards = self.model.state_dict()
        self.model.load_state_dict({name: with_layout_of(weights[name], shards[name]) for name in shards})

    @contextlib.contextmanager
    def whole_model(self) -> Iterator[Model]:
        copy = same_kind(self.model).to(self.ranks.device)
        copy.load_state_dict({name: shard.full_tensor() for name, shard in self.model.state_dict().items()})
        yield copy

    def writer(self, parts: dict[str, Tensor]) -> ShardWriter | None:
        return ShardWriter(parts, self.ranks)


def shard_as(tensor: Tensor, target: DTensor) -> DTensor:
    """This rank's part of a tensor that every rank has, as a DTensor with the mesh and placements of `target`."""
    local = tensor.to(target.device)
    return distribute_tensor(local, target.device_mesh, target.placements, src_data_rank=None)


class ShardWriter:
    """Writes tensors that are in parts, all ranks together: torch's distributed checkpoint, as safetensors.

    Rank 0 calls it with the folder, and `abandon` at the end; the others call `follow`. All may do so in threads.

    Args:
        tensors: DTensors by name.
        ranks: who has the parts.
    """

    def __init__(self, tensors: Mapping[str, Tensor], ranks: Ranks) -> None:
        self._tensors = dict(tensors)
        self._ranks = ranks
        self._called = False

    def __call__(self, folder: Path) -> None:
        """Writes into `folder`, which exists.

        Raises:
            OSError: a rank could not write.
        """
        self._called = True
        self._write(self._ranks.broadcast(str(folder), saving=True))

    def follow(self) -> None:
        """Takes part; what fails is for rank 0 to tell."""
        folder = self._ranks.broadcast(None, saving=True)
        if folder is not None:
            with contextlib.suppress(OSError):
                self._write(folder)

    def abandon(self) -> None:
        """Lets the other ranks go if they wait for a folder still."""
        if not self._called:
            self._ranks.broadcast(None, saving=True)

    def _write(self, folder: str) -> None:
        writer = dcp.HuggingFaceStorageWriter(folder, save_distributed=True)
        try:
            dcp.save(self._tensors, storage_writer=writer, process_group=self._ranks.saving)
        except CheckpointException as error:
            raise OSError(f"{folder}: {error}") from error


def load_shards(folder: Path) -> dict[str, Tensor]:
    """What `ShardWriter` wrote, whole and on the CPU, whatever the number of ranks was."""
    described = dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    tensors: dict[str, Any] = {
        name: torch.empty(part.size, dtype=part.properties.dtype)
        for name, part in described.items()
        if isinstance(part, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        # It is the intent to load in a single process.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=True)
    return tensors
