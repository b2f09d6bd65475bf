"""Prompt and Generation: the input and the output of a Generator."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Prompt:
    """The start of a file.

    Args:
        extension: the file's kind, such as "txt"; stored as described in `PackedPatches.from_bytes`.
        data: the file's first bytes; empty means generating from the extension alone.
        index: number of the file's random stream, 0 … 2⁶⁴-1; None means its index in the list of prompts.
        source: for conversion, (extension, content) of a document that precedes this one in the context, without its
            end-of-file patch, as `PairSource` packs pairs for training; this file's extension patch separates the two.

    Raises:
        TypeError, ValueError: a field has a wrong type or is out of range.
    """

    extension: str
    data: bytes = b""
    index: int | None = None
    source: tuple[str, bytes] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.extension, str):
            raise TypeError(f"Prompt.extension: expected a str, got {type(self.extension).__name__}")
        if not isinstance(self.data, bytes | bytearray | memoryview):
            raise TypeError(f"Prompt.data: expected bytes, got {type(self.data).__name__}")
        object.__setattr__(self, "data", bytes(self.data))
        if self.source is not None:
            kinds = [type(part).__name__ for part in self.source] if isinstance(self.source, tuple) else self.source
            if kinds != ["str", "bytes"]:
                raise TypeError(f"Prompt.source: expected (extension str, content bytes) or None, got {kinds!r:.80}")
        if self.index is None:
            return
        if not isinstance(self.index, int) or isinstance(self.index, bool):
            raise TypeError(f"Prompt.index: expected an int or None, got {type(self.index).__name__}")
        if not 0 <= self.index < 2**64:
            raise ValueError(f"Prompt.index: expected 0 ≤ index < 2⁶⁴, got {self.index}")

    def source_patches(self, patch_size: int) -> int:
        """Patches of the source in the context, including its extension patch; 0 without a source."""
        return 0 if self.source is None else 1 - -len(self.source[1]) // patch_size


@dataclass(frozen=True)
class Generation:
    """A generated file.

    Args:
        data: the file's content: the prompt's data, then the new bytes.
        finished: whether the model ended the file; False where the context or `max_new_bytes` ended it.
        prompt_bytes: bytes of `data` that come from the prompt.
        drafted: number of bytes that a drafter proposed and the decoder verified; ignored by `==`.
        accepted: number of drafted bytes that the model also chose; ignored by `==`.
    """

    data: bytes
    finished: bool
    prompt_bytes: int
    drafted: int = field(default=0, compare=False)
    accepted: int = field(default=0, compare=False)

    @property
    def new_bytes(self) -> bytes:
        """The bytes after the prompt."""
        return self.data[self.prompt_bytes :]
