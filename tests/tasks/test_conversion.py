"""Scores of converted files."""

from __future__ import annotations

import itertools
import json
import lzma
import math
import random
import shutil
from pathlib import Path

import pytest
import torch
from support.media import midi

from bgpt_fast import BGPT, PackedPatches
from bgpt_fast.data import DataError
from bgpt_fast.tasks.conversion import Conversion, evaluate_conversion, match_notes
from bgpt_fast.tasks.conversion_likelihood import evaluate_pairs
from bgpt_fast.tasks.music import Note

SCALE = [(480 * index, 480, 60 + index) for index in range(8)]


def score(predicted: bytes, truth: bytes, name: str = "a.mid", **options: float):
    return evaluate_conversion([Conversion(name, predicted, truth)], **options)


def test_the_true_files_have_full_scores() -> None:
    report = score(midi(SCALE), midi(SCALE))
    assert (report.exact, report.decoding) == (1, 1)
    assert report.notes is not None
    assert (report.notes.precision, report.notes.recall, report.notes.f1) == (1, 1, 1)


def test_equal_music_need_not_be_equal_bytes() -> None:
    # Twice as slow, half as many ticks.
    other = midi([(onset // 2, length // 2, pitch) for onset, length, pitch in SCALE], tempo=1_000_000)
    report = score(other, midi(SCALE))
    assert report.exact == 0
    assert report.notes is not None
    assert report.notes.f1 == 1


@pytest.mark.parametrize(
    ("wrong", "matched"),
    [
        (SCALE[:5], 5),
        ([*SCALE, (0, 480, 90)], 8),
        ([(onset, length, pitch + 1) for onset, length, pitch in SCALE], 0),
        ([(onset + 40, length, pitch) for onset, length, pitch in SCALE], 8),
        ([(onset + 60, length, pitch) for onset, length, pitch in SCALE], 0),
        ([], 0),
    ],
)
def test_notes_right(wrong: list[tuple[int, int, int]], matched: int) -> None:
    """40 ticks are 42 ms, 60 are 63."""
    report = score(midi(wrong), midi(SCALE))
    notes = report.notes
    assert notes is not None
    assert (notes.matched, notes.predicted, notes.true) == (matched, len(wrong), 8)
    assert notes.precision == (matched / len(wrong) if wrong else None)
    assert notes.recall == matched / 8
    assert notes.f1 == 2 * matched / (len(wrong) + 8)


def test_the_onset_tolerance_is_an_argument() -> None:
    late = midi([(onset + 60, length, pitch) for onset, length, pitch in SCALE])
    assert score(late, midi(SCALE), onset_tolerance=0.0625).notes.matched == 8
    assert score(midi(SCALE), midi(SCALE), onset_tolerance=0).notes.matched == 8
    with pytest.raises(ValueError, match="onset_tolerance"):
        score(late, late, onset_tolerance=-1)


def test_a_file_that_does_not_decode_has_no_right_note() -> None:
    truth = midi(SCALE)
    report = score(truth[:-9], truth)
    assert (report.exact, report.decoding) == (0, 0)
    assert (report.notes.matched, report.notes.predicted, report.notes.true) == (0, 0, 8)
    assert report.files[0].bytes_right == len(truth) - 9


def test_no_note_is_matched_twice() -> None:
    one, many = [Note(0, 1, 60)], [Note(0, 1, 60)] * 3
    assert match_notes(many, one, 0.1).matched == 1
    assert match_notes(one, many, 0.1).matched == 1
    assert match_notes([], [], 0.1).f1 is None


@pytest.mark.parametrize("seed", range(20))
def test_the_matching_is_the_largest(seed: int) -> None:
    draw = random.Random(seed)
    ours, theirs = ([Note(draw.randrange(12) / 10, 9, 60) for _ in range(draw.randrange(6))] for _ in range(2))

    def best(left: list[Note], right: list[Note]) -> int:
        short, long = sorted((left, right), key=len)
        return max(
            sum(abs(a.onset - b.onset) <= 0.2 + 1e-9 for a, b in zip(short, order, strict=False))
            for order in itertools.permutations(long)
        )

    assert match_notes(ours, theirs, 0.2).matched == best(ours, theirs)


def test_several_files_together() -> None:
    truth = midi(SCALE)
    report = evaluate_conversion(
        [Conversion("a.mid", truth, truth), Conversion("b.mid", b"", truth), Conversion("c.txt", b"ab", b"ac")]
    )
    assert report.exact == 1 / 3
    assert report.decoding == 2 / 3
    assert report.notes is not None
    assert (report.notes.matched, report.notes.true) == (8, 16)
    assert report.mean_file_f1 == 0.5
    assert report.files[2].notes is None
    assert report.files[2].bytes_right == 1
    assert report.bytes_right == (len(truth) + 1) / (2 * len(truth) + 2)
    assert json.loads(json.dumps(report.to_dict()))["by_file"][1]["decodes"] is False
    assert dict(report.rows())["notes right: F1"] == "66.67 %"
    assert dict(report.rows())["right to the last byte"] == f"33.33 % (1 of {len(report.files)})"
    assert score(b"a", b"a", "a.bin").decoding is None
    with pytest.raises(ValueError, match="at least one"):
        evaluate_conversion([])


@pytest.mark.skipif(shutil.which("abc2midi") is None, reason="abc2midi is not installed")
def test_notes_of_abc_come_from_abc2midi() -> None:
    truth = b"X:1\nL:1/8\nK:C\nCDEF GABc|\n"
    report = score(b"X:1\nL:1/8\nK:C\nC D E F G A B d|\n", truth, "a.abc")
    assert report.exact == 0
    assert report.notes is not None
    assert (report.notes.matched, report.notes.true) == (7, 8)
    assert score(b"nothing", truth, "a.abc").notes.predicted == 0


def write_pairs(folder: Path, sizes: list[tuple[int, int]]) -> list[tuple[bytes, bytes]]:
    draw = random.Random(0)
    folder.mkdir()
    contents = [(draw.randbytes(first), draw.randbytes(second)) for first, second in sizes]
    for number, pair in enumerate(contents):
        for extension, content in zip(("abc", "mid"), pair, strict=True):
            (folder / f"{number}.{extension}").write_bytes(content)
    return contents


def target_nats(model: BGPT, source: tuple[str, bytes], target: tuple[str, bytes]) -> tuple[float, int]:
    """The nats of all positions behind the target's extension, of the pair by itself; and how many positions."""
    first = PackedPatches.from_bytes([source], model.config, end_of_file=False)
    second = PackedPatches.from_bytes([target], model.config)
    whole = torch.cat([first.patches, second.patches])
    with torch.no_grad():
        every = model(PackedPatches(whole, torch.tensor([0, len(whole)], dtype=torch.int32)))
    scored = every.nats[every.indices > first.num_patches]
    return float(scored.double().sum()), scored.numel()


def test_bits_of_the_target_part(tmp_path: Path, tiny_model: BGPT) -> None:
    # The last pair is over the context of 24 patches.
    contents = write_pairs(tmp_path / "pairs", [(5, 9), (8, 8), (1, 20), (3, 1), (70, 40)])[:-1]
    (tmp_path / "pairs/alone.abc").write_bytes(b"no partner")
    expected = {
        "abc->mid": [target_nats(tiny_model, ("abc", first), ("mid", second)) for first, second in contents],
        "mid->abc": [target_nats(tiny_model, ("mid", second), ("abc", first)) for first, second in contents],
    }
    for batch in (1, 30, 2048):
        reports = evaluate_pairs(tiny_model, tmp_path / "pairs", "abc&mid", patches_per_batch=batch)
        assert list(reports) == list(expected)
        for direction, report in reports.items():
            nats = sum(one[0] for one in expected[direction])
            size = sum(len(pair[direction == "abc->mid"]) for pair in contents)
            assert report.total.nats == pytest.approx(nats, rel=1e-5)
            assert report.total.positions == sum(one[1] for one in expected[direction])
            assert report.total.per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-5)
            assert report.total.bytes == size
            assert report.skipped == {"pair over the context": 1, "no partner": 1}
            for file, (own, _) in zip(report.files, expected[direction], strict=True):
                assert file.path.endswith(direction[-3:])
                assert file.scores.nats == pytest.approx(own, rel=1e-5)


def test_only_the_target_is_counted(tmp_path: Path, tiny_model: BGPT) -> None:
    S = tiny_model.config.patch_size
    contents = write_pairs(tmp_path / "pairs", [(5, 9), (30, 8)])
    (report,) = evaluate_pairs(tiny_model, tmp_path / "pairs", "abc->mid").values()
    # Places count from the target's own begin: patches of 9 and 8 bytes, and an end of file each.
    assert [scores.bytes for scores in report.by_patch] == [2 * S, 2 * S, 1]
    assert report.end_of_file.positions == 2 * S
    assert report.decoders.patches == 5
    assert report.files[1].compressed["xz"] == len(lzma.compress(contents[1][1], preset=6))
    # What stands before the target is read: another source, other bits.
    (tmp_path / "pairs/0.abc").write_bytes(b"other")
    (other,) = evaluate_pairs(tiny_model, tmp_path / "pairs", "abc->mid").values()
    assert other.files[0].scores.nats != report.files[0].scores.nats
    assert other.files[1].scores.nats == pytest.approx(report.files[1].scores.nats, rel=1e-6)


def test_no_pairs_are_named(tmp_path: Path, tiny_model: BGPT) -> None:
    write_pairs(tmp_path / "pairs", [(90, 90)])
    for model, conversion, size, error, message in (
        (tiny_model, "abc->mid", 64, DataError, "expected pairs of abc and mid files within the context of 24 patches"),
        (tiny_model, "abc->mid", 0, ValueError, "patches_per_batch"),
        ("model", "abc->mid", 64, TypeError, "expected a BGPT"),
        (tiny_model, "abc", 64, ValueError, "two different extensions"),
    ):
        with pytest.raises(error, match=message):
            evaluate_pairs(model, tmp_path / "pairs", conversion, patches_per_batch=size)  # type: ignore[arg-type]
