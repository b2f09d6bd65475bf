"""A step's forward and backward pass as a CUDA graph, or all of it with the update: recorded once for each of a few
shapes that batches are filled up to, then replayed with a single launch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from bgpt_fast.device import Record, Replay, graph_recorder
from bgpt_fast.model import BGPT
from bgpt_fast.patches import PackedPatches

SIZES = 16
"""Numbers of patches, and of targets, that batches are filled up to: at most a sixteenth of the largest is filling."""


class GraphedUpdate(NamedTuple):
    """What follows the gradients in a step.

    Args:
        update: called with float64 [2], the sum of nats and 0; returns the step's figures, float64 [3]: these and the
            norm of the gradients. It must not wait.
        skip: float32 scalar on the device; while it is 1, `update` changes neither weights nor the optimiser's state.
    """

    update: Callable[[Tensor], Tensor]
    skip: Tensor


class _Inputs(NamedTuple):
    """Views of one buffer of bytes, so that a single copy brings all to the device."""

    buffer: Tensor
    targets: Tensor
    counted: Tensor
    weight: Tensor
    offsets: Tensor
    patches: Tensor

    @classmethod
    def empty(cls, patches: int, patch_size: int, documents: int, targets: int, device: torch.device) -> _Inputs:
        """On the CPU in page-locked memory if there is a GPU that can read it."""
        types = (torch.int64, torch.bool, torch.float32, torch.int32, torch.int16)
        counts = (targets, targets, 1, documents + 1, patches * patch_size)
        # As far apart as torch allocates, for kernels that load 16 bytes at a time.
        sizes = [-(-count * dtype.itemsize // 512) * 512 for count, dtype in zip(counts, types, strict=True)]
        pinned = device.type == "cpu" and torch.cuda.is_available()
        buffer = torch.empty(sum(sizes), dtype=torch.uint8, device=device, pin_memory=pinned)
        parts = [
            part[: count * dtype.itemsize].view(dtype)
            for part, count, dtype in zip(buffer.split(sizes), counts, types, strict=True)
        ]
        return cls(buffer, parts[0], parts[1], parts[2][0], parts[3], parts[4].view(patches, patch_size))


@dataclass(frozen=True)
class _Recorded:
    """The inputs of one shape on the device, and the graphs of the work that was recorded with them."""

    inputs: _Inputs
    replays: dict[Replay, Replay] = field(default_factory=dict)


class GraphedGradients:
    """Accumulates the gradients of batches up to a size, in graphs of fixed shapes.

    A batch is filled up to one of `SIZES` numbers of patches and of targets: with a document without targets, with
    empty documents and with targets that are not in the loss, which change neither loss nor gradients. A shape is
    recorded when a batch first needs it; all graphs share the memory of what lives within a step. The gradient tensors
    are allocated once and accumulated in place.

    Args:
        model: on its device, in training mode, without dropout (a graph would repeat its masks).
        patches: the largest number of patches in a batch.
        targets: the largest number of target patches in a batch.
        autocast: whether to compute in bfloat16 under autocast.
        update: the rest of a step, for `step`; None if that is not called.
        record: turns a function into one that replays its work; None means a CUDA graph.
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
        self._device = next(model.parameters()).device
        self._model = model
        self._patches, self._targets = patches, targets
        self._autocast = autocast
        self._update = update
        self._new_recorder = graph_recorder if record is None else lambda: record
        self._record = self._new_recorder()
        self._documents = 1
        self._shapes: dict[tuple[int, int], _Recorded] = {}
        self._inputs = self._new_inputs(0, 0, self._device)
        self._sums = torch.zeros(2, dtype=torch.float64, device=self._device)
        self._figures = torch.zeros(3, dtype=torch.float64, device=self._device)

    def fits(self, batch: PackedPatches, targets: Tensor) -> bool:
        """Whether a batch is not empty and within the size."""
        return 0 < len(targets) <= self._targets and batch.num_patches <= self._patches

    def add(self, batch: PackedPatches, targets: Tensor, weight: float) -> Tensor:
        """Adds a batch's gradients times `weight`; the arguments are on the CPU and satisfy `fits`.

        Returns:
            The sum of nats, a float64 scalar on the device.
        """
        self._replay(self._add, self._filled(batch, targets, weight))
        return self._sums[0].clone()

    def step(self, batch: PackedPatches, targets: Tensor) -> Tensor:
        """Zeroes the gradients, computes the batch's, and updates; the arguments are those of `add`.

        Returns:
            The figures, on the device; the next call overwrites them.
        """
        self._replay(self._whole, self._filled(batch, targets, 1.0))
        return self._figures

    def _new_inputs(self, patches: int, targets: int, device: torch.device) -> _Inputs:
        return _Inputs.empty(patches, self._model.config.patch_size, self._documents, targets, device)

    def _filled(self, batch: PackedPatches, targets: Tensor, weight: float) -> _Recorded:
        """Copies a batch to the inputs of its shape, without a wait."""
        patches, T = _filled_size(batch.num_patches, self._patches), _filled_size(len(targets), self._targets)
        offsets = self._padded_offsets(batch, patches)
        if len(offsets) > self._documents + 1:
            # Attention's grids have a block for each document, so a graph has at most twice as many as needed. A batch
            # with more is recorded anew, which happens as often as the largest number doubles.
            self._documents = 1 << (len(offsets) - 2).bit_length()
            self._shapes.clear()
            self._record = self._new_recorder()  # the memory that graphs share ends with the last of them
        shape = self._shapes.get((patches, T))
        if shape is None:
            shape = self._shapes[patches, T] = _Recorded(self._new_inputs(patches, T, self._device))
        host = self._new_inputs(patches, T, torch.device("cpu"))
        host.targets[: len(targets)] = targets
        host.targets[len(targets) :] = targets[-1]
        host.counted[: len(targets)] = True
        host.counted[len(targets) :] = False
        host.weight.fill_(weight)
        host.offsets[: len(offsets)] = offsets
        host.offsets[len(offsets) :] = patches  # empty documents
        host.patches[: batch.num_patches] = batch.patches
        host.patches[batch.num_patches :] = self._model.config.fill
        shape.inputs.buffer.copy_(host.buffer, non_blocking=True)
        return shape

    def _padded_offsets(self, batch: PackedPatches, patches: int) -> Tensor:
        """The batch's offsets and those of the documents that fill the shape, each within the context."""
        count, context = batch.num_patches, self._model.config.patch_length
        ends = torch.arange(count + context, patches + context, context, dtype=torch.int32, device="cpu")
        return torch.cat([batch.cu_seqlens, ends.clamp(max=patches)])

    def _replay(self, work: Replay, shape: _Recorded) -> None:
        self._inputs = shape.inputs
        if work not in shape.replays:
            shape.replays[work] = self._recorded_update() if work == self._whole else self._recorded_gradients()
        shape.replays[work]()

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
            output = self._model(batch, inputs.targets, inputs.counted)
        self._sums[0].copy_(output.nats.sum(dtype=torch.float64))
        (output.loss * inputs.weight).backward()

    def _whole(self) -> None:
        assert self._update is not None
        gradients = [parameter.grad for parameter in self._model.parameters() if parameter.grad is not None]
        if gradients:
            torch._foreach_zero_(gradients)
        self._add()
        self._figures.copy_(self._update.update(self._sums))


def _filled_size(count: int, most: int) -> int:
    """The least of `SIZES` equally spaced sizes up to `most` that holds `count`."""
    step = -(-most // SIZES)
    return min(-(-count // step) * step, most)
