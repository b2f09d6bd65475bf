"""Baselines for a byte model: general-purpose compressors, and classifiers on byte counts."""

from __future__ import annotations

import functools
import lzma
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from bgpt_fast.tasks.classification import ClassificationReport, score
from bgpt_fast.tasks.media.errors import optional

Compressor = Literal["gzip", "xz", "zstd"]
ByteClassifier = Literal["gradient-boosting", "nearest-centroid"]
_LARGEST_WINDOW = 1 << 26


@dataclass(frozen=True)
class CompressionScore:
    """Bits per byte of a set of files by a compressor.

    Args:
        compressor: its name and level.
        files: number of files.
        num_bytes: their total size.
        alone: bits per byte with each file compressed separately, including the container format.
        together: bits per byte of all files concatenated into one stream.
        after_training: bits per byte of that stream if it follows the training files, to which the compressor can refer
            within its window. None without training files.
    """

    compressor: str
    files: int
    num_bytes: int
    alone: float
    together: float
    after_training: float | None

    def to_dict(self) -> dict[str, Any]:
        """All figures, JSON-ready."""
        return asdict(self)


class Compressors:
    """Compresses files, added one by one, at the highest level: each separately, and all as one stream.

    In the stream a file can refer to earlier ones, as a model can to its training data.

    Args:
        compressors: their names; None means gzip and xz, and zstd if the package zstandard is installed.
        window: bytes of earlier content that xz can refer to in the stream; it needs ten times as much memory.

    Raises:
        ValueError: an unknown compressor.
        ImportError: zstd without zstandard.
    """

    def __init__(self, compressors: Sequence[Compressor] | None = None, *, window: int = 1 << 23) -> None:
        self._codecs = _codecs(compressors)
        self._streams = [codec.stream(window) for codec in self._codecs]
        self._alone = [0] * len(self._codecs)
        self._solid = [0] * len(self._codecs)
        self._bytes = 0

    def add(self, content: bytes) -> dict[str, int]:
        """Compresses a file; returns its compressed size in bytes (container included) by compressor."""
        alone: dict[str, int] = {codec.name: codec.size(content) for codec in self._codecs}
        for place, (size, stream) in enumerate(zip(alone.values(), self._streams, strict=True)):
            self._alone[place] += size
            self._solid[place] += len(stream.compress(content))
        self._bytes += len(content)
        return alone

    def bits_per_byte(self) -> dict[str, float]:
        """Ends the streams; returns bits per byte of separate files as "gzip", and of the stream as "gzip_solid"."""
        for place, stream in enumerate(self._streams):
            self._solid[place] += len(stream.flush())
        sizes: dict[str, int] = dict(zip((codec.name for codec in self._codecs), self._alone, strict=True))
        solid = {f"{codec.name}_solid": size for codec, size in zip(self._codecs, self._solid, strict=True)}
        return {name: 8 * size / max(self._bytes, 1) for name, size in {**sizes, **solid}.items()}


class _Stream(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class _Codec(NamedTuple):
    """A compressor: name, name with level, a function that returns a compressed size, one that opens a stream."""

    name: Compressor
    label: str
    size: Callable[[bytes], int]
    stream: Callable[[int], _Stream]


def compression_scores(
    files: Iterable[bytes],
    training: Iterable[bytes] = (),
    compressors: Sequence[Compressor] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[CompressionScore]:
    """Returns the bits per byte of files under general-purpose compressors at their highest levels.

    Compare a model that was trained on such files with `after_training`, others with `alone`.

    Args:
        files: contents, with at least one byte in total.
        training: contents of the training files.
        compressors: their names; None means gzip and xz, and zstd if the package zstandard is installed.
        progress: called with the numbers of files compressed and to compress, by each compressor.

    Raises:
        ValueError: no byte, or an unknown compressor.
        ImportError: zstd without zstandard.
    """
    contents = list(files)
    size = sum(map(len, contents))
    if not size:
        raise ValueError("compression_scores: files: expected a byte or more, got none")
    training_stream = b"".join(training)
    stream = b"".join(contents)
    scores = []
    codecs = _codecs(compressors)
    for place, codec in enumerate(codecs):
        alone = 0
        for done, content in enumerate(contents, place * len(contents) + 1):
            alone += codec.size(content)
            if progress is not None:
                progress(done, len(codecs) * len(contents))
        together = codec.size(stream)
        after = codec.size(training_stream + stream) - codec.size(training_stream) if training_stream else None
        scores.append(
            CompressionScore(
                compressor=codec.label,
                files=len(contents),
                num_bytes=size,
                alone=8 * alone / size,
                together=8 * together / size,
                after_training=None if after is None else 8 * after / size,
            )
        )
    return scores


def entropy_of_bytes(files: Iterable[bytes]) -> float:
    """Returns the entropy of the byte values, in bits per byte: the lower bound of a code without context.

    Raises:
        ValueError: no byte.
    """
    counts = sum((byte_counts(content) for content in files), np.zeros(256))
    if not counts.sum():
        raise ValueError("entropy_of_bytes: files: expected a byte or more, got none")
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def byte_counts(content: bytes) -> NDArray[np.float64]:
    """Returns float64 [256]: the number of occurrences of each byte value."""
    return np.bincount(np.frombuffer(content, np.uint8), minlength=256).astype(np.float64)


def classify_by_bytes(
    training: Sequence[tuple[str, bytes]],
    test: Sequence[tuple[str, bytes]],
    method: ByteClassifier = "gradient-boosting",
    *,
    seed: int = 0,
) -> ClassificationReport:
    """Scores a classifier whose features are the relative frequencies of the byte values in a file.

    Args:
        training: (class, content) of the training files.
        test: (class, content) of the files to score, all of classes of `training`.
        method: "gradient-boosting" is scikit-learn's on histograms, with its defaults; "nearest-centroid" takes the
            class with the nearest mean in Hellinger distance, and needs no package.
        seed: seed of gradient boosting, and of the report's bootstrap.

    Raises:
        ValueError: no files, a single class, or a test file of another class.
        ImportError: gradient boosting without scikit-learn.
    """
    index = class_numbers("classify_by_bytes", training, test)
    labels = list(index)
    (x, y), (features, truth) = (_features(files, index) for files in (training, test))
    if method == "nearest-centroid":
        centroids = np.stack([x[y == number].mean(0) for number in range(len(labels))])
        predicted = ((features[:, None] - centroids) ** 2).sum(2).argmin(1)
    elif method == "gradient-boosting":
        ensemble = optional("sklearn.ensemble", "baselines", "gradient boosting")
        predicted = ensemble.HistGradientBoostingClassifier(random_state=seed).fit(x, y).predict(features)
    else:
        raise ValueError(f'method: expected "gradient-boosting" or "nearest-centroid", got {method!r}')
    return score(labels, truth.tolist(), predicted.tolist(), seed=seed)


def class_numbers(
    function: str, training: Sequence[tuple[str, bytes]], test: Sequence[tuple[str, bytes]]
) -> dict[str, int]:
    """Returns the classes of the training files, sorted, with their numbers.

    Raises:
        ValueError: no test files, a single class, or a test file of another class; names `function`.
    """
    labels = sorted({label for label, _ in training})
    unknown = {label for label, _ in test} - set(labels)
    if len(labels) < 2 or unknown or not test:
        raise ValueError(
            f"{function}: expected training files of two classes or more and test files of these, got classes "
            f"{labels} and {len(test)} test files, {sorted(unknown)} unknown"
        )
    return {label: number for number, label in enumerate(labels)}


def _features(
    files: Sequence[tuple[str, bytes]], index: dict[str, int]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    shares = [byte_counts(content) / max(len(content), 1) for _, content in files]
    return np.sqrt(np.stack(shares)), np.array([index[label] for label, _ in files], np.int64)


def _codecs(names: Sequence[Compressor] | None) -> list[_Codec]:
    if names is None:
        return [*_codecs(["gzip", "xz"]), *_zstd_if_installed()]
    codecs = []
    for name in names:
        if name == "gzip":
            codecs.append(_Codec("gzip", "gzip -9", _gzip_size, _gzip))
        elif name == "xz":
            codecs.append(_Codec("xz", "xz -9e", _xz_size, _xz))
        elif name == "zstd":
            codecs.append(_zstd_codec())
        else:
            raise ValueError(f"compressors: expected some of gzip, xz and zstd, got {name!r}")
    return codecs


def _zstd_codec() -> _Codec:
    zstandard = optional("zstandard", "baselines", "zstd")
    new = functools.partial(zstandard.ZstdCompressor, level=19)
    # A stream needs its own compressor, since compressing another file would reset it.
    return _Codec("zstd", "zstd -19", functools.partial(_size, new().compress), lambda window: new().compressobj())


def _gzip(window: int) -> _Stream:
    return zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)


def _gzip_size(content: bytes) -> int:
    return len(zlib.compress(content, 9, 16 + zlib.MAX_WBITS))


def _xz(window: int) -> _Stream:
    size = min(max(window, 1 << 12), _LARGEST_WINDOW)
    chain = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": size}]
    return lzma.LZMACompressor(filters=chain)


def _xz_size(content: bytes) -> int:
    # A dictionary longer than the content changes nothing, and takes a second to allocate.
    stream = _xz(len(content))
    return len(stream.compress(content)) + len(stream.flush())


def _size(compress: Callable[[bytes], bytes], content: bytes) -> int:
    return len(compress(content))


def _zstd_if_installed() -> list[_Codec]:
    try:
        return _codecs(["zstd"])
    except ImportError:
        return []
