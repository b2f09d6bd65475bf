"""The likelihood of documents under a model, bit-identical to what generation computes.

All logits come from the decoders of `Generator`: a byte's logits depend only on the bytes before it, not on the rest of
the batch, nor on whether the document is scored at once (`score`) or byte by byte (`ByteStreams`). This holds on the
CPU, and on an NVIDIA GPU, where the bits are those of a `Generator` with `batch_invariant=True`. On other devices the
rounding of matrix products may vary.

On the CPU with precision="float32" the bits are also the same on every processor, with any number of threads, unless
the process flushes subnormal numbers to zero. An arithmetic coder needs both: see examples/compression.

Shape letters: N bytes of a document, P patches, S bytes a patch, D width, V = 257 tokens, of which 256 is `<eop>`,
which ends a file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bgpt_fast.config import EOP, VOCAB_SIZE, BGPTConfig
from bgpt_fast.deprecation import renamed_arguments
from bgpt_fast.documents import extension_of
from bgpt_fast.files import open_regular
from bgpt_fast.generation.decoders.base import Decoder, device_of, has_engine, make_decoder
from bgpt_fast.memory import named_out_of_memory
from bgpt_fast.model import BGPT
from bgpt_fast.patches import PackedPatches

_PATCHES_AT_ONCE = 256  # enough for full speed; the logits need 4 MB


@dataclass(frozen=True)
class FileScore:
    """The likelihood of a file under a model.

    Args:
        path: the file.
        nats: minus the log-likelihood of the scored bytes, and of the file's end where it is scored.
        num_bytes: number of bytes scored.
        size: size of the file in bytes; larger than `num_bytes` if the file did not fit into the context.
    """

    path: str
    nats: float
    num_bytes: int
    size: int

    @property
    def is_cut(self) -> bool:
        """Whether only the file's head was scored."""
        return self.num_bytes < self.size

    @property
    def bits_per_byte(self) -> float:
        """nats / ln 2 / num_bytes; NaN for an empty file."""
        return self.nats / math.log(2) / self.num_bytes if self.num_bytes else math.nan


def context_bytes(config: BGPTConfig) -> int:
    """Bytes of a document that fit into the context after its extension patch: (patch_length - 1) · patch_size."""
    return (config.patch_length - 1) * config.patch_size


def score(
    model: BGPT, documents: Sequence[tuple[str, bytes]], *, max_batch: int = 16, precision: str | None = None
) -> Iterator[Tensor]:
    """The logits of each byte of each document, as generation computes them.

    Args:
        model: on the device to compute on; dropout is off.
        documents: (extension, content), contents of at most `context_bytes`.
        max_batch: documents whose keys and values are in memory at the same time; does not change the result.
        precision: precision of linear layers, as in `Generator`.

    Yields:
        For each document, in order, float32 [N + 1, V] on the model's device: row i has the logits of the token after
        the first i bytes, so the last row predicts the file's end. A document that fills the context has N rows,
        because generation stops there.

    Raises:
        TypeError, ValueError: a wrong argument, or a content longer than the context; before anything is computed.
        OutOfMemoryError: the keys and values, or the logits, need more memory than there is.
    """
    _check(model, documents, "score", max_batch)
    patches = max((-(-len(content) // model.config.patch_size) for _, content in documents), default=0)
    decoder = _decoder(model, min(max_batch, len(documents)), patches, precision)
    return _score(decoder, model.config, documents, max_batch)


def _decoder(model: BGPT, documents: int, patches: int, precision: str | None) -> Decoder:
    """A decoder for this number of documents of up to `patches` patches, each with an extension patch."""
    with _scoring_memory(documents, patches + 1):
        # CUDA graphs would be bound to one cache and replayed too rarely to be worth recording.
        return make_decoder(
            model,
            max(documents, 1),
            patches + 1,
            precision=precision,
            batch_invariant=has_engine(device_of(model)),
            use_graphs=False,
        )


def _scoring_memory(documents: int, patches: int) -> AbstractContextManager[None]:
    return named_out_of_memory(
        lambda: f"scoring {documents:,} documents of up to {patches:,} patches at once",
        "max_batch",
        advice="score fewer or shorter documents",
    )


def _score(
    decoder: Decoder, config: BGPTConfig, documents: Sequence[tuple[str, bytes]], max_batch: int
) -> Iterator[Tensor]:
    capacity = context_bytes(config)
    for start in range(0, len(documents), max_batch):
        batch = documents[start : start + max_batch]
        with _scoring_memory(len(batch), max(len(content) for _, content in batch) // config.patch_size + 1):
            logits = _batch_logits(decoder, config, batch)
        for rows, (_, content) in zip(logits, batch, strict=True):
            # After a full last patch the end is the first token of the next patch.
            yield rows[: min(len(content) + 1, capacity)]


@torch.inference_mode()
def _batch_logits(decoder: Decoder, config: BGPTConfig, documents: Sequence[tuple[str, bytes]]) -> tuple[Tensor, ...]:
    """Logits [P · S, V] for each document: those of its data patches and of one more patch."""
    packed = PackedPatches.from_bytes(documents, config, end_of_file=False, truncation="error")
    counts, device = packed.cu_seqlens.diff(), decoder.device
    patches = packed.patches.to(device)
    slots = torch.arange(len(counts), device=device).repeat_interleave(counts.to(device))
    positions = torch.cat([torch.arange(count, device=device) for count in counts.tolist()])
    logits = []
    for start in range(0, len(patches), _PATCHES_AT_ONCE):
        part = slice(start, start + _PATCHES_AT_ONCE)
        features = decoder.prefill(patches[part], slots[part], positions[part])
        # After a document's last patch comes another document's; its logits are not used.
        next_patches = patches.roll(-1, 0)[part]
        logits.append(decoder.logits(features, next_patches, config.patch_size).flatten(0, 1))
    return torch.cat(logits).split((counts * config.patch_size).tolist())


class ByteStreams:
    """Scores documents byte by byte: first the logits of each document's next byte, then the byte is appended.

    `logits` returns the same bits as `score` on all bytes at once: it recomputes the earlier bytes of the patch, so
    that both take the same steps.

    Args:
        model: as for `score`; its weights are read at construction.
        extensions: one for each document.
        length: maximum bytes of a document, at most `context_bytes`, which is the default.
        precision: as for `score`.

    Raises:
        TypeError, ValueError: a wrong argument.
        OutOfMemoryError: the keys and values, or the logits, need more memory than there is.
    """

    def __init__(
        self, model: BGPT, extensions: Sequence[str], *, length: int | None = None, precision: str | None = None
    ) -> None:
        documents = [(extension, b"") for extension in extensions]
        _check(model, documents, "ByteStreams")
        capacity = context_bytes(model.config)
        self.length = capacity if length is None else length
        if not 0 <= self.length <= capacity:
            raise ValueError(f"ByteStreams: length: expected 0…{capacity}, the bytes of a context, got {length}")
        self._S = model.config.patch_size
        self._bytes = [bytearray() for _ in documents]
        self._scored_lengths = [-1] * len(documents)  # each document's length when `logits` last scored it
        self._decoder = _decoder(model, len(documents), -(-self.length // self._S), precision)
        packed = PackedPatches.from_bytes(documents, model.config, end_of_file=False)
        self._extensions = packed.patches.tolist()
        self._features: list[Tensor] = [torch.empty(0, device=self._decoder.device)] * len(documents)

    def __len__(self) -> int:
        return len(self._bytes)

    def content(self, row: int) -> bytes:
        """The bytes of a document so far."""
        return bytes(self._bytes[row])

    @torch.inference_mode()
    def logits(self, rows: Sequence[int]) -> Tensor:
        """Logits of the next token of each of these documents, which may differ in length: float32 [len(rows), V].

        Raises:
            ValueError: a document has reached its maximum length, or is given twice.
            OutOfMemoryError: the logits need more memory than there is.
        """
        if len(set(rows)) != len(rows):
            raise ValueError(f"ByteStreams.logits: rows: expected each document once, got {list(rows)!r:.80}")
        for row in rows:
            if len(self._bytes[row]) >= self.length:
                raise ValueError(f"ByteStreams.logits: document {row} has all the {self.length} bytes it may have")
        with _scoring_memory(len(rows), -(-self.length // self._S) + 1):
            return self._logits(rows)

    def _logits(self, rows: Sequence[int]) -> Tensor:
        S, device = self._S, self._decoder.device
        lengths = [len(self._bytes[row]) for row in rows]
        for row, length in zip(rows, lengths, strict=True):
            self._scored_lengths[row] = length
        at_patch_start = [row for row, length in zip(rows, lengths, strict=True) if length % S == 0]
        if at_patch_start:
            patches = [
                list(self._bytes[row][-S:]) if self._bytes[row] else self._extensions[row] for row in at_patch_start
            ]
            positions = torch.tensor([len(self._bytes[row]) // S for row in at_patch_start], device=device)
            features = self._decoder.prefill(
                torch.tensor(patches, dtype=torch.int16, device=device),
                torch.tensor(at_patch_start, device=device),
                positions,
            )
            for row, feature in zip(at_patch_start, features, strict=True):
                self._features[row] = feature
        if not rows:
            return torch.empty(0, VOCAB_SIZE, dtype=torch.float32, device=device)
        offsets = [length % S for length in lengths]  # of the next byte in its patch
        prefixes = [self._bytes[row][length - s :] for row, length, s in zip(rows, lengths, offsets, strict=True)]
        padded = [[*prefix, *[0] * (S - len(prefix))] for prefix in prefixes]
        tokens = torch.tensor(padded, dtype=torch.int16, device=device)
        features = torch.stack([self._features[row] for row in rows])
        logits = self._decoder.logits(features, tokens, max(offsets) + 1)
        return logits[torch.arange(len(rows), device=device), offsets]

    def append(self, rows: Sequence[int], values: Iterable[int]) -> None:
        """Appends a byte to each of these documents; `logits` must have scored them at their current length.

        Raises:
            ValueError: a value that is not a byte, or a document that has grown since `logits` scored it.
        """
        for row, value in zip(rows, values, strict=True):
            if self._scored_lengths[row] != len(self._bytes[row]):
                raise ValueError(
                    "ByteStreams.append: expected documents that `logits` has scored since their last byte, got "
                    f"document {row}"
                )
            self._bytes[row].append(value)


@renamed_arguments(overlong="truncation")
def score_files(
    model: BGPT,
    paths: Sequence[str | os.PathLike[str]],
    *,
    truncation: Literal["error", "head"] = "error",
    max_batch: int = 16,
    precision: str | None = None,
) -> list[FileScore]:
    """Minus the log-likelihood of many files, from the probabilities that generation samples from.

    Args:
        model: as for `score`.
        paths: regular files; their extensions tell the model the kind of file.
        truncation: what to do with a file longer than the context: "error", or "head" to score the part that fits,
            without the file's end, which `FileScore.is_cut` reports.
        max_batch: files scored at the same time; does not change the result.
        precision: as for `score`.

    Returns:
        A FileScore for each file, in the order of the paths.

    Raises:
        TypeError, ValueError: a wrong argument, or a file longer than the context; the message names it.
        OSError: a file could not be read.
    """
    if truncation not in ("error", "head"):
        raise ValueError(f'score_files: truncation: expected "error" or "head", got {truncation!r}')
    names = [os.fspath(path) for path in paths]
    _check(model, [], "score_files", max_batch)
    config, capacity = model.config, context_bytes(model.config)
    decoder = _decoder(model, min(max_batch, len(names)), config.patch_length - 1, precision)
    scores = []
    for start in range(0, len(names), max_batch):
        documents, sizes = [], []
        for name in names[start : start + max_batch]:
            with open_regular(name) as file:
                content = file.read(capacity + 1)
                sizes.append(os.fstat(file.fileno()).st_size)
            if len(content) > capacity and truncation == "error":
                raise ValueError(
                    f"score_files: {name!r}: expected at most {capacity} bytes, the context of the model, got "
                    f'{sizes[-1]}; use truncation="head", or a model with a longer context'
                )
            documents.append((extension_of(name), content[:capacity]))
        for i, rows in enumerate(_score(decoder, config, documents, max_batch)):
            content = documents[i][1]
            tokens = torch.tensor([*content, EOP][: len(rows)], device=rows.device)
            nats = -rows.double().log_softmax(1).gather(1, tokens[:, None]).sum()
            scores.append(FileScore(names[start + i], float(nats), len(content), sizes[i]))
    return scores


def _check(model: object, documents: Sequence[tuple[str, bytes]], name: str, max_batch: object = 1) -> None:
    if not isinstance(model, BGPT):
        raise TypeError(f"{name}: model: expected a BGPT, got {type(model).__name__}")
    model.config.check_bytes(f"{name}: model")
    if isinstance(documents, str | bytes) or not isinstance(documents, Sequence):
        raise TypeError(f"{name}: documents: expected a list of (extension, bytes), got {type(documents).__name__}")
    if not isinstance(max_batch, int) or isinstance(max_batch, bool) or max_batch < 1:
        raise ValueError(f"{name}: max_batch: expected an int of at least 1, got {max_batch!r}")
    capacity = context_bytes(model.config)
    for i, (_, content) in enumerate(documents):
        if len(content) > capacity:
            raise ValueError(
                f"{name}: documents[{i}]: expected at most {capacity} bytes, the context of the model, got "
                f"{len(content)}; cut it into pieces, or use a model with a longer context"
            )
