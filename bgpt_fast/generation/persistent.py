"""The byte decoder on a GPU for few patches: one launch of one kernel writes them. Not yet run on a GPU.

Shape letters: N patches, S bytes a patch, D width, V = 257.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bgpt_fast import _C
from bgpt_fast.config import EOP
from bgpt_fast.generation.device_layers import ByteWeights
from bgpt_fast.generation.sampling import Sampling
from bgpt_fast.generation.writing import DecodeRequest, DecodeResult

MOST_ROWS: int = _C.persistent_rows
"""Patches that a launch takes at most."""


class PersistentByteDecoder:
    """Writes up to MOST_ROWS patches at a time; see docs/kernels.md.

    A patch's bits depend on that patch alone: not on what shares the launch, its row, or the GPU's number of
    processors.

    Args:
        weights: on a GPU.

    Raises:
        ValueError: the kernel does not take a model of this shape.
    """

    def __init__(self, weights: ByteWeights) -> None:
        if not self.takes(weights):
            raise ValueError(f"byte_decode: weights: expected a shape that the kernel takes, got {shape_of(weights)}")
        self.weights = weights
        self._addresses = [tensor.data_ptr() for tensor in weights.tensors()]
        self._arrived = torch.zeros(1, dtype=torch.int32, device=weights.device)
        self._room = torch.empty(0, device=weights.device)

    @staticmethod
    def takes(weights: ByteWeights) -> bool:
        """Whether the kernel takes a model of this shape: widths are multiples of 8, layers and widths no more than it
        has room for; it takes the paper's model."""
        return _C.persistent_takes(shape_of(weights))

    def write(self, features: Tensor, writing: DecodeRequest, sampling: Sampling) -> DecodeResult:
        """Writes the patches behind `features` float32 [N, D], without drafts; waits once, for the result."""
        assert writing.drafts is None
        parts = [
            self._write(features[first : first + MOST_ROWS], writing, sampling, first)
            for first in range(0, len(features), MOST_ROWS)
        ]
        return DecodeResult(
            [row for tokens, _ in parts for row in tokens.tolist()],
            [count for _, counts in parts for count in counts.tolist()],
        )

    def _write(self, features: Tensor, writing: DecodeRequest, sampling: Sampling, first: int) -> tuple[Tensor, Tensor]:
        device, N, S = self.weights.device, len(features), self.weights.patch_size
        part = slice(first, first + N)
        given, room = writing.given[part].to(device), writing.room[part].to(device)
        # Unsigned numbers of 64 bits, whose arithmetic torch has for a few operations only.
        places = [torch.tensor(values[part], dtype=torch.uint64) for values in (writing.indices, writing.starts)]
        indices, starts = (numbers.view(torch.int64).to(device) for numbers in places)
        tokens = torch.full((N, S), EOP, dtype=torch.int16, device=device)
        counts = torch.empty(N, dtype=torch.int64, device=device)
        size = _C.persistent_room(shape_of(self.weights), N)
        if len(self._room) < size:
            self._room = torch.empty(size, device=device)
        features = features.contiguous()
        with torch.cuda.device(device):
            _C.byte_decode_cuda(
                shape_of(self.weights),
                self.weights.eps,
                int(self.weights.dtype == torch.bfloat16),
                self._addresses,
                [features.data_ptr(), N, given.data_ptr(), room.data_ptr(), indices.data_ptr(), starts.data_ptr()],
                (sampling.temperature, min(sampling.top_k, EOP + 1), sampling.top_p, sampling.seed),
                [tokens.data_ptr(), counts.data_ptr(), self._room.data_ptr(), self._arrived.data_ptr()],
                torch.cuda.current_stream(device).cuda_stream,
            )
        return tokens, counts


def shape_of(weights: ByteWeights) -> tuple[int, int, int, int, int]:
    """Width, heads, hidden width, bytes a patch and layers."""
    return weights.width, weights.heads, weights.hidden, weights.patch_size, len(weights.layers)
