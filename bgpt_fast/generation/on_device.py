"""The two decoders of a bGPT on a GPU, the byte decoder by the engine that suits the number of patches.

Not yet run on a GPU. Shape letters: T tokens, N patches, D width, S bytes a patch, L positions a slot, B slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bgpt_fast import _C
from bgpt_fast.device import Record, Replay, cuda_graph
from bgpt_fast.generation.device_layers import ByteWeights, DeviceLayers, PatchWeights
from bgpt_fast.generation.graphed import MOST_ROWS, GraphedByteDecoder, bucket_of
from bgpt_fast.generation.persistent import PersistentByteDecoder
from bgpt_fast.generation.sampling import Sampling
from bgpt_fast.generation.writing import DecodeRequest, DecodeResult
from bgpt_fast.kernels.cached_attention.op import cached_attention
from bgpt_fast.kernels.common.launch import on_device
from bgpt_fast.kernels.patch_embed.op import patch_embed
from bgpt_fast.model import BGPT

PERSISTENT_ROWS = 24
"""Patches up to which the persistent kernel is predicted to be faster than the graphs (not yet run on a GPU):
docs/kernels.md has the arithmetic, `make gpu-check` measures the point."""


def has_engines(device: torch.device) -> bool:
    """Whether the engines serve the device: a GPU, with an extension that was built where nvcc is."""
    return device.type == "cuda" and _C.with_cuda


class DeviceModel:
    """A model's weights as the engines read them, and the byte decoder's engines.

    Args:
        model: on a GPU, or in tests on the CPU, without the persistent kernel.
        precision: one of DEVICE_PRECISIONS.
        record: how the graphs are made; None means as CUDA graphs.
        batch_invariant: a file's bits depend on that file alone. Then one engine serves whatever the number of patches:
            graphs, of nothing whose sums another number of rows would order otherwise.
    """

    def __init__(
        self, model: BGPT, precision: str, record: Record | None = None, *, batch_invariant: bool = False
    ) -> None:
        self.precision, self.batch_invariant = precision, batch_invariant
        self.patches, self.bytes = PatchWeights(model, precision), ByteWeights(model, precision)
        self.device = self.bytes.device
        self.patch_layers = DeviceLayers(self.patches, batch_invariant)
        self.record = record or cuda_graph
        self.graphed = GraphedByteDecoder(self.bytes, self.record, batch_invariant=batch_invariant)
        has_kernel = has_engines(self.device) and not batch_invariant and PersistentByteDecoder.takes(self.bytes)
        self.persistent = PersistentByteDecoder(self.bytes) if has_kernel else None

    def reload(self, model: BGPT) -> None:
        """Takes the weights as they are now to where the old ones are, so that recorded graphs read them."""
        for own, new in ((self.patches, PatchWeights), (self.bytes, ByteWeights)):
            for to, tensor in zip(own.tensors(), new(model, self.precision).tensors(), strict=True):
                to.copy_(tensor)
        self.patch_layers.reload()
        self.graphed.layers.reload()


class _Round:
    """A graph's memory for a patch of each of some files."""

    def __init__(self, rows: int, patch_size: int, width: int, device: torch.device) -> None:
        self.patches = torch.zeros(rows, patch_size, dtype=torch.int16, device=device)
        self.slots, self.positions = (torch.zeros(rows, dtype=torch.int64, device=device) for _ in range(2))
        self.features = torch.zeros(rows, width, device=device)


class CudaDecoder:
    """A model on a GPU with a cache for `slots` sequences of up to `length` patches, in the layers' precision.

    Raises:
        MemoryError: the cache does not fit.
    """

    def __init__(self, model: DeviceModel, slots: int, length: int) -> None:
        self.model, self.device, self.slots = model, model.device, slots
        weights = model.patches
        layers, heads, channels = len(weights.layers), weights.heads, weights.width // weights.heads
        dtype = weights.dtype
        try:
            # A slot more, for the rows of a graph that are no file's.
            self._keys = torch.empty(layers, slots + 1, heads, channels, length, dtype=dtype, device=self.device)
            self._values = torch.empty(layers, slots + 1, heads, length, channels, dtype=dtype, device=self.device)
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            raise MemoryError(str(error)) from error
        self._rounds: dict[int, tuple[_Round, Replay]] = {}

    def features(self, patches: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """Features float32 [T, D] of new patches int16 [T, S]; all patches before them in their slots must have been
        given. Calls of no more patches than slots, as each round's are, run as a graph."""
        T = len(patches)
        if min(self.slots, MOST_ROWS) < T:
            return self._features(patches, slots, positions)
        rows = bucket_of(T)
        if rows not in self._rounds:
            room = _Round(rows, patches.shape[1], self.model.patches.width, self.device)
            room.slots.fill_(self.slots)
            with on_device(room.features):
                self._rounds[rows] = room, self.model.record(lambda: self._round(room))
        room, replay = self._rounds[rows]
        room.patches[:T], room.slots[:T], room.positions[:T] = patches, slots, positions
        room.slots[T:], room.positions[T:] = self.slots, 0
        with on_device(room.features):
            replay()
        return room.features[:T].clone()

    def _round(self, room: _Round) -> None:
        room.features.copy_(self._features(room.patches, room.slots, room.positions))

    def _features(self, patches: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        weights = self.model.patches

        def attend(layer: int, qkv: Tensor) -> Tensor:
            attended = cached_attention(qkv.float(), self._keys[layer], self._values[layer], slots, positions)
            return attended.to(weights.dtype)

        embeddings = patch_embed(patches, weights.embedding_rows, weights.embedding_bias)
        return self.model.patch_layers(embeddings + weights.wpe[positions], attend).float()

    def write(self, features: Tensor, writing: DecodeRequest, sampling: Sampling) -> DecodeResult:
        """Writes the patches behind `features` [N, D], without drafts."""
        if self.model.persistent is not None and len(features) <= PERSISTENT_ROWS:
            return self.model.persistent.write(features, writing, sampling)
        return self.model.graphed.write(features, writing, sampling)
