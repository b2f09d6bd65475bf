"""FSDP2: weights, gradients and optimiser state are sharded over ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import cast

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from bgpt_fast.model import BGPT
from bgpt_fast.training.objectives import Model, new_model_like
from bgpt_fast.training.parallel.ddp import DataParallel
from bgpt_fast.training.parallel.dtensor import with_layout_of


class FullySharded(DataParallel):
    """As `DataParallel`, but shards the model in place: its parameters become DTensors."""

    def _prepare(self) -> None:
        mesh = dist.init_device_mesh(self.ranks.device.type, (self.ranks.world_size,))
        for block in self.model.patch_level_decoder.base.h:
            fully_shard(block, mesh=mesh)
        if isinstance(self.model, BGPT):
            # Sharded as one unit: its loss runs forward and backward chunk by chunk on the gathered weights.
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
        copy = new_model_like(self.model).to(self.ranks.device)
        copy.load_state_dict({name: shard.full_tensor() for name, shard in self.model.state_dict().items()})
        yield copy
