"""FSDP2: a model, its gradients and its optimiser state in parts, one on each rank."""

from __future__ import annotations

import contextlib
import math
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
from torch.distributed.tensor import DTensor

from bgpt_fast.layers import Block
from bgpt_fast.model import BGPT
from bgpt_fast.training.distributed import Ranks
from bgpt_fast.training.objectives import Model, same_kind
from bgpt_fast.training.parallel import DataParallel, with_layout_of


class FullySharded(DataParallel):
    """`DataParallel` with the model split in place: its parameters become DTensors, but for the patch embedding."""

    def _prepare(self) -> None:
        mesh = dist.init_device_mesh(self.ranks.device.type, (self.ranks.world_size,))
        self._embedding = self.model.patch_level_decoder.patch_embedding.weight
        # Not whole layers: a layer uses the first LayerNorm of the next (`Block.forward`), not gathered by then.
        for block in cast(Iterable[Block], self.model.patch_level_decoder.base.h):
            fully_shard(block.attn, mesh=mesh)
            fully_shard(block.mlp, mesh=mesh)
        if isinstance(self.model, BGPT):
            # As one: its loss runs forward and backward chunk by chunk on whole weights.
            fully_shard(self.model.byte_level_decoder, mesh=mesh)
        # FSDP2 takes contiguous parameters alone, and this one lies column by column.
        fully_shard(self.model, mesh=mesh, ignored_params={self._embedding})

    @contextlib.contextmanager
    def _collecting(self, last: bool) -> Iterator[None]:
        cast(FSDPModule, self.model).set_requires_gradient_sync(last)
        yield
        if last:
            assert self._embedding.grad is not None
            total = self._embedding.grad.contiguous()
            dist.all_reduce(total)
            self._embedding.grad.copy_(total / self.ranks.world_size)

    def clip(self, parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        parts = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
        wholes = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
        square = torch.stack([part.float().square().sum() for part in parts]).sum()
        dist.all_reduce(square)
        norm = (square + torch.stack([whole.float().square().sum() for whole in wholes]).sum()).sqrt()
        if math.isfinite(limit):
            scale = (limit / (norm + 1e-6)).clamp(max=1.0)
            for gradient in (*parts, *wholes):
                gradient.mul_(scale)
        return norm

    def weights(self) -> dict[str, Tensor]:
        found = {}
        for name, value in self.model.state_dict().items():
            whole = _whole(value)
            if self.ranks.is_main:
                found[name] = whole.cpu()
        return found

    @torch.no_grad()
    def load_weights(self, weights: dict[str, Tensor]) -> None:
        for name, value in self.model.state_dict().items():
            value.copy_(with_layout_of(weights[name], value))

    @contextlib.contextmanager
    def whole_model(self) -> Iterator[Model]:
        copy = same_kind(self.model).to(self.ranks.device)
        parts = self.model.state_dict()
        with torch.no_grad():
            for name, value in copy.state_dict().items():
                value.copy_(_whole(parts[name]))
        yield copy

    def writer(self, parts: dict[str, Tensor]) -> ShardWriter | None:
        return ShardWriter(parts, self.ranks)


def local_part_of(whole: Tensor, target: Tensor) -> Tensor:
    """This rank's part of a whole tensor, as a DTensor laid out as `target`."""
    assert isinstance(target, DTensor)
    mesh = target.device_mesh
    local = target.to_local()
    begin = sum(len(part) for part in whole.chunk(mesh.size())[: mesh.get_local_rank()])
    part = torch.empty_like(local).copy_(whole[begin : begin + len(local)])
    return DTensor.from_local(
        part, mesh, target.placements, shape=target.shape, stride=target.stride(), run_check=False
    )


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


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
