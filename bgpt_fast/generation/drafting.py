"""Drafters: guesses at what a file goes on with, which the engine checks many at a time.

A drafter never changes a byte: the model's own choice stands at every place, greedy or drawn, and a right guess only
saves the time of waiting for the byte before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Drafter = Callable[[int, bytes], bytes]
"""(place of the prompt in the list, the file so far) → the bytes that may come next, any number of them."""


class RepeatDrafter:
    """Guesses that the last `period` bytes come again, as states and samples do that change little.

    Args:
        period: bytes; 16 is a patch of the paper's model.

    Raises:
        ValueError: period below 1.
    """

    def __init__(self, period: int = 16) -> None:
        if period < 1:
            raise ValueError(f"RepeatDrafter: period: expected at least 1, got {period}")
        self.period = period

    def __call__(self, place: int, data: bytes) -> bytes:
        return data[-self.period :] if len(data) >= self.period else b""


class LookupDrafter:
    """Guesses what followed the last bytes when they stood in the file before, latest first.

    Args:
        longest, shortest: how many last bytes to look for, the longest run that is found counts.
        length: bytes to guess.

    Raises:
        ValueError: not 1 ≤ shortest ≤ longest, or length below 1.
    """

    def __init__(self, longest: int = 8, shortest: int = 3, length: int = 32) -> None:
        if not 1 <= shortest <= longest or length < 1:
            raise ValueError(
                "LookupDrafter: expected 1 ≤ shortest ≤ longest and length ≥ 1, got "
                f"shortest {shortest}, longest {longest}, length {length}"
            )
        self.longest, self.shortest, self.length = longest, shortest, length

    def __call__(self, place: int, data: bytes) -> bytes:
        for size in range(min(self.longest, len(data) - 1), self.shortest - 1, -1):
            # The last occurrence but the one that ends the file.
            at = data.rfind(data[-size:], 0, len(data) - 1)
            if at >= 0:
                return data[at + size : at + size + self.length]
        return b""


class KnownDrafter:
    """Guesses that each file comes out as a given one: the truth of a simulation, an earlier run, a similar file.

    With the states that a machine goes through, the model's whole rollout up to its first wrong byte is checked at
    once.

    Args:
        files: the contents to expect, in the order of the prompts.
    """

    def __init__(self, files: Sequence[bytes]) -> None:
        self.files = files

    def __call__(self, place: int, data: bytes) -> bytes:
        known = self.files[place] if place < len(self.files) else b""
        return known[len(data) :] if known.startswith(data) else b""
