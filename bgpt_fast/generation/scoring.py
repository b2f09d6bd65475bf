"""How likely a model takes documents to be, with the very bits that generation computes.

Everything goes through the decoders of `Generator`: a byte's logits depend on the bytes before it alone, not on what
shares the batch, nor on whether the document is read at once (`score`) or byte by byte (`ByteStreams`). An arithmetic
coder can be built on that: examples/compression does. So it is on the CPU, and on an NVIDIA GPU (not yet run on one),
where the bits are those of a `Generator` with `batch_invariant=True`. On other devices the bits are the library's, and
nothing of that is promised.

Shape letters: N bytes of a document, P patches, S bytes a patch, D width, V = 257 tokens, of which 256 is `<eop>`, that
ends a file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from bgpt_fast.config import EOP, VOCAB_SIZE, BGPTConfig
from bgpt_fast.device import Replay
from bgpt_fast.documents import extension_of
from bgpt_fast.generation.decoder import EagerDecoder
from bgpt_fast.generation.device_layers import DEVICE_PRECISIONS
from bgpt_fast.generation.fused import CpuDecoder, PackedModel
from bgpt_fast.generation.on_device import CudaDecoder, DeviceModel, has_engines
from bgpt_fast.generation.packed import PRECISIONS
from bgpt_fast.generation.scheduler import Decoder
from bgpt_fast.model import BGPT
from bgpt_fast.patches import PackedPatches

_PATCHES_AT_ONCE = 256  # full speed; their logits take 4 MB


@dataclass(frozen=True)
class FileScore:
    """How likely a model takes a file to be.

    Args:
        path: the file.
        nats: minus the log-likelihood of the scored bytes, and of the file's end where it is scored.
        num_bytes: bytes scored.
        size: bytes of the file; more than `num_bytes` where the context could not hold them.
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
    """Bytes of a document that the context holds beside its extension: (patch_length - 1) · patch_size."""
    return (config.patch_length - 1) * config.patch_size


def score(
    model: BGPT, documents: Sequence[tuple[str, bytes]], *, max_batch: int = 16, precision: str | None = None
) -> Iterator[Tensor]:
    """The logits of each byte of each document, as generation would have seen them.

    Args:
        model: on the device where it is; dropout is off.
        documents: (extension, content), contents of at most `context_bytes`.
        max_batch: documents whose keys and values are in memory at once; changes no bit of the result.
        precision: what linear layers compute in, as `Generator` takes it.

    Yields:
        For each document, in order, float32 [N + 1, V] on the model's device: row i has the logits of the token after
        the first i bytes, so the last row's is that of the end. A document that fills the context has N rows:
        generation stops there without asking.

    Raises:
        TypeError, ValueError: a wrong argument, or a content over the context; before anything is computed.
        MemoryError: no memory for the keys and values.
    """
    _check(model, documents, "score", max_batch)
    return _score(_Decoders(model, precision), documents, max_batch)


def _score(decoders: _Decoders, documents: Sequence[tuple[str, bytes]], max_batch: int) -> Iterator[Tensor]:
    room = context_bytes(decoders.config)
    for start in range(0, len(documents), max_batch):
        part = documents[start : start + max_batch]
        for rows, (_, content) in zip(_batch_logits(decoders, part), part, strict=True):
            # Behind a whole last patch the end is asked for at the next one's first byte.
            yield rows[: min(len(content) + 1, room)]


@torch.inference_mode()
def _batch_logits(decoders: _Decoders, documents: Sequence[tuple[str, bytes]]) -> tuple[Tensor, ...]:
    """[P · S, V] a document: of each byte behind its extension patch, and of a patch that may follow its last one."""
    packed = PackedPatches.from_bytes(documents, decoders.config, end_of_file=False, truncation="error")
    counts = packed.cu_seqlens.diff()
    above = decoders.above(len(documents), int(counts.max()))
    patches, device = packed.patches.to(decoders.device), decoders.device
    slots = torch.arange(len(counts), device=device).repeat_interleave(counts.to(device))
    positions = torch.cat([torch.arange(count, device=device) for count in counts.tolist()])
    logits = []
    for start in range(0, len(patches), _PATCHES_AT_ONCE):
        part = slice(start, start + _PATCHES_AT_ONCE)
        features = above.features(patches[part], slots[part], positions[part])
        # What follows a document's last patch is never read: any patch will do there.
        following = patches.roll(-1, 0)[part]
        logits.append(decoders.logits(features, following, following.shape[1]).flatten(0, 1))
    return torch.cat(logits).split((counts * decoders.config.patch_size).tolist())


class _Decoders:
    """The decoders that `Generator` uses, asked for logits instead of bytes."""

    def __init__(self, model: BGPT, precision: str | None) -> None:
        self.config, self._model = model.config, model
        weight = model.byte_level_decoder.base.lm_head.weight
        self.device = weight.device
        kind = self.device.type
        on_gpu = has_engines(self.device)
        own = "bfloat16" if weight.dtype == torch.bfloat16 and (kind == "cpu" or on_gpu) else "float32"
        offered = PRECISIONS if kind == "cpu" else tuple(DEVICE_PRECISIONS) if on_gpu else ("float32",)
        if precision not in (None, *offered):
            raise ValueError(f"precision: expected None or one of {offered} on {self.device}, got {precision!r}")
        self._packed = PackedModel(model, precision or own) if kind == "cpu" else None
        self._on_device: DeviceModel | None = None
        if on_gpu:
            self._on_device = DeviceModel(model, precision or own, _unrecorded, batch_invariant=True)

    def above(self, slots: int, patches: int) -> Decoder:
        """The patch decoder with an empty cache."""
        # A multiple of 16 keeps the rows of the cache on whole cache lines.
        length = max(1, -(-patches // 16)) * 16
        if self._packed is not None:
            return CpuDecoder(self._packed, slots, length)
        if self._on_device is not None:
            return CudaDecoder(self._on_device, slots, length)
        return EagerDecoder(self._model, slots, length)

    def logits(self, features: Tensor, tokens: Tensor, count: int) -> Tensor:
        """Logits [P, S, V] of the first `count` bytes of patches, each given those before it.

        Args:
            features: [P, D], of the patch before each.
            tokens: int16 [P, S]; the last of the `count` is not read.
        """
        P, S = tokens.shape
        if self._packed is not None:
            numbers = torch.zeros(P, dtype=torch.uint64, device=self.device)
            room = torch.full((P,), count, device=self.device)
            decoded = self._packed.byte_decoder.decode(features, tokens, room, numbers, numbers, return_logits=True)
            if bool((decoded.counts < 0).any()):
                raise FloatingPointError("NaN or infinite logits; the model's weights are damaged or too large")
            assert decoded.logits is not None
            return decoded.logits
        found, rows = features.new_full((P, S, VOCAB_SIZE), torch.nan), torch.arange(P, device=features.device)
        if self._on_device is not None:
            weights, decoder = self._on_device.bytes, self._on_device.graphed
            cache = decoder.new_cache(P)
            for s in range(count):
                inputs = features if s == 0 else F.embedding(tokens[:, s - 1].long(), weights.wte)
                found[:, s] = decoder.logits(inputs + weights.wpe[s], *cache, s)
            if not bool(found[:, :count].isfinite().all()):
                raise FloatingPointError("NaN or infinite logits; the model's weights are damaged or too large")
            return found
        below = EagerDecoder(self._model, P, 1)
        for s in range(count):
            inputs = features if s == 0 else below.wte[tokens[:, s - 1].long()]
            found[:, s] = below.logits(inputs, rows, torch.full_like(rows, s))
        return found


def _unrecorded(step: Replay) -> Replay:
    # A graph of the patch decoder is one cache's, and caches here live for one batch of documents.
    return step


class ByteStreams:
    """Documents that come byte by byte: the logits of each one's next byte, then the byte that it turns out to be.

    `logits` gives the bits that `score` gives for the same bytes at once. It computes the bytes of a patch before the
    next one again, so that both take the very same steps.

    Args:
        model: as for `score`; its weights are taken as they are now.
        extensions: one for each document.
        length: most bytes of a document; at most `context_bytes`, which None means.
        precision: as for `score`.

    Raises:
        TypeError, ValueError: a wrong argument.
        MemoryError: no memory for the keys and values.
    """

    def __init__(
        self, model: BGPT, extensions: Sequence[str], *, length: int | None = None, precision: str | None = None
    ) -> None:
        documents = [(extension, b"") for extension in extensions]
        _check(model, documents, "ByteStreams")
        room = context_bytes(model.config)
        self.length = room if length is None else length
        if not 0 <= self.length <= room:
            raise ValueError(f"ByteStreams: length: expected 0…{room}, the bytes of a context, got {length}")
        self._S = model.config.patch_size
        self._bytes = [bytearray() for _ in documents]
        self._asked = [-1] * len(documents)  # how long each was when its logits were asked for
        self._decoders = _Decoders(model, precision)
        self._above = self._decoders.above(max(len(documents), 1), -(-self.length // self._S))
        packed = PackedPatches.from_bytes(documents, model.config, end_of_file=False)
        self._extensions = packed.patches.tolist()
        self._features: list[Tensor] = [torch.empty(0, device=self._decoders.device)] * len(documents)

    def __len__(self) -> int:
        return len(self._bytes)

    def content(self, row: int) -> bytes:
        """The bytes of a document so far."""
        return bytes(self._bytes[row])

    @torch.inference_mode()
    def logits(self, rows: Sequence[int]) -> Tensor:
        """float32 [len(rows), V]: of the next token of each of these documents, which may stand at different bytes.

        Raises:
            ValueError: a document is as long as it may be, or comes twice.
        """
        if len(set(rows)) != len(rows):
            raise ValueError(f"ByteStreams.logits: rows: expected each document once, got {list(rows)!r:.80}")
        for row in rows:
            if len(self._bytes[row]) >= self.length:
                raise ValueError(f"ByteStreams.logits: document {row} has all the {self.length} bytes it may have")
        S, device = self._S, self._decoders.device
        lengths = [len(self._bytes[row]) for row in rows]
        for row, length in zip(rows, lengths, strict=True):
            self._asked[row] = length
        fresh = [row for row, length in zip(rows, lengths, strict=True) if length % S == 0]
        if fresh:
            patches = [list(self._bytes[row][-S:]) if self._bytes[row] else self._extensions[row] for row in fresh]
            positions = torch.tensor([len(self._bytes[row]) // S for row in fresh], device=device)
            new = torch.tensor(patches, dtype=torch.int16, device=device)
            features = self._above.features(new, torch.tensor(fresh, device=device), positions)
            for row, feature in zip(fresh, features, strict=True):
                self._features[row] = feature
        if not rows:
            return torch.empty(0, VOCAB_SIZE, dtype=torch.float32, device=device)
        places = [length % S for length in lengths]
        begun = [self._bytes[row][length - place :] for row, length, place in zip(rows, lengths, places, strict=True)]
        tokens = torch.tensor([[*part, *[0] * (S - len(part))] for part in begun], dtype=torch.int16, device=device)
        features = torch.stack([self._features[row] for row in rows])
        logits = self._decoders.logits(features, tokens, max(places) + 1)
        return logits[torch.arange(len(rows), device=device), places]

    def append(self, rows: Sequence[int], values: Iterable[int]) -> None:
        """Puts a byte behind each of these documents, whose logits must have been asked for since their last byte.

        Raises:
            ValueError: a value that is no byte, or a document whose logits were not asked for.
        """
        for row, value in zip(rows, values, strict=True):
            if self._asked[row] != len(self._bytes[row]):
                raise ValueError(
                    "ByteStreams.append: expected documents whose logits were asked for since their last byte, got "
                    f"document {row}"
                )
            self._bytes[row].append(value)


def score_files(
    model: BGPT,
    paths: Sequence[str | os.PathLike[str]],
    *,
    overlong: Literal["error", "head"] = "error",
    max_batch: int = 16,
    precision: str | None = None,
) -> list[FileScore]:
    """Minus the log-likelihood of many files, by the probabilities that generation draws from.

    Args:
        model: as for `score`.
        paths: regular files; their extensions tell the model what they are.
        overlong: of a file over the context, an error, or the head alone, without its end; `FileScore.is_cut` tells.
        max_batch: files side by side; changes no bit of the result.
        precision: as for `score`.

    Returns:
        A FileScore a file, in the order of the paths.

    Raises:
        TypeError, ValueError: a wrong argument, or a file over the context; it is named.
        OSError: a file could not be read.
    """
    if overlong not in ("error", "head"):
        raise ValueError(f'score_files: overlong: expected "error" or "head", got {overlong!r}')
    names = [os.fspath(path) for path in paths]
    _check(model, [], "score_files", max_batch)
    decoders, room = _Decoders(model, precision), context_bytes(model.config)
    found = []
    for start in range(0, len(names), max_batch):
        documents, sizes = [], []
        for name in names[start : start + max_batch]:
            with open(name, "rb") as file:
                content = file.read(room + 1)
                sizes.append(os.fstat(file.fileno()).st_size)
            if len(content) > room and overlong == "error":
                raise ValueError(
                    f"score_files: {name!r}: expected at most {room} bytes, the context of the model, got {sizes[-1]}; "
                    'use overlong="head", or a model with a longer context'
                )
            documents.append((extension_of(name), content[:room]))
        for offset, rows in enumerate(_score(decoders, documents, max_batch)):
            content = documents[offset][1]
            tokens = torch.tensor([*content, EOP][: len(rows)], device=rows.device)
            nats = -rows.double().log_softmax(1).gather(1, tokens[:, None]).sum()
            found.append(FileScore(names[start + offset], float(nats), len(content), sizes[offset]))
    return found


def _check(model: object, documents: Sequence[tuple[str, bytes]], name: str, max_batch: object = 1) -> None:
    if not isinstance(model, BGPT):
        raise TypeError(f"{name}: model: expected a BGPT, got {type(model).__name__}")
    if isinstance(documents, str | bytes) or not isinstance(documents, Sequence):
        raise TypeError(f"{name}: documents: expected a list of (extension, bytes), got {type(documents).__name__}")
    if not isinstance(max_batch, int) or isinstance(max_batch, bool) or max_batch < 1:
        raise ValueError(f"{name}: max_batch: expected an int of at least 1, got {max_batch!r}")
    room = context_bytes(model.config)
    for place, (_, content) in enumerate(documents):
        if len(content) > room:
            raise ValueError(
                f"{name}: documents[{place}]: expected at most {room} bytes, the context of the model, got "
                f"{len(content)}; cut it into pieces, or use a model with a longer context"
            )
