"""Compressors and byte counters, as floors for a model's figures."""

from __future__ import annotations

import functools
import gzip
import json
import lzma
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.cli import CommandLine

from bgpt_fast.cli import data_baselines
from bgpt_fast.tasks.baselines import Compressors, classify_by_bytes, compression_scores, entropy_of_bytes
from bgpt_fast.tasks.cnn_baseline import classify_by_cnn


def test_bits_are_those_of_the_compressors() -> None:
    files = [b"hello " * 100, b"world" * 3, b""]
    result = compression_scores(files, compressors=["gzip", "xz"])
    size = sum(map(len, files))
    assert result[0].alone == 8 * sum(len(gzip.compress(file, 9, mtime=0)) for file in files) / size
    assert result[1].together == 8 * len(lzma.compress(b"".join(files), preset=9 | lzma.PRESET_EXTREME)) / size
    assert result[0].after_training is None
    assert (result[0].files, result[0].num_bytes) == (3, size)


def test_files_one_by_one_have_the_scores_of_all_together() -> None:
    draw = np.random.default_rng(0)
    letters = np.frombuffer(b"etaoin shrdlu", np.uint8)
    files = [draw.choice(letters, size).tobytes() for size in (3000, 1, 0, 5000, 40_000)]
    result = compression_scores(files)
    together = Compressors()
    alone = [together.add(file) for file in files]
    bits = together.bits_per_byte()
    names = [one.compressor.split()[0] for one in result]
    assert list(bits) == [*names, *(f"{name}_solid" for name in names)]
    size = sum(map(len, files))
    for name, one in zip(names, result, strict=True):
        assert bits[name] == one.alone == 8 * sum(sizes[name] for sizes in alone) / size
        # A stream that does not know its end in advance has a few bytes more.
        assert one.together <= bits[f"{name}_solid"] + 0.002 < one.together + 0.02
    again = files[-1]
    narrow, wide = map(twice(again), (1 << 12, 1 << 20))
    assert wide["xz_solid"] < 0.6 * narrow["xz_solid"], "a window that the first copy has left"
    assert Compressors(["gzip"]).bits_per_byte()["gzip"] == 0


def twice(content: bytes) -> Callable[[int], dict[str, float]]:
    """The bits of a content and its copy, by the window."""

    def compress(window: int) -> dict[str, float]:
        compressors = Compressors(["xz"], window=window)
        compressors.add(content)
        compressors.add(content)
        return compressors.bits_per_byte()

    return compress


def test_training_files_help_similar_files() -> None:
    draw = np.random.default_rng(0)
    known, unknown = draw.bytes(5000), draw.bytes(5000)
    pytest.importorskip("zstandard")
    for one in compression_scores([known], [known]):
        assert one.after_training < 0.2 < 8 <= one.alone
    for one in compression_scores([unknown], [known]):
        assert one.after_training > 7.9


def test_entropy() -> None:
    assert entropy_of_bytes([b"ab" * 50, b""]) == 1
    assert entropy_of_bytes([bytes(range(256))]) == 8
    assert entropy_of_bytes([b"aaaa"]) == 0
    with pytest.raises(ValueError, match="got none"):
        entropy_of_bytes([b""])
    with pytest.raises(ValueError, match="got none"):
        compression_scores([])
    with pytest.raises(ValueError, match="gzip, xz and zstd"):
        compression_scores([b"a"], compressors=["zip"])  # type: ignore[list-item]


def files(seed: int, count: int) -> list[tuple[str, bytes]]:
    """Two classes of bytes below and above 100, with 40 bytes in common."""
    draw = np.random.default_rng(seed)
    kinds = {"low": (0, 120), "high": (80, 200)}
    return [
        (label, draw.integers(low, high, 200, dtype=np.uint8).tobytes())
        for _ in range(count)
        for label, (low, high) in kinds.items()
    ]


@pytest.mark.parametrize("method", ["nearest-centroid", "gradient-boosting"])
def test_byte_counts_separate_classes(method: str) -> None:
    if method == "gradient-boosting":
        pytest.importorskip("sklearn")
    report = classify_by_bytes(files(0, 100), files(1, 20), method)  # type: ignore[arg-type]
    assert report.documents == 40
    assert report.labels == ("high", "low")
    assert report.accuracy > 0.9
    # Labels that say nothing cannot be learned.
    shuffled = [(("high", "low")[index // 2 % 2], content) for index, (_, content) in enumerate(files(0, 100))]
    assert classify_by_bytes(shuffled, files(1, 20), method).accuracy < 0.8  # type: ignore[arg-type]


def test_wrong_files_are_named() -> None:
    with pytest.raises(ValueError, match="two classes or more"):
        classify_by_bytes([("a", b"1")], [("a", b"1")])
    with pytest.raises(ValueError, match=r"\['c'\] unknown"):
        classify_by_bytes([("a", b"1"), ("b", b"2")], [("c", b"1")])


@pytest.mark.slow
def test_digits_by_their_bytes() -> None:
    """Real images: scikit-learn's 8x8 digits. The grey levels alone tell something, and far from all."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    contents = [
        (str(digit), image.astype(np.uint8).tobytes())
        for digit, image in zip(digits.target, digits.images, strict=True)
    ]
    report = classify_by_bytes(contents[:1200], contents[1200:])
    assert 0.2 < report.accuracy < 0.7


def test_the_command(tmp_path: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    for side, seed in (("train", 0), ("test", 1)):
        (tmp_path / side).mkdir()
        for index, (label, content) in enumerate(files(seed, 5)):
            (tmp_path / side / f"{label}_{index}.bin").write_bytes(content)
    words = ["data", "baselines", tmp_path / "test", "--train", tmp_path / "train"]
    assert "gzip -9" in cli.run(*words, "--output", tmp_path / "b.json").out
    result = json.loads((tmp_path / "b.json").read_text())
    assert result["files"] == 10
    assert result["classifiers"]["nearest-centroid"]["documents"] == 10
    assert 6 < result["entropy_of_bytes"] < math.log2(200)
    monkeypatch.setattr(data_baselines, "classify_by_cnn", functools.partial(classify_by_cnn, steps=2))
    result = cli.json(*words, "--cnn")
    assert result["classifiers"]["CNN"]["documents"] == 10
    assert cli.json("data", "baselines", tmp_path / "test")["classifiers"] == {}
    cli.fails("got 0 classes and 0 files", "data", "baselines", tmp_path / "test", "--cnn")
