"""The decoder for NVIDIA GPUs; its functions also run one by one on the CPU, where they are tested.

The patch decoder runs its layers over a key-value cache, in CUDA graphs, whether the patches are those of a step or of
new prompts. The byte decoder has two engines:

- for few patches the persistent kernel of the op `byte_decode`, one launch for all bytes;
- for many patches `GraphedByteDecoder`: all bytes of a patch in one CUDA graph, with library matrix products.
  Bytes are chosen on the GPU, without synchronising with the host; rows that have ended are still computed.

With `batch_invariant` the graphs serve every number of patches, with products in which a row's bits
depend only on that row.

Graphs are recorded for the numbers of rows of `graph_rows`, and read and write the same memory at each replay
(GraphBuffers, PatchBuffers). They stay valid from call to call because new weights are copied over the old ones, and a
cache of up to REUSABLE_CACHE_BYTES stays with its graphs.

Shape letters: T tokens, N patches, S bytes a patch, D width, H heads, d = D / H, L positions a slot, V tokens.
"""

from __future__ import annotations

import math
import threading
import warnings
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bgpt_fast import _C
from bgpt_fast.device import HostCopies, Record, Replay, graph_recorder
from bgpt_fast.generation.decoders.cuda_layers import Attend, ByteWeights, CudaLayers, PatchWeights
from bgpt_fast.generation.decoders.request import DecodeRequest, DecodeResult, PendingResult
from bgpt_fast.kernels.byte_decode.op import byte_decode, byte_decode_accept, persistent_supports
from bgpt_fast.kernels.byte_decode.sampling import Sampling
from bgpt_fast.kernels.cached_attention.op import cached_attention
from bgpt_fast.kernels.common.launch import on_device
from bgpt_fast.kernels.patch_embed.op import patch_embed
from bgpt_fast.model import BGPT

PERSISTENT_ROWS = 24
"""Patches up to which the persistent kernel is predicted to be faster than the graphs (not yet measured on a GPU):
docs/kernels.md has the estimate, `make gpu-check` measures the crossover."""

MIN_GRAPH_ROWS, MAX_GRAPH_ROWS = 8, 4096
"""Rows of the smallest and the largest graph."""

REUSABLE_CACHE_BYTES = 2 << 30
"""Bytes of the largest key-value cache of patches that is kept, with its graphs, for the next call."""


def graph_rows(count: int) -> int:
    """Rows of the graph that decodes `count` patches: multiples of 8 up to 64, then four for each power of two, so that
    at most a fifth of them is padding."""
    step = max(MIN_GRAPH_ROWS, (1 << (count - 1).bit_length()) // 8)
    return min(MAX_GRAPH_ROWS, -(-count // step) * step)


def has_cuda_decoder(device: torch.device) -> bool:
    """Whether the device is a GPU and the extension was built with nvcc; warns if only the latter is not the case."""
    if device.type == "cuda" and not _C.with_cuda:
        text = "bgpt_fast was built without CUDA, so that the GPU runs the slower eager decoder; build it where nvcc is"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    return device.type == "cuda" and _C.with_cuda


class CudaDecoder:
    """A model on a GPU with a cache for `slots` sequences of up to `length` patches, in the layers' dtype.

    Implements `AsynchronousDecoder`.
    """

    EXTRA_SLOTS = 1
    """Extra cache slots, which belong to no sequence: the unused rows of a graph write there."""
    GRAPH_BYTES = 160
    """Bytes of the graphs' buffers for each sequence and unit of width; a graph may have twice as many rows."""

    def __init__(self, weights: CudaWeights, slots: int, length: int) -> None:
        self.weights, self.device = weights, weights.device
        self._cache = weights.patch_cache(slots, length)
        weights.users.add(self)

    def prefill(self, patches: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """As `Decoder.prefill`."""
        parts = zip(*(values.split(MAX_GRAPH_ROWS) for values in (patches, slots, positions)), strict=True)
        with self.weights.lock:
            features = [self._cache.prefill(*part) for part in parts]
        return features[0] if len(features) == 1 else torch.cat(features)

    def write(self, request: DecodeRequest) -> DecodeResult:
        """As `Decoder.write`, without drafts."""
        return self.begin(request).wait()

    def begin(self, request: DecodeRequest) -> PendingResult:
        """As `AsynchronousDecoder.begin`, without drafts."""
        assert request.drafts is None
        N = len(request.features)
        if not self.weights.has_persistent_kernel or N > PERSISTENT_ROWS:
            with self.weights.lock:
                return self.weights.graphed.begin(request)
        return begin_persistent(self.weights.byte, request)

    def logits(self, features: Tensor, tokens: Tensor, count: int) -> Tensor:
        """As `Decoder.logits`."""
        logits = self.weights.graphed.logits(features, tokens, count)
        if not bool(logits[:, :count].isfinite().all()):
            raise FloatingPointError("NaN or infinite logits; the model's weights are damaged or too large")
        return logits


class PatchCache:
    """The keys and values of patches, and the graphs of the patch decoder that read and write them.

    Args:
        weights: the patch decoder's.
        layers: the same.
        slots: sequences.
        length: patches a sequence.
        record: how a step is recorded.
    """

    def __init__(self, weights: PatchWeights, layers: CudaLayers, slots: int, length: int, record: Record) -> None:
        self.slots, self.length = slots, length
        self._weights, self._layers, self._record = weights, layers, record
        heads, channels = weights.heads, weights.width // weights.heads
        shape, dtype, device = (
            (len(weights.layers), slots + CudaDecoder.EXTRA_SLOTS, heads),
            weights.dtype,
            weights.device,
        )
        self._keys = torch.empty(*shape, channels, length, dtype=dtype, device=device)
        self._values = torch.empty(*shape, length, channels, dtype=dtype, device=device)
        self._graphs: dict[int, tuple[PatchBuffers, Replay]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values."""
        return self._keys.nbytes + self._values.nbytes

    def prefill(self, patches: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """As `Decoder.prefill`, for at most MAX_GRAPH_ROWS patches."""
        T = len(patches)
        if T == 0:
            return torch.empty(0, self._weights.width, device=patches.device)
        rows = graph_rows(T)
        if rows not in self._graphs:
            new = PatchBuffers(rows, patches.shape[1], self._weights.width, self._weights.device)
            new.slots.fill_(self.slots)
            with on_device(new.features):
                self._graphs[rows] = new, self._record(lambda: self._features(new))
        buffers, replay = self._graphs[rows]
        buffers.patches[:T], buffers.slots[:T], buffers.positions[:T] = patches, slots, positions
        buffers.slots[T:], buffers.positions[T:] = self.slots, 0
        with on_device(buffers.features):
            replay()
        return buffers.features[:T].clone()

    def _features(self, buffers: PatchBuffers) -> None:
        weights, positions = self._weights, buffers.positions

        def attend(layer: int, qkv: Tensor) -> Tensor:
            return cached_attention(qkv, self._keys[layer], self._values[layer], buffers.slots, positions)

        embeddings = patch_embed(buffers.patches, weights.embedding_rows, weights.embedding_bias)
        buffers.features.copy_(self._layers(embeddings + weights.wpe[positions], attend))


class CudaWeights:
    """A copy of a model's weights for the CUDA decoder, and the graphs that read it.

    Args:
        model: on a GPU, or in tests on the CPU, where there is no persistent kernel.
        precision: one of CUDA_PRECISIONS.
        record: how steps are recorded; None means as CUDA graphs.
        batch_invariant: a file's bits depend only on that file.

    Attributes:
        users: the decoders that read it and still exist.
        lock: held while a graph is recorded, and from filling a graph's memory to copying its result.
    """

    def __init__(
        self, model: BGPT, precision: str, record: Record | None = None, *, batch_invariant: bool = False
    ) -> None:
        self.precision, self.batch_invariant = precision, batch_invariant
        self.users: weakref.WeakSet[CudaDecoder] = weakref.WeakSet()
        self.lock = threading.Lock()
        self.patch, self.byte = PatchWeights(model, precision), ByteWeights(model, precision)
        self.device = self.byte.device
        self.patch_layers = CudaLayers(self.patch, batch_invariant)
        self.record = record or graph_recorder()
        self._reusable: PatchCache | None = None
        self.graphed = GraphedByteDecoder(self.byte, self.record, batch_invariant=batch_invariant)
        self.has_persistent_kernel = (
            has_cuda_decoder(self.device) and not batch_invariant and persistent_supports(self.byte)
        )

    def patch_cache(self, slots: int, length: int) -> PatchCache:
        """A cache for at least `slots` sequences of `length` patches: the last one, if it is large enough and free."""
        last = self._reusable
        if last is not None and not self.users and last.slots >= slots and last.length >= length:
            return last
        if not self.users:
            self._reusable = last = None  # frees the old cache before the new one is allocated
        cache = PatchCache(self.patch, self.patch_layers, slots, length, self.record)
        if not self.users and cache.nbytes <= REUSABLE_CACHE_BYTES:
            self._reusable = cache
        return cache

    def reload(self, model: BGPT) -> None:
        """Copies the model's weights over the old ones, so that recorded graphs read the new ones."""
        for weights, kind in ((self.patch, PatchWeights), (self.byte, ByteWeights)):
            for target, tensor in zip(weights.tensors(), kind(model, self.precision).tensors(), strict=True):
                target.copy_(tensor)
        self.patch_layers.reload()
        self.graphed.layers.reload()


def begin_persistent(weights: ByteWeights, request: DecodeRequest) -> PendingResult:
    """As `AsynchronousDecoder.begin`, by the persistent kernel."""
    features, prefix, max_tokens, streams, offsets = (values.to(weights.device) for values in request[:5])
    decoded = byte_decode(weights, features, prefix, max_tokens, streams, offsets, request.sampling)
    return _pending([HostCopies([decoded.tokens, decoded.counts])])


def _pending(copies: Sequence[HostCopies]) -> PendingResult:
    """Of the tokens and counts of the parts of a request."""

    def wait() -> DecodeResult:
        tokens, counts = zip(*(copy.wait() for copy in copies), strict=True)
        return DecodeResult(torch.cat(tokens), torch.cat(counts))

    tokens = [copy.there[0] for copy in copies]
    return PendingResult(tokens[0] if len(tokens) == 1 else torch.cat(tokens), wait)


class PatchBuffers:
    """The memory that a graph of the patch decoder reads and writes: one patch for each row."""

    def __init__(self, rows: int, patch_size: int, width: int, device: torch.device) -> None:
        self.patches = torch.zeros(rows, patch_size, dtype=torch.int16, device=device)
        self.slots, self.positions = (torch.zeros(rows, dtype=torch.int64, device=device) for _ in range(2))
        self.features = torch.zeros(rows, width, device=device)


class GraphBuffers:
    """The memory that a graph of the byte decoder reads and writes."""

    def __init__(self, weights: ByteWeights, rows: int, cache: Tensor) -> None:
        device, S = weights.device, weights.patch_size

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.fill_token = weights.fill
        self.features = torch.zeros(rows, weights.width, device=device)
        self.prefix_tokens, self.tokens = zeros(rows, S, dtype=torch.int16), zeros(rows, S, dtype=torch.int16)
        # rng_streams and byte_offsets are the bits of unsigned numbers.
        self.max_tokens, self.rng_streams, self.byte_offsets, self.sampling = (*(zeros(rows) for _ in "abc"), zeros(4))
        self.counts, self.next_tokens = zeros(rows), zeros(rows)
        self.active = zeros(rows, dtype=torch.uint8)
        self.keys, self.values = cache.view(_cache_shape(weights, rows)).unbind(0)
        self._last_sampling: Sampling | None = None

    def fill(self, request: DecodeRequest, rows: slice) -> None:
        """Copies some rows of a request in; the graph's other rows are inactive."""
        for target, values in (
            (self.features, request.features),
            (self.prefix_tokens, request.prefix_tokens),
            (self.max_tokens, request.max_tokens),
            (self.rng_streams, request.rng_streams.view(torch.int64)),
            (self.byte_offsets, request.byte_offsets.view(torch.int64)),
        ):
            target[: rows.stop - rows.start].copy_(values[rows])
        if request.sampling != self._last_sampling:
            self.sampling.copy_(request.sampling.to_tensor())
            self._last_sampling = request.sampling
        self.tokens.fill_(self.fill_token)
        self.active.zero_()
        self.active[: rows.stop - rows.start].fill_(1)


def _cache_shape(weights: ByteWeights, rows: int) -> tuple[int, ...]:
    """[keys and values, layers, N, H, S, d]."""
    heads = weights.heads
    return 2, len(weights.layers), rows, heads, weights.patch_size, weights.width // heads


class GraphedByteDecoder:
    """The byte decoder as CUDA graphs, up to MAX_GRAPH_ROWS patches each.

    Args:
        weights: on a GPU, or in tests on the CPU.
        record: how a step is recorded; None means as a CUDA graph.
        batch_invariant: a patch's bits depend only on that patch, not on how many are decoded with it.
    """

    def __init__(self, weights: ByteWeights, record: Record | None = None, *, batch_invariant: bool = False) -> None:
        self.weights = weights
        self._record = record or graph_recorder()
        self.layers = CudaLayers(weights, batch_invariant)
        self._cache = torch.empty(0, dtype=weights.dtype, device=weights.device)
        self._graphs: dict[int, tuple[GraphBuffers, Replay]] = {}

    def write(self, request: DecodeRequest) -> DecodeResult:
        """As `Decoder.write`, without drafts."""
        return self.begin(request).wait()

    def begin(self, request: DecodeRequest) -> PendingResult:
        """As `AsynchronousDecoder.begin`, without drafts."""
        copies = []
        for first in range(0, len(request.features), MAX_GRAPH_ROWS):
            rows = slice(first, min(first + MAX_GRAPH_ROWS, len(request.features)))
            count = rows.stop - rows.start
            buffers, replay = self._graph(graph_rows(count))
            buffers.fill(request, rows)
            with on_device(buffers.features):
                replay()
            copies.append(HostCopies([buffers.tokens[:count], buffers.counts[:count]]))
        return _pending(copies)

    def logits(self, features: Tensor, tokens: Tensor, count: int) -> Tensor:
        """As `Decoder.logits`, but NaN and infinite logits raise no error."""
        weights, (N, S) = self.weights, tokens.shape
        logits = features.new_full((N, S, weights.vocab_size), torch.nan)
        # As in the graphs, a multiple of 8 rows aligns each layer to 16 bytes: Triton compiles another kernel for
        # another alignment, whose sums might have another order.
        shape = _cache_shape(weights, -(-N // MIN_GRAPH_ROWS) * MIN_GRAPH_ROWS)
        keys, values = torch.empty(shape, dtype=weights.dtype, device=weights.device)[:, :, :N]
        for s in range(count):
            inputs = features if s == 0 else F.embedding(tokens[:, s - 1].long(), weights.wte)
            logits[:, s] = self.step(inputs + weights.wpe[s], keys, values, s)
        return logits

    def step(self, residual: Tensor, keys: Tensor, values: Tensor, s: int) -> Tensor:
        """Logits float32 [N, V] at position s.

        Args:
            residual: float32 [N, D], embeddings, positions included.
            keys, values: [layers, N, H, S, d]; written at s, read at 0 … s.
            s: the position.
        """
        return self.layers.logits(self.layers(residual, self._attention(keys, values, s)), self.weights.head)

    def _graph(self, rows: int) -> tuple[GraphBuffers, Replay]:
        if rows not in self._graphs:
            weights = self.weights
            size = math.prod(_cache_shape(weights, rows))
            if len(self._cache) < size:
                self._cache = torch.empty(size, dtype=weights.dtype, device=weights.device)
            # All graphs share one cache: its content is used within one patch only.
            buffers = GraphBuffers(weights, rows, self._cache[:size])
            with on_device(buffers.features):
                self._graphs[rows] = buffers, self._record(lambda: self._decode(buffers))
        return self._graphs[rows]

    def _decode(self, buffers: GraphBuffers) -> None:
        """All S bytes of the buffers' patches."""
        for s in range(self.weights.patch_size):
            inputs = buffers.features if s == 0 else F.embedding(buffers.next_tokens, self.weights.wte)
            self._accept(self.step(inputs + self.weights.wpe[s], buffers.keys, buffers.values, s), buffers, s)

    def _accept(self, logits: Tensor, buffers: GraphBuffers, s: int) -> None:
        """Chooses the bytes at s."""
        b = buffers
        inputs = b.prefix_tokens, b.max_tokens, b.rng_streams, b.byte_offsets, b.sampling
        byte_decode_accept(logits, *inputs, b.tokens, b.counts, b.next_tokens, b.active, s, self.weights.eop)

    def _attention(self, keys: Tensor, values: Tensor, s: int) -> Attend:
        # Only this function reads the keys, so they can have the layout of cached_attention, [.., d, S].
        layers, N, heads, S, channels = keys.shape
        keys = keys.view(layers, N, heads, channels, S)
        slots = torch.arange(N, device=keys.device)
        positions = torch.full_like(slots, s)

        def attend(layer: int, qkv: Tensor) -> Tensor:
            return cached_attention(qkv, keys[layer], values[layer], slots, positions, distinct_slots=True)

        return attend
