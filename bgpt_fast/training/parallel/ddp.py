"""A full copy of the model on each rank: torch's DistributedDataParallel; with a single process, the plain model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bgpt_fast.training.distributed import Ranks
from bgpt_fast.training.objectives import Model
from bgpt_fast.training.profiling import phase

_UNUSED = "patch_level_decoder.base.wte.weight"


class DataParallel:
    """Backward pass, gradient clipping and weights of a model with a full copy on each rank.

    Gradients are summed over ranks; each rank scales its loss so that the sum is the gradient of the global mean.

    Args:
        model: on its device; receives rank 0's weights.
        ranks: the ranks of the run.
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
        # The patch decoder never uses its `wte`, whose gradient DDP would wait for.
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.model, [_UNUSED])
        self._forward = DistributedDataParallel(self.model, init_sync=False)

    def backward(self, loss: Callable[[nn.Module], Tensor], *, last: bool) -> None:
        """Accumulates the gradient of a loss; the `last` call of a step also sums gradients over ranks.

        Every rank must call this the same number of times in a step.

        Args:
            loss: computes the loss with the module that it is given.
            last: whether this is the last call of the step.
        """
        with self._collecting(last):
            # DDP and FSDP average over ranks, but a sum is needed.
            mean = loss(self._forward) * self.ranks.world_size
            with phase("backward"):
                mean.backward()

    @contextlib.contextmanager
    def _collecting(self, last: bool) -> Iterator[None]:
        """A block whose backward pass averages gradients over ranks only if `last`."""
        if isinstance(self._forward, DistributedDataParallel) and not last:
            with self._forward.no_sync():
                yield
        else:
            yield

    def clip(self, parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
        """Clips the gradients to a global norm of `limit`; returns the norm before clipping, over all ranks' shards."""
        return torch.nn.utils.clip_grad_norm_(parameters, limit)

    def weights(self) -> dict[str, Tensor]:
        """The full `state_dict`, which may be empty on ranks other than 0; every rank must call this."""
        return self.model.state_dict()

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Loads a full `state_dict`."""
        self.model.load_state_dict(weights)

    @contextlib.contextmanager
    def whole_model(self) -> Iterator[Model]:
        """The model for an evaluation; with FSDP a full, unsharded copy."""
        yield self.model
