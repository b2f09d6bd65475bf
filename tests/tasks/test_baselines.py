"""Compressors and byte counters, as floors for a model's figures."""

from __future__ import annotations

import gzip
import json
import lzma
import math
from pathlib import Path

import numpy as np
import pytest

from bgpt_fast.cli.main import main
from bgpt_fast.tasks.baselines import classify_by_bytes, compression_scores, entropy_of_bytes


def test_bits_are_those_of_the_compressors() -> None:
    files = [b"hello " * 100, b"world" * 3, b""]
    found = compression_scores(files, compressors=["gzip", "xz"])
    size = sum(map(len, files))
    assert found[0].alone == 8 * sum(len(gzip.compress(file, 9, mtime=0)) for file in files) / size
    assert found[1].together == 8 * len(lzma.compress(b"".join(files), preset=9 | lzma.PRESET_EXTREME)) / size
    assert found[0].after_training is None
    assert (found[0].files, found[0].num_bytes) == (3, size)


def test_training_files_help_where_they_are_alike() -> None:
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
def test_byte_counts_tell_classes_apart(method: str) -> None:
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


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for side, seed in (("train", 0), ("test", 1)):
        (tmp_path / side).mkdir()
        for index, (label, content) in enumerate(files(seed, 5)):
            (tmp_path / side / f"{label}_{index}.bin").write_bytes(content)
    words = ["data", "baselines", str(tmp_path / "test"), "--train", str(tmp_path / "train")]
    assert main([*words, "--output", str(tmp_path / "b.json")]) == 0
    assert "gzip -9" in capsys.readouterr().out
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["files"] == 10
    assert found["classifiers"]["nearest-centroid"]["documents"] == 10
    assert 6 < found["entropy_of_bytes"] < math.log2(200)
    assert main(["data", "baselines", str(tmp_path / "test"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classifiers"] == {}
