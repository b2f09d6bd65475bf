"""Bits per byte, in the two forms that are in use."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bgpt_fast.config import EOP


class BitsPerByte:
    """Adds up negative log-likelihoods over batches; both forms are exact whatever the batches' sizes.

    `per_position` is the released training loss in bits: the mean over all S positions of every target patch, `<eop>`
    padding and end-of-file patches included. `per_byte` is what a compressor would pay: all the bits, those of padding
    and end of file too, over the real bytes alone. The first looks better the more padding there is.

    Source: arXiv 2402.19155, section 3, and the released code for `per_position`.
    """

    def __init__(self) -> None:
        self.nats = 0.0
        self.positions = 0
        self.bytes = 0

    def update(self, nats: Tensor, patches: Tensor) -> None:
        """Adds one batch.

        Args:
            nats: float [T, S], negative log-likelihood of each position.
            patches: int [T, S], the target patches, values 0…256.

        Raises:
            ValueError: the shapes differ.
        """
        if nats.shape != patches.shape:
            raise ValueError(
                f"BitsPerByte: expected nats and patches of one shape, got {tuple(nats.shape)} "
                f"and {tuple(patches.shape)}"
            )
        self.add(float(nats.detach().sum(dtype=torch.float64)), nats.numel(), int((patches != EOP).sum()))

    def add(self, nats: float, positions: int, num_bytes: int) -> None:
        """Adds sums that are known already: nats, positions they are of, real bytes among these."""
        self.nats += nats
        self.positions += positions
        self.bytes += num_bytes

    @property
    def per_position(self) -> float:
        """Bits a position, padding included; NaN before the first."""
        return self.nats / math.log(2) / self.positions if self.positions else math.nan

    @property
    def per_byte(self) -> float:
        """Bits a real byte; NaN where there is none."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    def to_dict(self) -> dict[str, float]:
        """Both forms by name, and the number of real bytes."""
        return {"bits_per_position": self.per_position, "bits_per_byte": self.per_byte, "bytes": float(self.bytes)}
