"""One model on several ranks: whole on each (DDP), or in parts (FSDP2, `sharded.py`); or on one, as it is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bgpt_fast.training.distributed import Ranks
from bgpt_fast.training.objectives import Model
from bgpt_fast.training.profiling import phase

if TYPE_CHECKING:
    from bgpt_fast.training.sharded import ShardWriter

_UNUSED = "patch_level_decoder.base.wte.weight"


class DataParallel:
    """Forward, gradients and weights of a model that is whole on each rank.

    Gradients are sums over ranks of what each rank's loss gave: the ranks' weights make them the global mean's.

    Args:
        model: on its device; takes rank 0's weights.
        ranks: who takes part.
    """

    def __init__(self, model: Model, ranks: Ranks) -> None:
        self.model = model
        self.ranks = ranks
        self._forward: nn.Module = model
        if ranks.world_size == 1:
            return
        with torch.no_grad():
            for parameter in model.parameters():
                dist.broadcast(parameter, src=0)
        self._prepare()

    def _prepare(self) -> None:
        # The patch decoder's `wte` is never used: DDP would wait for its gradient.
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.model, [_UNUSED])
        self._forward = DistributedDataParallel(self.model, init_sync=False)

    def backward(self, loss: Callable[[nn.Module], Tensor], *, last: bool) -> None:
        """Adds the gradient of a loss, computed by `loss` with the module to call; `last` of a step adds up the ranks'.

        Every rank calls this equally often in a step.
        """
        with self._collecting(last):
            # Ranks' gradients are averaged, and a global mean's gradient is the sum of its parts.
            mean = loss(self._forward) * self.ranks.world_size
            with phase("backward"):
                mean.backward()

    @contextlib.contextmanager
    def _collecting(self, last: bool) -> Iterator[None]:
        """A block whose gradients are averaged over ranks only if `last`."""
        if isinstance(self._forward, DistributedDataParallel) and not last:
            with self._forward.no_sync():
                yield
        else:
            yield

    def clip(self, parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
        """Scales the gradients to a norm of at most `limit`; returns the norm before, of all ranks' parts together."""
        return torch.nn.utils.clip_grad_norm_(parameters, limit)

    def weights(self) -> dict[str, Tensor]:
        """The whole `state_dict`; every rank calls this, and on all but rank 0 it may be empty."""
        return self.model.state_dict()

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Takes a whole `state_dict`."""
        self.model.load_state_dict(weights)

    @contextlib.contextmanager
    def whole_model(self) -> Iterator[Model]:
        """A model for an evaluation, which may use it in any way: a copy where the model is in parts."""
        yield self.model

    def writer(self, parts: dict[str, Tensor]) -> ShardWriter | None:
        """What writes tensors that are in parts, if there are any."""
        return None


def parallel_model(model: Model, ranks: Ranks, kind: str) -> DataParallel:
    """A model on ranks as `TrainConfig.parallel` says; on a single one as it is."""
    if ranks.world_size > 1 and kind == "fsdp":
        # FSDP's imports take a second that most runs need not wait.
        from bgpt_fast.training.sharded import FullySharded

        return FullySharded(model, ranks)
    return DataParallel(model, ranks)


def is_dtensor(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor; asks without the import, as above."""
    return hasattr(tensor, "full_tensor")


def with_layout_of(whole: Tensor, target: Tensor) -> Tensor:
    """A whole tensor on the device of `target`; this rank's part of it as a DTensor, where `target` is one."""
    if is_dtensor(target):
        from bgpt_fast.training.sharded import shard_as

        return shard_as(whole, cast(Any, target))
    return whole.to(target.device)
