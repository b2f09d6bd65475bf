"""Generation as a plain loop: one file at a time, one byte at a time, the whole context again for each."""

from __future__ import annotations

from support.hash_decoder import HashModel, context_hash, draw

from bgpt_fast.config import EOP, BGPTConfig
from bgpt_fast.generation import Generation, Prompt


class DamagedError(Exception):
    """The logits of a byte are NaN."""


def generate_file(
    model: HashModel, config: BGPTConfig, prompt: Prompt, index: int, max_new_bytes: int | None = None, seed: int = 0
) -> Generation:
    """The file that follows from a prompt.

    Args:
        model: chooses each byte.
        config: patch size and context.
        prompt, max_new_bytes, seed: as `Generator.generate` takes them.
        index: of the prompt in the list.

    Raises:
        DamagedError: as its name says.
    """
    S = config.patch_size
    before = []
    for extension, content in [] if prompt.source is None else [prompt.source]:
        before += [_padded(extension.encode()[:S], S)]
        before += [_padded(content[i : i + S], S) for i in range(0, len(content), S)]
    before.append(_padded(prompt.extension.encode()[:S], S))
    limit = (config.patch_length - len(before)) * S
    if max_new_bytes is not None:
        limit = min(limit, len(prompt.data) + max_new_bytes)
    data, finished = prompt.data, False
    stream = index if prompt.index is None else prompt.index
    while len(data) < limit and not finished:
        start = len(data) // S * S
        context = before + [list(data[i : i + S]) for i in range(0, start, S)]
        feature = context_hash(context)
        # A decoder computes the logits of the known bytes of a patch too, and NaN there is noticed.
        for end in range(start, len(data) + 1):
            token = model.choose(draw(feature, data[start:end], stream, start, seed))
            if token is None:
                raise DamagedError
        if token == EOP:
            finished = True
        else:
            data += bytes([token])
    return Generation(data, finished, len(prompt.data))


def _padded(patch: bytes, size: int) -> list[int]:
    return [*patch, *[EOP] * (size - len(patch))]
