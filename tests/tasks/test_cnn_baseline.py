"""The small CNN: it learns shapes in pixels and order in bytes, and says what it cannot take."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bgpt_fast.tasks.baselines import classify_by_bytes
from bgpt_fast.tasks.cnn_baseline import _Bytes, _Documents, classify_by_cnn


def in_order(seed: int, count: int) -> list[tuple[str, bytes]]:
    """Two classes with the same bytes: "ab" again and again among noise, and "ba" further apart."""
    draw = np.random.default_rng(seed)
    files = []
    for _ in range(count):
        for label, motif in (("pairs", b"aabb"), ("fours", b"aaaabbbb")):
            size = int(draw.integers(5, 12)) * 8
            start = int(draw.integers(0, 8))
            files.append((label, (motif * 200)[start : start + size]))
    return files


def bars(seed: int, count: int) -> list[tuple[str, bytes]]:
    """Images with a bar that lies or stands."""
    pytest.importorskip("PIL")
    from PIL import Image

    from bgpt_fast.tasks.media.images import write_bmp

    draw = np.random.default_rng(seed)
    files = []
    for _ in range(count):
        for label in ("lying", "standing"):
            pixels = draw.integers(0, 60, (12, 12, 3), dtype=np.uint8)
            place = int(draw.integers(0, 11))
            pixels[place : place + 2] += 150
            files.append((label, write_bmp(Image.fromarray(pixels if label == "lying" else pixels.swapaxes(0, 1)))))
    return files


@pytest.mark.parametrize("make", [in_order, bars])
def test_it_learns_classes_with_equal_byte_counts(make: object) -> None:
    train, test = make(0, 40), make(1, 10)  # type: ignore[operator]
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    report = classify_by_cnn(train, test, steps=40)
    assert torch.random.get_rng_state().equal(before)
    assert report.documents == 20
    assert report.accuracy > 0.9
    assert classify_by_bytes(train, test, "nearest-centroid").accuracy < 0.8
    first, second = sorted({label for label, _ in test})
    turned = [(second if label == first else first, content) for label, content in test]
    again = classify_by_cnn(train, turned, steps=40)
    assert again.correct == 20 - report.correct, "the same network, other labels"


def test_a_document_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    network = _Bytes(3).eval()
    rows = [np.frombuffer(content, np.uint8) for content in (b"", b"a", b"hello world", bytes(range(100)))]
    together = network(_Documents(None, rows).batch(np.arange(4)))
    for place, row in enumerate(rows):
        alone = network(_Documents(None, [row]).batch(np.arange(1)))
        assert torch.allclose(alone[0], together[place], atol=1e-6)
    assert together.isfinite().all()
    assert not torch.allclose(together[2], together[3], atol=1e-3)


def test_a_false_bmp_is_classified_by_bytes() -> None:
    pytest.importorskip("PIL")
    files = [(label, b"BM" + bytes([value] * 20)) for label, value in (("low", 3), ("high", 200)) for _ in range(10)]
    assert classify_by_cnn(files, files, steps=40).accuracy == 1


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="two classes or more"):
        classify_by_cnn([("a", b"1")], [("a", b"1")])
    with pytest.raises(ValueError, match=r"\['c'\] unknown"):
        classify_by_cnn([("a", b"1"), ("b", b"2")], [("c", b"1")])
    with pytest.raises(ValueError, match="steps: expected at least 1"):
        classify_by_cnn([("a", b"1"), ("b", b"2")], [("a", b"1")], steps=0)
