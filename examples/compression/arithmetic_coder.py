"""An arithmetic coder with integer arithmetic, so that encoding and decoding agree on all machines.

Source: Witten, Neal, Cleary: Arithmetic Coding for Data Compression, Communications of the ACM 30 (1987).
"""

from __future__ import annotations

_BITS = 32
_TOP = (1 << _BITS) - 1
_HALF = 1 << (_BITS - 1)
_QUARTER = 1 << (_BITS - 2)
MAX_TOTAL = _QUARTER
"""Maximum sum of the symbol frequencies."""


class Encoder:
    """Narrows an interval symbol by symbol; `finish` returns the bytes of a number inside it."""

    def __init__(self) -> None:
        self._low, self._high, self._pending = 0, _TOP, 0
        self._bits: list[int] = []

    def encode(self, start: int, stop: int, total: int) -> None:
        """Encodes the symbol with the interval [start, stop) of `total`, 0 ≤ start < stop ≤ total ≤ MAX_TOTAL."""
        width = self._high - self._low + 1
        self._low, self._high = self._low + width * start // total, self._low + width * stop // total - 1
        while True:
            if self._high < _HALF:
                self._emit(0)
            elif self._low >= _HALF:
                self._emit(1)
                self._low -= _HALF
                self._high -= _HALF
            elif self._low >= _QUARTER and self._high < 3 * _QUARTER:
                self._pending += 1
                self._low -= _QUARTER
                self._high -= _QUARTER
            else:
                return
            self._low, self._high = 2 * self._low, 2 * self._high + 1

    def finish(self) -> bytes:
        """Returns the code of all symbols, without trailing zeros, which the decoder assumes."""
        self._pending += 1
        self._emit(int(self._low >= _QUARTER))
        text = "".join(map(str, self._bits))
        text += "0" * (-len(text) % 8)
        return int("1" + text, 2).to_bytes(len(text) // 8 + 1, "big")[1:].rstrip(b"\0")

    def _emit(self, bit: int) -> None:
        self._bits += [bit, *([1 - bit] * self._pending)]
        self._pending = 0


class Decoder:
    """Decodes the symbols of an `Encoder` with the same frequencies."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0
        self._low, self._high, self._value = 0, _TOP, 0
        for _ in range(_BITS):
            self._value = 2 * self._value + self._bit()

    def target(self, total: int) -> int:
        """Returns a number in 0 … total - 1 inside the next symbol's interval."""
        return ((self._value - self._low + 1) * total - 1) // (self._high - self._low + 1)

    def decode(self, start: int, stop: int, total: int) -> None:
        """Consumes the symbol with the interval [start, stop), which contains `target`."""
        width = self._high - self._low + 1
        self._low, self._high = self._low + width * start // total, self._low + width * stop // total - 1
        while True:
            if self._high < _HALF:
                offset = 0
            elif self._low >= _HALF:
                offset = _HALF
            elif self._low >= _QUARTER and self._high < 3 * _QUARTER:
                offset = _QUARTER
            else:
                return
            self._low, self._high = 2 * (self._low - offset), 2 * (self._high - offset) + 1
            self._value = 2 * (self._value - offset) + self._bit()

    def _bit(self) -> int:
        byte, place = divmod(self._at, 8)
        self._at += 1
        return self._data[byte] >> (7 - place) & 1 if byte < len(self._data) else 0
