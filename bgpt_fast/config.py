"""The configuration of a bGPT model."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

EOP = 256
"""The end-of-patch token `<eop>`: pads a short patch; a patch consisting only of it marks the end of a file."""
VOCAB_SIZE = 257
"""Byte values 0…255 and `EOP`."""


@dataclass(frozen=True)
class BGPTConfig:
    """Sizes and initialisation of a bGPT model (arXiv 2402.19155, section 3; defaults are the paper's 110 M model).

    Args:
        patch_size: bytes per patch.
        patch_length: context length in patches, including the extension patch and the end-of-file patch.
        hidden_size: width of both decoders.
        patch_num_layers: layers of the patch-level decoder.
        byte_num_layers: layers of the byte-level decoder.
        dropout: probability of GPT-2's three dropouts during training (the released training used 0.1).
        num_heads: attention heads of the patch-level decoder; None means one per 64 channels, as released.
        byte_num_heads: attention heads of the byte-level decoder; None means the same number, as released. Small
            models want many narrow heads here (up to one per position in a patch) and few wide ones in the other.
        position_init: initial position embeddings. "normal": independent rows, as released. "sinusoidal": sines and
            cosines of the position with eight periods per octave, starting at 2, so that positions at a fixed distance
            are related by one rotation, and reading memory by address is learned for all addresses at once.
        position_init_std: standard deviation of the initial position embeddings (0.02 as released); with a larger
            value small models learn to distinguish a patch's bytes far sooner.
        byte_init: initial byte embeddings (`wte`, each slot of the patch projection). "normal": independent rows,
            as released. "numeric": mostly a random projection of the byte value's bits, phases and magnitude, so
            that numerically similar bytes start with similar embeddings; learns arithmetic in minutes, not hours.
        byte_init_std: standard deviation of the initial byte embeddings (0.02 as released).

    Raises:
        TypeError, ValueError: a field has the wrong type or is out of range.
    """

    patch_size: int = 16
    patch_length: int = 512
    hidden_size: int = 768
    patch_num_layers: int = 12
    byte_num_layers: int = 3
    dropout: float = 0.0
    num_heads: int | None = None
    byte_num_heads: int | None = None
    position_init: str = "normal"
    position_init_std: float = 0.02
    byte_init: str = "normal"
    byte_init_std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("patch_size", "patch_length", "hidden_size", "patch_num_layers", "byte_num_layers"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"BGPTConfig.{name}: expected an int, got {type(value).__name__} {value!r}")
            least = 2 if name == "patch_length" else 1
            if value < least:
                raise ValueError(f"BGPTConfig.{name}: expected at least {least}, got {value}")
        if self.num_heads is None:
            object.__setattr__(self, "num_heads", max(1, self.hidden_size // 64))
        if self.byte_num_heads is None:
            object.__setattr__(self, "byte_num_heads", self.num_heads)
        for name in ("num_heads", "byte_num_heads"):
            heads = getattr(self, name)
            if not isinstance(heads, int) or isinstance(heads, bool):
                raise TypeError(f"BGPTConfig.{name}: expected an int or None, got {heads!r}")
            if heads < 1 or self.hidden_size % heads:
                raise ValueError(
                    f"BGPTConfig.{name}: expected a divisor of hidden_size {self.hidden_size}, got {heads}"
                )
        for name in ("dropout", "position_init_std", "byte_init_std"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise TypeError(f"BGPTConfig.{name}: expected a number, got {type(value).__name__} {value!r}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"BGPTConfig.dropout: expected 0 ≤ dropout < 1, got {self.dropout}")
        for name in ("position_init_std", "byte_init_std"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"BGPTConfig.{name}: expected a positive number, got {getattr(self, name)}")
        for name, choices in (("position_init", ("normal", "sinusoidal")), ("byte_init", ("normal", "numeric"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"BGPTConfig.{name}: expected one of {choices}, got {getattr(self, name)!r}")

    @property
    def patch_heads(self) -> int:
        """Heads of the patch-level decoder; never None."""
        assert self.num_heads is not None
        return self.num_heads

    @property
    def byte_heads(self) -> int:
        """Heads of the byte-level decoder; never None."""
        assert self.byte_num_heads is not None
        return self.byte_num_heads

    def to_dict(self) -> dict[str, Any]:
        """The fields as a JSON-serialisable dict."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> BGPTConfig:
        """The inverse of `to_dict`; raises ValueError on unknown fields."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - known, key=str)
        if unknown:
            raise ValueError(f"BGPTConfig: unknown fields {unknown}; known are {sorted(known)}")
        return cls(**fields)
