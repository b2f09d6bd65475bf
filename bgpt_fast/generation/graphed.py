"""The byte decoder on a GPU for many patches: the library's products, all bytes of a patch recorded as one CUDA graph.

Nothing waits for the GPU between bytes: tokens are chosen on it, and rows that have ended are carried along. Not yet
run on a GPU; the same functions run one by one on the CPU, where they are tested.

Shape letters: N patches, S bytes a patch, D width, H heads, d = D / H, V = 257.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor
from torch.nn import functional as F

from bgpt_fast import _C
from bgpt_fast.config import EOP, VOCAB_SIZE
from bgpt_fast.device import Record, Replay, cuda_graph
from bgpt_fast.generation.device_layers import ByteWeights, DeviceLayers
from bgpt_fast.generation.sampling import Sampling
from bgpt_fast.generation.writing import Writing, Written
from bgpt_fast.kernels.common.launch import on_device

LEAST_ROWS, MOST_ROWS = 8, 4096
"""Rows of the smallest and the largest graph; the others are powers of two between them."""


def bucket_of(count: int) -> int:
    """The rows of the graph that writes so many patches at once."""
    return min(MOST_ROWS, max(LEAST_ROWS, 1 << (count - 1).bit_length()))


class _Room:
    """What a graph reads and writes: the same memory at each replay."""

    def __init__(self, weights: ByteWeights, rows: int, cache: Tensor) -> None:
        device, S = weights.device, weights.patch_size

        def numbers(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.features = torch.zeros(rows, weights.width, device=device)
        self.given, self.room = numbers(rows, S, dtype=torch.int16), numbers(rows)
        # Unsigned numbers, of which no arithmetic is asked here.
        self.indices, self.starts, self.sampling = numbers(rows), numbers(rows), numbers(4)
        self.tokens, self.counts, self.next = numbers(rows, S, dtype=torch.int16), numbers(rows), numbers(rows)
        self.going = numbers(rows, dtype=torch.uint8)
        shape = (2, len(weights.layers), rows, weights.heads, S, -1)
        self.keys, self.values = cache.view(shape).unbind(0)

    def fill(self, features: Tensor, writing: Writing, part: slice) -> None:
        count = len(features)
        self.features[:count].copy_(features)
        for to, values in ((self.given, writing.given), (self.room, writing.room)):
            to[:count].copy_(values[part], non_blocking=True)
        for to, plain in ((self.indices, writing.indices), (self.starts, writing.starts)):
            to[:count].copy_(torch.tensor(plain[part], dtype=torch.uint64).view(torch.int64), non_blocking=True)
        self.tokens.fill_(EOP)
        self.going.zero_()
        self.going[:count].fill_(1)


class GraphedByteDecoder:
    """Writes any number of patches, MOST_ROWS at a time, filled up to the rows of a graph.

    Args:
        weights: on a GPU, or in tests on the CPU.
        record: how a graph is made; None means as a CUDA graph.
    """

    def __init__(self, weights: ByteWeights, record: Record | None = None) -> None:
        self.weights = weights
        self._record = record or cuda_graph
        self.layers = DeviceLayers(weights)
        self._cache = torch.empty(0, dtype=weights.dtype, device=weights.device)
        self._graphs: dict[int, tuple[_Room, Replay]] = {}

    def write(self, features: Tensor, writing: Writing, sampling: Sampling) -> Written:
        """Writes the patches behind `features` float32 [N, D], without drafts; waits once for each graph's result."""
        assert writing.drafts is None
        tokens: list[list[int]] = []
        counts: list[int] = []
        for first in range(0, len(features), MOST_ROWS):
            part = slice(first, min(first + MOST_ROWS, len(features)))
            count = part.stop - first
            room, replay = self._graph(bucket_of(count))
            room.fill(features[part], writing, part)
            room.sampling.copy_(_packed(sampling), non_blocking=True)
            with on_device(room.features):
                replay()
            tokens += room.tokens[:count].tolist()
            counts += room.counts[:count].tolist()
        return Written(tokens, counts)

    def _graph(self, rows: int) -> tuple[_Room, Replay]:
        if rows not in self._graphs:
            weights = self.weights
            size = 2 * len(weights.layers) * rows * weights.patch_size * weights.width
            if len(self._cache) < size:
                self._cache = torch.empty(size, dtype=weights.dtype, device=weights.device)
            # One cache for all graphs: what is in it is of one patch.
            room = _Room(weights, rows, self._cache[:size])
            with on_device(room.features):
                self._graphs[rows] = room, self._record(lambda: self._patch(room))
        return self._graphs[rows]

    def _patch(self, room: _Room) -> None:
        """All S bytes of the patches of a room, in memory that stays where it is."""
        for s in range(self.weights.patch_size):
            inputs = room.features if s == 0 else F.embedding(room.next, self.weights.wte)
            self._accept(self.logits(inputs + self.weights.wpe[s], room.keys, room.values, s), room, s)

    def logits(self, total: Tensor, keys: Tensor, values: Tensor, s: int) -> Tensor:
        """Logits float32 [N, V] at position s.

        Args:
            total: float32 [N, D], embeddings and positions.
            keys, values: [layers, N, H, S, d]; written at s, read up to it.
            s: the position.
        """

        def attend(layer: int, qkv: Tensor) -> Tensor:
            q, k, v = qkv.view(len(qkv), 3, self.weights.heads, -1).unbind(1)
            keys[layer, :, :, s], values[layer, :, :, s] = k, v
            seen = keys[layer, :, :, : s + 1], values[layer, :, :, : s + 1]
            return F.scaled_dot_product_attention(q[:, :, None], *seen).reshape(len(qkv), -1)

        return F.linear(self.layers(total, attend), self.weights.head).float()

    def _accept(self, logits: Tensor, room: _Room, s: int) -> None:
        """Chooses the bytes at s and notes what follows from them."""
        assert logits.shape[1] == VOCAB_SIZE
        assert logits.is_contiguous()
        tensors = (room.given, room.room, room.indices, room.starts, room.sampling)
        results = (room.tokens, room.counts, room.next, room.going)
        addresses = [tensor.data_ptr() for tensor in (logits, *tensors, *results)]
        sizes = (len(logits), self.weights.patch_size, s)
        if logits.device.type == "cuda":
            with on_device(logits):
                _C.byte_accept_cuda(sizes, addresses, torch.cuda.current_stream(logits.device).cuda_stream)
        else:
            _C.byte_accept(sizes, addresses)


def _packed(sampling: Sampling) -> Tensor:
    """As the kernel has it: temperature, top_k, top_p and seed, 8 bytes each."""
    fields = struct.pack("<dqdQ", sampling.temperature, min(sampling.top_k, VOCAB_SIZE), sampling.top_p, sampling.seed)
    return torch.frombuffer(bytearray(fields), dtype=torch.int64)
