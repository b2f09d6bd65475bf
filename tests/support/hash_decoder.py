"""A decoder that hashes instead of computing, for tests of what generation does around its decoder.

Each byte is a hash of the whole context, the random stream and the byte's offset, so that a wrong patch, slot,
position, prefix, stream or offset gives other bytes. Thousands of files take a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bgpt_fast.config import EOP
from bgpt_fast.generation.decoders.request import DecodeRequest, DecodeResult, PendingResult

_U64 = np.uint64
_START = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


@dataclass(frozen=True)
class HashModel:
    """What a `HashDecoder` generates.

    Args:
        end: of 997 choices, how many end the file.
        damaged: of 99,991 choices, how many are NaN.
        alphabet: number of different bytes; few make repeated bytes, and so right drafts, likely.
    """

    end: int = 12
    damaged: int = 0
    alphabet: int = 3

    def choose(self, draw: int) -> int | None:
        """The token of a random number; None where the logits are NaN."""
        if draw % 99991 < self.damaged:
            return None
        if draw % 997 < self.end:
            return EOP
        return (draw >> 32) % self.alphabet * 37 % 256


def mix(x: int) -> int:
    """SplitMix64: a hash of a 64-bit number."""
    x = (x + _START) & _MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
    return x ^ x >> 31


def context_hash(patches: Sequence[Sequence[int]]) -> int:
    """The hash of the patches of a document, from its first one on."""
    state = _START
    for patch in patches:
        state = mix(state ^ _patch_number(patch))
    return state


def draw(feature: int, tokens: Sequence[int], stream: int, offset: int, seed: int) -> int:
    """The random number that chooses the token after `tokens` in the patch after a context."""
    for token in tokens:
        feature = mix(feature ^ token)
    return mix(feature ^ mix(stream) ^ mix(offset + len(tokens)) ^ seed)


def _patch_number(patch: Sequence[int]) -> int:
    number = 0
    for token in patch:
        number = (number * 1099511628211 + token + 1) & _MASK
    return number


class HashDecoder:
    """Implements `Decoder` but for `logits`; `slots` and `length` as in the decoders, `S` the patch size.

    Args:
        model: what it generates.
        slots, length: of its cache of hashes, which begins with another content than any context has.
    """

    def __init__(self, model: HashModel, slots: int, length: int) -> None:
        self.model, self.device = model, torch.device("cpu")
        self.cache = np.full((slots, length), 7, _U64)
        self.rows: list[int] = []
        self.prefilled: list[int] = []

    def prefill(self, patches: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        self.prefilled.append(len(patches))
        assert (patches.dtype, slots.dtype, positions.dtype) == (torch.int16, torch.int64, torch.int64)
        tokens = patches.numpy()
        numbers = np.zeros(len(tokens), _U64)
        for s in range(tokens.shape[1]):
            numbers = numbers * _U64(1099511628211) + tokens[:, s].astype(_U64) + _U64(1)
        features = np.empty((len(tokens), 1), _U64)
        rows = zip(numbers.tolist(), slots.tolist(), positions.tolist(), strict=True)
        for t, (number, slot, position) in enumerate(rows):
            before = int(self.cache[slot, position - 1]) if position else _START
            self.cache[slot, position] = features[t, 0] = mix(before ^ number)
        return torch.from_numpy(features.view(np.int64))

    def write(self, request: DecodeRequest) -> DecodeResult:
        self.rows.append(len(request.prefix_tokens))
        prefix, max_tokens = request.prefix_tokens.numpy(), request.max_tokens.numpy()
        N, S = prefix.shape
        drafts = prefix if request.drafts is None else request.drafts.numpy()
        verify = np.zeros(N, bool) if request.verify is None else request.verify.numpy()
        state = request.features.numpy().view(_U64)[:, 0].copy()
        streams, offsets = _mix(request.rng_streams.numpy()), request.byte_offsets.numpy()
        tokens, counts, active = np.full((N, S), EOP, np.int16), np.zeros(N, np.int64), np.ones(N, bool)
        for s in range(S):
            numbers = _mix(state ^ streams ^ _mix(offsets + _U64(s)) ^ _U64(request.sampling.seed))
            damaged = numbers % _U64(99991) < _U64(self.model.damaged)
            ends = numbers % _U64(997) < _U64(self.model.end)
            values = (numbers >> _U64(32)) % _U64(self.model.alphabet) * _U64(37) % _U64(256)
            chosen = np.where(prefix[:, s] >= 0, prefix[:, s], np.where(ends, EOP, values.astype(np.int16)))
            tokens[active & ~damaged, s] = chosen[active & ~damaged]
            counts[active] = np.where(damaged, -1, s + 1)[active]
            state = _mix(state ^ chosen.astype(_U64))
            is_end = (prefix[:, s] < 0) & (chosen == EOP)
            # A verified row ends after its first wrong draft, or after the token that follows its last draft.
            active &= ~damaged & ~is_end & (s + 1 < max_tokens) & ~(verify & (chosen != drafts[:, s]))
        return DecodeResult(torch.from_numpy(tokens), torch.from_numpy(counts))

    def logits(self, features: Tensor, tokens: Tensor, count: int) -> Tensor:
        raise NotImplementedError


class LateHashDecoder(HashDecoder):
    """Implements `AsynchronousDecoder`: `log` has the order in which rounds begin and are waited for."""

    def __init__(self, model: HashModel, slots: int, length: int) -> None:
        super().__init__(model, slots, length)
        self.log: list[str] = []

    def begin(self, request: DecodeRequest) -> PendingResult:
        result = self.write(request)
        self.log.append("begin")

        def wait() -> DecodeResult:
            self.log.append("wait")
            return result

        return PendingResult(result.tokens.clone(), wait)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + _U64(_START)
    x = (x ^ x >> _U64(30)) * _U64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> _U64(27)) * _U64(0x94D049BB133111EB)
    return x ^ x >> _U64(31)
