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
VOCAB_SIZES = (128, VOCAB_SIZE)
"""Numbers of symbols that kernels are compiled for: NotaGen's (ASCII) and bGPT's."""
NOTAGEN_ALPHABET: dict[str, Any] = {"vocab_size": 128, "eop": 2, "bos": 1, "eos": 2, "pad": 0}
"""The fields of `BGPTConfig` that make it a NotaGen (arXiv 2502.18008)."""


_MOST = {
    "patch_size": 1 << 16,
    "patch_length": (1 << 31) - 1,
    "hidden_size": 1 << 20,
    "patch_num_layers": 1 << 12,
    "byte_num_layers": 1 << 12,
}
"""So that a wrong number, of a damaged file too, is named before a model of that size is built."""


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
        vocab_size: V, number of symbols of a patch's positions: 257 (bytes and `<eop>`), or 128 as NotaGen has.
        eop: the symbol at which the decoding of a patch ends. In bGPT it also fills the rest of the patch and ends the
            file.
        bos, eos, pad: None in bGPT; all three, or none. With them a patch that begins with `bos`, `eos` ends the text,
            a patch that is cut short by `eop` is filled with `pad`, and `pad` is not in the loss (NotaGen, arXiv
            2502.18008).

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
    vocab_size: int = VOCAB_SIZE
    eop: int = EOP
    bos: int | None = None
    eos: int | None = None
    pad: int | None = None

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"BGPTConfig.{name}: expected an int, got {type(value).__name__} {value!r}")
            least = 2 if name == "patch_length" else 1
            if not least <= value <= most:
                raise ValueError(f"BGPTConfig.{name}: expected {least:,}…{most:,}, got {value:,}")
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
        self._check_alphabet()

    def _check_alphabet(self) -> None:
        if type(self.vocab_size) is not int or self.vocab_size not in VOCAB_SIZES:
            raise ValueError(f"BGPTConfig.vocab_size: expected one of {VOCAB_SIZES}, got {self.vocab_size!r}")
        special = self.bos, self.eos, self.pad
        if any(symbol is None for symbol in special) and special != (None, None, None):
            raise ValueError(f"BGPTConfig: bos, eos, pad: expected three symbols, or None for all, got {special}")
        for name in ("eop", "bos", "eos", "pad"):
            symbol = getattr(self, name)
            if name != "eop" and symbol is None:
                continue
            if type(symbol) is not int:
                raise TypeError(f"BGPTConfig.{name}: expected an int, got {type(symbol).__name__} {symbol!r}")
            if not 0 <= symbol < self.vocab_size:
                raise ValueError(f"BGPTConfig.{name}: expected a symbol 0…{self.vocab_size - 1}, got {symbol}")
        if self.vocab_size == VOCAB_SIZE and (self.eop != EOP or self.pad is not None):
            raise ValueError(
                f"BGPTConfig: expected eop {EOP} and no bos, eos, pad with {VOCAB_SIZE} symbols, whose others are all "
                f"bytes, got eop {self.eop}, bos {self.bos}, eos {self.eos}, pad {self.pad}"
            )
        if self.byte_init == "numeric" and self.vocab_size != VOCAB_SIZE:
            raise ValueError(
                f'BGPTConfig.byte_init: expected "normal" with {self.vocab_size} symbols, got "numeric", whose '
                f"features are those of {VOCAB_SIZE - 1} byte values"
            )

    @property
    def patch_heads(self) -> int:
        """Heads of the patch-level decoder; never None."""
        assert self.num_heads is not None
        return self.num_heads

    def check_bytes(self, name: str) -> None:
        """Raises ValueError, which begins with `name`, unless the model is one of files: its symbols are bytes."""
        if self.vocab_size != VOCAB_SIZE:
            raise ValueError(
                f"{name}: expected a model of bytes, with {VOCAB_SIZE} symbols, got one of {self.vocab_size}; "
                "bgpt-fast generate and bgpt_fast.models.notagen work with NotaGen's"
            )

    @property
    def fill(self) -> int:
        """The symbol of a patch's positions after its end: `pad` if there is one, otherwise `eop`."""
        return self.eop if self.pad is None else self.pad

    @property
    def byte_heads(self) -> int:
        """Heads of the byte-level decoder; never None."""
        assert self.byte_num_heads is not None
        return self.byte_num_heads

    def to_dict(self) -> dict[str, Any]:
        """The fields as a JSON-serialisable dict; without those of the alphabet where it is bGPT's, as earlier versions
        wrote them."""
        fields = dataclasses.asdict(self)
        if self.vocab_size == VOCAB_SIZE:
            for name in ("vocab_size", "eop", "bos", "eos", "pad"):
                del fields[name]
        return fields

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> BGPTConfig:
        """The inverse of `to_dict`; raises ValueError on unknown fields."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - known, key=str)
        if unknown:
            raise ValueError(f"BGPTConfig: unknown fields {unknown}; known are {sorted(known)}")
        return cls(**fields)
