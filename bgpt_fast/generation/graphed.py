"""The byte decoder on a GPU for many patches: all bytes of a patch recorded as one CUDA graph.

Its products and attention are the library's, or such that a patch's bits depend on that patch alone. Nothing waits for
the GPU between bytes: tokens are chosen on it, and rows that have ended are carried along. Not yet run on a GPU; the
same functions run one by one on the CPU, where they are tested.

Shape letters: N patches, S bytes a patch, D width, H heads, d = D / H, V = 257.
"""

from __future__ import annotations

import math
import struct

import torch
from torch import Tensor
from torch.nn import functional as F

from bgpt_fast import _C
from bgpt_fast.config import EOP, VOCAB_SIZE
from bgpt_fast.device import Record, Replay, cuda_graph
from bgpt_fast.generation.device_layers import Attend, ByteWeights, DeviceLayers
from bgpt_fast.generation.sampling import Sampling
from bgpt_fast.generation.writing import DecodeRequest, DecodeResult
from bgpt_fast.kernels.cached_attention.op import cached_attention
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
        self.keys, self.values = cache.view(_cache_shape(weights, rows)).unbind(0)

    def fill(self, features: Tensor, writing: DecodeRequest, part: slice) -> None:
        count = len(features)
        self.features[:count].copy_(features)
        for to, values in ((self.given, writing.given), (self.room, writing.room)):
            to[:count].copy_(values[part])
        for to, plain in ((self.indices, writing.indices), (self.starts, writing.starts)):
            to[:count].copy_(torch.tensor(plain[part], dtype=torch.uint64).view(torch.int64))
        self.tokens.fill_(EOP)
        self.going.zero_()
        self.going[:count].fill_(1)


def _cache_shape(weights: ByteWeights, rows: int) -> tuple[int, ...]:
    """[keys and values, layers, N, H, S, d]."""
    heads = weights.heads
    return 2, len(weights.layers), rows, heads, weights.patch_size, weights.width // heads


class GraphedByteDecoder:
    """Writes any number of patches, MOST_ROWS at a time, filled up to the rows of a graph.

    Args:
        weights: on a GPU, or in tests on the CPU.
        record: how a graph is made; None means as a CUDA graph.
        batch_invariant: a patch's bits depend on that patch alone, not on how many are written with it.
    """

    def __init__(self, weights: ByteWeights, record: Record | None = None, *, batch_invariant: bool = False) -> None:
        self.weights = weights
        self._record = record or cuda_graph
        self.layers = DeviceLayers(weights, batch_invariant)
        self._cache = torch.empty(0, dtype=weights.dtype, device=weights.device)
        self._graphs: dict[int, tuple[_Room, Replay]] = {}

    def write(self, features: Tensor, writing: DecodeRequest, sampling: Sampling) -> DecodeResult:
        """Writes the patches behind `features` float32 [N, D], without drafts; waits once for each graph's result."""
        assert writing.drafts is None
        tokens: list[list[int]] = []
        counts: list[int] = []
        for first in range(0, len(features), MOST_ROWS):
            part = slice(first, min(first + MOST_ROWS, len(features)))
            count = part.stop - first
            room, replay = self._graph(bucket_of(count))
            room.fill(features[part], writing, part)
            room.sampling.copy_(_packed(sampling))
            with on_device(room.features):
                replay()
            tokens += room.tokens[:count].tolist()
            counts += room.counts[:count].tolist()
        return DecodeResult(tokens, counts)

    def _graph(self, rows: int) -> tuple[_Room, Replay]:
        if rows not in self._graphs:
            weights = self.weights
            size = math.prod(_cache_shape(weights, rows))
            if len(self._cache) < size:
                self._cache = torch.empty(size, dtype=weights.dtype, device=weights.device)
            # One cache for all graphs: what is in it is of one patch.
            room = _Room(weights, rows, self._cache[:size])
            with on_device(room.features):
                self._graphs[rows] = room, self._record(lambda: self._patch(room))
        return self._graphs[rows]

    def new_cache(self, rows: int) -> tuple[Tensor, Tensor]:
        """Keys and values of `rows` patches for `logits`, with anything in them."""
        weights = self.weights
        # As in the graphs, a multiple of 8 rows starts each layer on 16 bytes: to Triton, another alignment is another
        # compilation, whose sums might have another order.
        whole = _cache_shape(weights, -(-rows // LEAST_ROWS) * LEAST_ROWS)
        cache = torch.empty(whole, dtype=weights.dtype, device=weights.device)
        return cache[0, :, :rows], cache[1, :, :rows]

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

        if self.layers.batch_invariant:
            attend = self._attend_alone(keys, values, s)
        else:
            attend = self._attend(keys, values, s)
        return self.layers.linear(self.layers(total, attend), self.weights.head).float()

    def _attend(self, keys: Tensor, values: Tensor, s: int) -> Attend:
        def attend(layer: int, qkv: Tensor) -> Tensor:
            q, k, v = qkv.view(len(qkv), 3, self.weights.heads, -1).unbind(1)
            keys[layer, :, :, s], values[layer, :, :, s] = k, v
            seen = keys[layer, :, :, : s + 1], values[layer, :, :, : s + 1]
            return F.scaled_dot_product_attention(q[:, :, None], *seen).reshape(len(qkv), -1)

        return attend

    def _attend_alone(self, keys: Tensor, values: Tensor, s: int) -> Attend:
        # Nobody else reads the keys: the same memory as cached_attention has it, position by position along its rows.
        layers, N, heads, S, channels = keys.shape
        keys = keys.view(layers, N, heads, channels, S)
        slots = torch.arange(N, device=keys.device)
        positions = torch.full_like(slots, s)

        def attend(layer: int, qkv: Tensor) -> Tensor:
            return cached_attention(qkv.float(), keys[layer], values[layer], slots, positions).to(qkv.dtype)

        return attend

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
