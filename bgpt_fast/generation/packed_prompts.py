"""Many prompts as arrays, so that no step of generation handles them one by one.

Shape letters: n prompts, P patches, S bytes a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from bgpt_fast.config import EOP, BGPTConfig
from bgpt_fast.documents import Part, encode_extension
from bgpt_fast.generation.prompt import Prompt
from bgpt_fast.patches import PackedPatches


@dataclass(frozen=True, eq=False)
class PackedPrompts(Sequence[Prompt]):
    """Prompts, packed as patches; a list of `Prompt` for whoever reads them one by one.

    Args:
        patches: int16 [P, S], for each prompt the source's patches, the extension patch and the patches of its data, of
            which the last is padded with 256.
        offsets: int64 [n + 1]: prompt i has the patches `offsets[i]` to `offsets[i + 1] - 1`.
        source_patches: int64 [n], number of patches of each prompt's source.
        data: each prompt's data.
        sizes: int64 [n], their bytes.
        rng_streams: uint64 [n], the number of each file's random stream.
        max_new_bytes: int64 [n], maximum bytes to add to each; None means no limit but that of the call.
    """

    patches: NDArray[np.int16]
    offsets: NDArray[np.int64]
    source_patches: NDArray[np.int64]
    data: list[bytes]
    sizes: NDArray[np.int64]
    rng_streams: NDArray[np.uint64]
    max_new_bytes: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.data)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        start, before = int(self.offsets[i]), int(self.source_patches[i])
        source = None
        if before:
            content = self.patches[start + 1 : start + before]
            source = _extension(self.patches[start]), content[content != EOP].astype(np.uint8).tobytes()
        return Prompt(_extension(self.patches[start + before]), self.data[i], int(self.rng_streams[i]), source)

    @classmethod
    def from_prompts(cls, prompts: Sequence[Prompt], config: BGPTConfig) -> PackedPrompts:
        """Packs prompts.

        Raises:
            TypeError, ValueError: an item is no Prompt, or leaves no space in the context; the message names it.
        """
        S, L = config.patch_size, config.patch_length
        extensions: dict[str, bytes] = {}
        parts: list[tuple[Part]] = []
        source_patches: list[int] = []

        def add(name: str, extension: str, content: bytes) -> None:
            if extension not in extensions:
                extensions[extension] = encode_extension(name, extension, config)
            parts.append((Part(extensions[extension], content, has_end=False),))

        for i, prompt in enumerate(prompts):
            if not isinstance(prompt, Prompt):
                raise TypeError(f"Generator: prompts[{i}]: expected a Prompt, got {type(prompt).__name__}")
            before = prompt.source_patches(S)
            source_patches.append(before)
            if len(prompt.data) >= (L - 1 - before) * S:
                source = f" and the source's {before}" if before else ""
                raise ValueError(
                    f"Generator: prompts[{i}].data: expected fewer than {max((L - 1 - before) * S, 0)} bytes, the "
                    f"context's {L} patches of {S} less the extension's{source}, got {len(prompt.data)}; "
                    "cut the prompt, or use a model with a longer context"
                )
            if prompt.source is not None:
                add(f"Generator: prompts[{i}].source", *prompt.source)
            add(f"Generator: prompts[{i}]", prompt.extension, prompt.data)
        packed = PackedPatches.from_parts(parts, S)
        # A prompt with a source has two documents; its own is the last.
        has_source = np.array(source_patches, np.int64) > 0
        last_documents = np.arange(len(prompts)) + np.cumsum(has_source)
        return cls(
            packed.patches.numpy(),
            np.append(np.zeros(1, np.int64), packed.cu_seqlens.numpy().astype(np.int64)[last_documents + 1]),
            np.array(source_patches, np.int64),
            [prompt.data for prompt in prompts],
            np.array([len(prompt.data) for prompt in prompts], np.int64),
            np.array([i if prompt.index is None else prompt.index for i, prompt in enumerate(prompts)], np.uint64),
        )

    @classmethod
    def from_rows(
        cls,
        extension: str,
        rows: NDArray[np.uint8],
        config: BGPTConfig,
        max_new_bytes: NDArray[np.int64] | None = None,
    ) -> PackedPrompts:
        """Packs prompts of one size and one extension, without a Python object for each.

        Args:
            extension: of all prompts.
            rows: uint8 [n, size], the data of each.
            config: patch size and context.
            max_new_bytes: as the attribute.

        Raises:
            ValueError: the prompts leave no space in the context.
        """
        S, (n, size) = config.patch_size, rows.shape
        if size >= (config.patch_length - 1) * S:
            raise ValueError(
                f"Generator: prompts: expected fewer than {(config.patch_length - 1) * S} bytes, the context's "
                f"{config.patch_length} patches of {S} less the extension's, got {size}; use a model with a longer "
                "context"
            )
        each = 1 - -size // S
        tokens = np.full((n, each * S), EOP, np.int16)
        encoded = np.frombuffer(encode_extension("Generator: prompts", extension, config), np.uint8)
        tokens[:, : len(encoded)] = encoded
        tokens[:, S : S + size] = rows
        content = rows.tobytes()
        return cls(
            tokens.reshape(n * each, S),
            np.arange(n + 1) * each,
            np.zeros(n, np.int64),
            [content[start : start + size] for start in range(0, n * size, size)] if size else [b""] * n,
            np.full(n, size),
            np.arange(n).astype(np.uint64),
            max_new_bytes,
        )


def _extension(patch: NDArray[np.int16]) -> str:
    return patch[patch != EOP].astype(np.uint8).tobytes().decode("utf-8", "surrogateescape")
