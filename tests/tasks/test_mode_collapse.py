"""Repetition within and between files, by worked examples and against counting."""

from __future__ import annotations

import random

import pytest

from bgpt_fast.tasks.mode_collapse import ORDERS, TAIL, WINDOW, diversity, repetition


def test_random_bytes_have_no_signs_of_collapse() -> None:
    stream = random.Random(0)
    files = [stream.randbytes(700) for _ in range(20)]
    result = diversity(files)
    assert result.signs == ()
    assert result.copies == 0
    assert result.shared == 0
    assert result.distinct[4] > 0.999
    assert result.loop_share < 0.02


@pytest.mark.parametrize("period", [1, 2, 3, 7, 64, 256])
def test_loop_period_at_the_end(period: int) -> None:
    stream = random.Random(period)
    motif = bytes([1, *stream.randbytes(period - 1)]) if period > 1 else b"x"
    start = stream.randbytes(99) + bytes([motif[-1] ^ 0xFF])
    data = start + (motif * 900)[:900]
    result = repetition(data)
    assert result.loop_period == period
    assert result.loop_share == pytest.approx(900 / 1000)
    # Beyond the longest period, and with less than two rounds, it is none.
    assert repetition(stream.randbytes(400) + motif).loop_share < 0.02
    assert repetition(data[:100] + stream.randbytes(300)).loop_share < 0.02


@pytest.mark.parametrize("size", [0, 1, 2, 5, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW + 7])
def test_distinct_ngrams_by_counting(size: int) -> None:
    stream = random.Random(size)
    data = bytes(stream.choice(b"abc") for _ in range(size))
    result = repetition(data)
    for n in ORDERS:
        total = 0.0
        for start in range(0, max(size, 1), WINDOW):
            window = data[start : start + WINDOW]
            grams = [window[i : i + n] for i in range(len(window) - n + 1)]
            total += (len(set(grams)) / len(grams) if grams else 1.0) * (len(window) if size else 1)
        assert result.distinct[n] == pytest.approx(total / max(size, 1))
    longest = max((len(run) for run in _runs(data)), default=0)
    assert result.longest_run == longest


def test_loops_of_long_files_are_searched_at_the_end() -> None:
    data = random.Random(0).randbytes(100_000)
    assert repetition(data + b"ab" * (TAIL // 2)).loop_share == 1.0
    assert repetition(data + b"ab" * (TAIL // 4)).loop_share == pytest.approx(0.5, abs=1e-4)


def _runs(data: bytes) -> list[bytes]:
    runs: list[bytes] = []
    for byte in data:
        if runs and runs[-1][-1] == byte:
            runs[-1] += bytes([byte])
        else:
            runs.append(bytes([byte]))
    return runs


def test_copies_and_shared_parts() -> None:
    stream = random.Random(1)
    one, two, three = (stream.randbytes(200) for _ in range(3))
    result = diversity([one, two, one, one])
    assert result.copies == pytest.approx(2 / 4)
    assert result.shared == pytest.approx(3 / 4)
    assert any("8-grams are in other files" in sign for sign in result.signs)
    half = diversity([one + two, one + three])
    assert half.copies == 0
    assert half.shared == pytest.approx(193 / 393)
    assert diversity([one] * 5).signs[0] == "80% of the files equal an earlier one"


def test_signs_need_more_repetition_than_real_files() -> None:
    stream = random.Random(2)
    header = stream.randbytes(400)
    real = diversity([header + stream.randbytes(200) for _ in range(10)])
    assert real.signs
    same_kind = diversity([header + stream.randbytes(200) for _ in range(10)], real)
    assert same_kind.signs == ()
    few = [bytes(stream.choice(b"ab") for _ in range(600)) for _ in range(10)]
    collapsed = diversity(few, real)
    assert any("distinct 4-grams" in sign for sign in collapsed.signs)
    loops = diversity([stream.randbytes(60) + b"la" * 300 for _ in range(10)], real)
    assert any("loops by half or more (real files: 0%)" in sign for sign in loops.signs)


def test_empty_and_tiny_files() -> None:
    with pytest.raises(ValueError, match="expected at least one"):
        diversity([])
    result = diversity([b""])
    assert result.signs == ()
    assert result.to_dict()["distinct_8"] == 1.0
    assert repetition(b"aa").loop_share == 1.0
