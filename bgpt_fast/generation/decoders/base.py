"""The interface of all decoders, and the choice of the decoder for a device.

Shape letters: T patches of prefill, N patches to decode, S bytes a patch, D width, V tokens.
"""

from __future__ import annotations

import threading
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from bgpt_fast.device import Record, Replay
from bgpt_fast.generation.decoders.cpu import CpuDecoder, CpuWeights, fingerprint
from bgpt_fast.generation.decoders.cuda import CudaDecoder, CudaWeights, has_cuda_decoder
from bgpt_fast.generation.decoders.cuda_layers import CUDA_PRECISIONS
from bgpt_fast.generation.decoders.eager import EagerDecoder
from bgpt_fast.generation.decoders.request import DecodeRequest, DecodeResult, PendingResult
from bgpt_fast.kernels.byte_decode.packed import PRECISIONS
from bgpt_fast.model import BGPT


class Decoder(Protocol):
    """A model's patch decoder with a key-value cache, and its byte decoder."""

    device: torch.device

    def prefill(self, patches: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """Adds patches to the cache and returns their patch-decoder features.

        Args:
            patches: int16 [T, S] on the device.
            slots: int64 [T], the sequence of each patch.
            positions: int64 [T], the position of each patch in its sequence. All positions before it must be in the
                cache already, or in this call in ascending order.

        Returns:
            float32 [T, D].
        """

    def write(self, request: DecodeRequest) -> DecodeResult:
        """Decodes the patch that follows each of the request's features."""

    def logits(self, features: Tensor, tokens: Tensor, count: int) -> Tensor:
        """Logits of the first `count` bytes of patches, teacher-forced.

        Args:
            features: float32 [N, D], the feature of the patch before each one.
            tokens: int16 [N, S]; only the first `count` - 1 are read.
            count: 1 … S.

        Returns:
            float32 [N, S, V]; NaN from `count` on.

        Raises:
            FloatingPointError: NaN or infinite logits (CPU and CUDA decoders only).
        """


@runtime_checkable
class AsynchronousDecoder(Decoder, Protocol):
    """A decoder whose device computes while the host goes on, in the order in which work was submitted."""

    def begin(self, request: DecodeRequest) -> PendingResult:
        """As `write`, without waiting for the result."""


class WeightCache:
    """Weights that one call of `make_decoder` prepared, kept for reuse by the next call.

    A copy or a pickle of it is empty.

    Attributes:
        lock: held by `make_decoder`, so that threads can share a cache.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._cpu: tuple[tuple[object, ...], list[nn.Parameter], CpuWeights] | None = None
        self._cuda: CudaWeights | None = None

    def __reduce__(self) -> tuple[type[WeightCache], tuple[()]]:
        return WeightCache, ()

    def for_cpu(self, model: BGPT, precision: str) -> CpuWeights:
        """The model's weights as they are now, packed again only if they have changed."""
        parameters = [*model.parameters()]
        key = precision, *fingerprint(parameters)
        if self._cpu is None or self._cpu[0] != key:
            self._cpu = None  # frees the old weights before the new ones are allocated
            # The parameters are referenced too, so that no new tensor can get the address of one of them.
            self._cpu = key, parameters, CpuWeights(model, precision)
        return self._cpu[2]

    def for_cuda(self, model: BGPT, precision: str, batch_invariant: bool, record: Record | None) -> CudaWeights:
        """The model's weights as they are now, copied over the last call's, so that its graphs can be replayed.

        Those of a decoder that still exists, which another thread or an iterator that goes on uses, are not replaced.
        """
        last, key = self._cuda, (precision, batch_invariant, device_of(model))
        if last is not None and (last.precision, last.batch_invariant, last.device) == key:
            if last.users:
                return CudaWeights(model, precision, record, batch_invariant=batch_invariant)
            last.reload(model)
            return last
        self._cuda = last = None
        self._cuda = CudaWeights(model, precision, record, batch_invariant=batch_invariant)
        return self._cuda


def make_decoder(
    model: BGPT,
    slots: int,
    length: int,
    *,
    precision: str | None = None,
    batch_invariant: bool = False,
    use_graphs: bool = True,
    cache: WeightCache | None = None,
) -> Decoder:
    """Makes the decoder of the model's device, with the model's weights as they are now.

    Args:
        model: on the device to decode on.
        slots: sequences in the key-value cache.
        length: patches a sequence; rounded up by `cache_length`.
        precision: precision of linear layers; None means `default_precision`.
        batch_invariant: a file's bits depend only on that file. Always so on the CPU.
        use_graphs: record CUDA graphs, which is worthwhile if many calls follow.
        cache: stores the prepared weights for reuse by the next call: on the CPU if the model's weights have not
            changed, on a GPU by copying the new weights over them.

    Raises:
        ValueError: the device does not support the precision or batch invariance.
        MemoryError, torch's RuntimeError: no memory for the weights or the key-value cache; see `named_out_of_memory`.
    """
    device, length = device_of(model), cache_length(length)
    offered: tuple[str, ...] = ("float32",)
    if has_engine(device):
        offered = PRECISIONS if device.type == "cpu" else tuple(CUDA_PRECISIONS)
    precision = precision or default_precision(model)
    where = f"on {device}"
    if device.type == "cuda" and not has_engine(device):
        where += " with an extension built without nvcc"
    if precision not in offered:
        raise ValueError(f"precision: expected None or one of {offered} {where}, got {precision!r}")
    if batch_invariant and not has_engine(device):
        raise ValueError(f"batch_invariant: expected None or False {where}, got True")
    if not has_engine(device):
        return EagerDecoder(model, slots, length)
    if device.type == "cpu" and cache is None:  # no fingerprint of the weights is needed
        return CpuDecoder(CpuWeights(model, precision), slots, length)
    cache = cache or WeightCache()
    with cache.lock:
        if device.type == "cpu":
            return CpuDecoder(cache.for_cpu(model, precision), slots, length)
        record = None if use_graphs else _run_directly
        return CudaDecoder(cache.for_cuda(model, precision, batch_invariant, record), slots, length)


def has_engine(device: torch.device) -> bool:
    """Whether the device has its own decoder, with batch invariance and precisions below float32."""
    return device.type == "cpu" or has_cuda_decoder(device)


def device_of(model: BGPT) -> torch.device:
    """The device of the model's weights."""
    return model.byte_level_decoder.base.lm_head.weight.device


def default_precision(model: BGPT) -> str:
    """bfloat16 for a bfloat16 model where the device's decoder has it, otherwise float32."""
    is_bfloat16 = model.byte_level_decoder.base.lm_head.weight.dtype == torch.bfloat16
    return "bfloat16" if is_bfloat16 and has_engine(device_of(model)) else "float32"


def cache_length(patches: int) -> int:
    """Positions of a cache for this many patches, rounded up to a multiple of 16 to align its rows to cache lines."""
    return max(1, -(-patches // 16)) * 16


def memory_overhead(device: torch.device) -> tuple[int, int]:
    """Memory of the device's decoder in addition to its sequences' caches: extra slots, and bytes for each sequence and
    unit of width."""
    return (CudaDecoder.EXTRA_SLOTS, CudaDecoder.GRAPH_BYTES) if has_cuda_decoder(device) else (0, 0)


def _run_directly(step: Replay) -> Replay:
    """A `Record` that records nothing."""
    return step
