"""A model on several ranks, whole on each: torch's DistributedDataParallel; or on a single process, as it is."""

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
