"""A step's forward and backward pass as a CUDA graph: captured once, then replayed with a single launch."""

from __future__ import annotations

import torch
from torch import Tensor

from bgpt_fast.config import EOP
from bgpt_fast.device import Record, Replay, cuda_graph, to_device
from bgpt_fast.model import BGPT
from bgpt_fast.patches import PackedPatches


class GraphedGradients:
    """Accumulates the gradients of batches of one shape: fixed numbers of patches and targets, bounded documents.

    A smaller batch is padded with a document without targets and with empty documents, which change neither loss nor
    gradients. The gradient tensors are allocated once and accumulated in place.

    Args:
        model: on its device, in training mode, without dropout (a graph would repeat its masks).
        patches: number of patches in every batch, with padding.
        targets: number of target patches in every batch.
        autocast: whether to compute in bfloat16 under autocast.
        record: turns a function into one that replays its work: a CUDA graph, or in tests the function itself.
    """

    def __init__(
        self, model: BGPT, patches: int, targets: int, *, autocast: bool, record: Record | None = None
    ) -> None:
        device, config = next(model.parameters()).device, model.config
        self._model = model
        self._autocast = autocast
        self._record = record or cuda_graph
        self._replay: Replay | None = None
        self._patches = torch.full((patches, config.patch_size), EOP, dtype=torch.int16, device=device)
        self._offsets = torch.zeros(1, dtype=torch.int32, device=device)
        self._targets = torch.zeros(targets, dtype=torch.int64, device=device)
        self._weight = torch.zeros((), device=device)
        self._nats = torch.zeros((), dtype=torch.float64, device=device)

    def fits(self, batch: PackedPatches, targets: Tensor) -> bool:
        """Whether a batch fits this shape."""
        return len(targets) == len(self._targets) and batch.num_patches <= len(self._patches)

    def add(self, batch: PackedPatches, targets: Tensor, weight: float) -> Tensor:
        """Adds a batch's gradients times `weight`; the arguments are on the CPU and satisfy `fits`.

        Returns:
            The sum of nats, a float64 scalar on the device.
        """
        offsets = self._padded_offsets(batch)
        if len(offsets) > len(self._offsets):
            # Attention's grids have a block for each document, so a graph has at most twice as many as needed. A batch
            # with more is recorded anew, which happens as often as the largest number doubles.
            documents = 1 << (len(offsets) - 2).bit_length()
            self._offsets = torch.zeros(documents + 1, dtype=torch.int32, device=self._offsets.device)
            self._replay = None
        self._fill(batch, offsets, targets, weight)
        if self._replay is None:
            self._replay = self._recorded()
        self._replay()
        return self._nats.clone()

    def _padded_offsets(self, batch: PackedPatches) -> Tensor:
        """The batch's offsets and those of the documents that fill the shape, each within the context."""
        count, capacity, context = batch.num_patches, len(self._patches), self._model.config.patch_length
        ends = torch.arange(count + context, capacity + context, context, dtype=torch.int32, device="cpu")
        return torch.cat([batch.cu_seqlens, ends.clamp(max=capacity)])

    def _fill(self, batch: PackedPatches, offsets: Tensor, targets: Tensor, weight: float) -> None:
        count, capacity = batch.num_patches, len(self._patches)
        # The offsets that are left are those of empty documents.
        empty = torch.full((len(self._offsets) - len(offsets),), capacity, dtype=torch.int32, device="cpu")
        device = self._patches.device
        self._patches[:count] = to_device(batch.patches, batch.patches.device, device)
        self._patches[count:].fill_(EOP)
        self._offsets.copy_(to_device(torch.cat([offsets, empty]), offsets.device, device))
        self._targets.copy_(to_device(targets, targets.device, device))
        self._weight.fill_(weight)

    def _recorded(self) -> Replay:
        parameters = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        previous = [None if parameter.grad is None else parameter.grad.clone() for parameter in parameters]
        replay = self._record(self._step)
        # Warm-up and capture have run the step a few times; discard the gradients.
        for parameter, gradient in zip(parameters, previous, strict=True):
            if parameter.grad is not None:
                parameter.grad.zero_() if gradient is None else parameter.grad.copy_(gradient)
        return replay

    def _step(self) -> None:
        batch = PackedPatches.unchecked(self._patches, self._offsets, self._model.config.patch_length)
        with torch.autocast(self._patches.device.type, dtype=torch.bfloat16, enabled=self._autocast):
            output = self._model(batch, self._targets)
        self._nats.copy_(output.nats.sum(dtype=torch.float64))
        (output.loss * self._weight).backward()
