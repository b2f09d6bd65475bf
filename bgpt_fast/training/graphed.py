"""A step's forward and backward pass as a CUDA graph, or all of it with the update: recorded once, then replayed with a
single launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bgpt_fast.device import Record, Replay, cuda_graph
from bgpt_fast.model import BGPT
from bgpt_fast.patches import PackedPatches


class GraphedUpdate(NamedTuple):
    """What follows the gradients in a step.

    Args:
        update: called with float64 [2], the sum of nats and 0; returns the step's figures, a tensor. It must not wait.
        skip: float32 scalar on the device; while it is 1, `update` changes neither weights nor the optimiser's state.
    """

    update: Callable[[Tensor], Tensor]
    skip: Tensor


class _Inputs(NamedTuple):
    """Views of one buffer of bytes, so that a single copy brings all to the device."""

    buffer: Tensor
    targets: Tensor
    weight: Tensor
    offsets: Tensor
    patches: Tensor

    @classmethod
    def empty(cls, patches: int, patch_size: int, documents: int, targets: int, device: torch.device) -> _Inputs:
        """On the CPU in page-locked memory if there is a GPU that can read it."""
        types = (torch.int64, torch.float32, torch.int32, torch.int16)
        counts = (targets, 1, documents + 1, patches * patch_size)
        # As far apart as torch allocates, for kernels that load 16 bytes at a time.
        sizes = [-(-count * dtype.itemsize // 512) * 512 for count, dtype in zip(counts, types, strict=True)]
        pinned = device.type == "cpu" and torch.cuda.is_available()
        buffer = torch.empty(sum(sizes), dtype=torch.uint8, device=device, pin_memory=pinned)
        parts = [
            part[: count * dtype.itemsize].view(dtype)
            for part, count, dtype in zip(buffer.split(sizes), counts, types, strict=True)
        ]
        return cls(buffer, parts[0], parts[1][0], parts[2], parts[3].view(patches, patch_size))


class GraphedGradients:
    """Accumulates the gradients of batches of one shape: fixed numbers of patches and targets, bounded documents.

    A smaller batch is padded with a document without targets and with empty documents, which change neither loss nor
    gradients. The gradient tensors are allocated once and accumulated in place.

    Args:
        model: on its device, in training mode, without dropout (a graph would repeat its masks).
        patches: number of patches in every batch, with padding.
        targets: number of target patches in every batch.
        autocast: whether to compute in bfloat16 under autocast.
        update: the rest of a step, for `step`; None if that is not called.
        record: turns a function into one that replays its work: a CUDA graph, or in tests the function itself.
    """

    def __init__(
        self,
        model: BGPT,
        patches: int,
        targets: int,
        *,
        autocast: bool,
        update: GraphedUpdate | None = None,
        record: Record | None = None,
    ) -> None:
        device = next(model.parameters()).device
        self._model = model
        self._patches, self._targets = patches, targets
        self._autocast = autocast
        self._update = update
        self._record = record or cuda_graph
        self._replays: dict[Replay, Replay] = {}
        self._inputs = self._new_inputs(0, device)
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._figures = self._sums

    def fits(self, batch: PackedPatches, targets: Tensor) -> bool:
        """Whether a batch fits this shape."""
        return len(targets) == self._targets and batch.num_patches <= self._patches

    def add(self, batch: PackedPatches, targets: Tensor, weight: float) -> Tensor:
        """Adds a batch's gradients times `weight`; the arguments are on the CPU and satisfy `fits`.

        Returns:
            The sum of nats, a float64 scalar on the device.
        """
        self._fill(batch, targets, weight)
        self._replay(self._add)
        return self._sums[0].clone()

    def step(self, batch: PackedPatches, targets: Tensor) -> Tensor:
        """Zeroes the gradients, computes the batch's, and updates; the arguments are those of `add`.

        Returns:
            The figures, on the device; the next call overwrites them.
        """
        self._fill(batch, targets, 1.0)
        self._replay(self._whole)
        return self._figures

    def _new_inputs(self, documents: int, device: torch.device) -> _Inputs:
        return _Inputs.empty(self._patches, self._model.config.patch_size, documents, self._targets, device)

    def _fill(self, batch: PackedPatches, targets: Tensor, weight: float) -> None:
        """Copies a batch to the graph's inputs, without a wait."""
        offsets = self._padded_offsets(batch)
        if len(offsets) > len(self._inputs.offsets):
            # Attention's grids have a block for each document, so a graph has at most twice as many as needed. A batch
            # with more is recorded anew, which happens as often as the largest number doubles.
            documents = 1 << (len(offsets) - 2).bit_length()
            self._inputs = self._new_inputs(documents, self._inputs.buffer.device)
            self._replays.clear()
        count = batch.num_patches
        host = self._new_inputs(len(self._inputs.offsets) - 1, torch.device("cpu"))
        host.targets.copy_(targets)
        host.weight.fill_(weight)
        host.offsets[: len(offsets)] = offsets
        host.offsets[len(offsets) :] = self._patches  # empty documents
        host.patches[:count] = batch.patches
        host.patches[count:] = self._model.config.fill
        self._inputs.buffer.copy_(host.buffer, non_blocking=True)

    def _padded_offsets(self, batch: PackedPatches) -> Tensor:
        """The batch's offsets and those of the documents that fill the shape, each within the context."""
        count, capacity, context = batch.num_patches, self._patches, self._model.config.patch_length
        ends = torch.arange(count + context, capacity + context, context, dtype=torch.int32, device="cpu")
        return torch.cat([batch.cu_seqlens, ends.clamp(max=capacity)])

    def _replay(self, work: Replay) -> None:
        if work not in self._replays:
            self._replays[work] = self._recorded_update() if work == self._whole else self._recorded_gradients()
        self._replays[work]()

    def _recorded_gradients(self) -> Replay:
        parameters = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        previous = [None if parameter.grad is None else parameter.grad.clone() for parameter in parameters]
        replay = self._record(self._add)
        # Warm-up and capture have run the step a few times; discard the gradients.
        for parameter, gradient in zip(parameters, previous, strict=True):
            if parameter.grad is not None:
                parameter.grad.zero_() if gradient is None else parameter.grad.copy_(gradient)
        return replay

    def _recorded_update(self) -> Replay:
        assert self._update is not None
        before = self._update.skip.clone()
        self._update.skip.fill_(1.0)  # warm-up and capture must not change the weights
        replay = self._record(self._whole)
        self._update.skip.copy_(before)
        return replay

    def _add(self) -> None:
        inputs = self._inputs
        batch = PackedPatches.unchecked(inputs.patches, inputs.offsets, self._model.config.patch_length)
        with torch.autocast(inputs.buffer.device.type, dtype=torch.bfloat16, enabled=self._autocast):
            output = self._model(batch, inputs.targets)
        self._sums[0].copy_(output.nats.sum(dtype=torch.float64))
        (output.loss * inputs.weight).backward()

    def _whole(self) -> None:
        assert self._update is not None
        gradients = [parameter.grad for parameter in self._model.parameters() if parameter.grad is not None]
        if gradients:
            torch._foreach_zero_(gradients)
        self._add()
        self._figures = self._update.update(self._sums)
