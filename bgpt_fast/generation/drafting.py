"""Drafters: proposals for a file's next bytes, many of which the decoder verifies in one pass (speculative decoding).

A drafter never changes a byte: every byte is the model's own choice, greedy or sampled. A correct draft saves
time, because its bytes are not decoded one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Drafter = Callable[[int, bytes], bytes]
"""(index of the prompt in the list, the file so far) → a guess at the next bytes, of any length."""


class RepeatDrafter:
    """Drafts the last `period` bytes again: for states and audio samples that change little.

    Args:
        period: bytes; 16 is a patch of the paper's model.

    Raises:
        ValueError: period below 1.
    """

    def __init__(self, period: int = 16) -> None:
        if period < 1:
            raise ValueError(f"RepeatDrafter: period: expected at least 1, got {period}")
        self.period = period

    def __call__(self, index: int, data: bytes) -> bytes:
        return data[-self.period :] if len(data) >= self.period else b""


class LookupDrafter:
    """Drafts the bytes that followed the latest earlier occurrence of the file's last bytes.

    Args:
        longest, shortest: range of how many of the file's last bytes to search for; longer matches are preferred.
        length: number of bytes to draft.

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

    def __call__(self, index: int, data: bytes) -> bytes:
        for size in range(min(self.longest, len(data) - 1), self.shortest - 1, -1):
            # The last occurrence before the one at the file's end.
            start = data.rfind(data[-size:], 0, len(data) - 1)
            if start >= 0:
                return data[start + size : start + size + self.length]
        return b""


class KnownDrafter:
    """Drafts from an expected content of each file: a simulation's true states, an earlier run, a similar file.

    With the true states of a simulation, many states are verified in one pass, up to the model's first wrong byte.

    Args:
        files: the expected contents, in the order of the prompts.
    """

    def __init__(self, files: Sequence[bytes]) -> None:
        self.files = files

    def __call__(self, index: int, data: bytes) -> bytes:
        known = self.files[index] if index < len(self.files) else b""
        return known[len(data) :] if known.startswith(data) else b""
