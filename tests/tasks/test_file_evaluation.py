"""`evaluate_files` against sums made one document at a time, and against worked examples."""

from __future__ import annotations

import gzip
import json
import lzma
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, random_documents

from bgpt_fast import BGPT, BGPTConfig, PackedPatches
from bgpt_fast.config import EOP
from bgpt_fast.data import DataError, FileSource
from bgpt_fast.files import write_json
from bgpt_fast.metrics import ByteScores
from bgpt_fast.tasks import batch_scores
from bgpt_fast.tasks.batch_scores import BatchScores, score_batch
from bgpt_fast.tasks.evaluation import evaluate_files
from bgpt_fast.training import likelihood_evaluation

SIZES = [1, 2, 3, 4, 5, 9, 16, 33, 64, 87, 88]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, (extension, content) in enumerate(random_documents(3, SIZES)):
        path = tmp_path / f"data/{number:02}{'.' if extension else ''}{extension}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "data"


def counted(nats: torch.Tensor, tokens: torch.Tensor, truth: torch.Tensor) -> list[float]:
    """The five sums, position by position."""
    sums = [0.0] * 5
    for loss, token, true in zip(
        nats.flatten().tolist(), tokens.flatten().tolist(), truth.flatten().tolist(), strict=True
    ):
        sums[0] += loss
        sums[1] += 1
        sums[2] += true != EOP
        sums[3] += token == true
        sums[4] += token == true != EOP
    return sums


def check(result: ByteScores, expected: list[float]) -> None:
    assert result.nats == pytest.approx(expected[0], rel=1e-5)
    assert [result.positions, result.bytes, result.right_positions, result.right_bytes] == expected[1:]


def test_every_sum_is_that_of_single_documents(tiny_model: BGPT, folder: Path) -> None:
    report = evaluate_files(tiny_model, folder, patches_per_batch=60)
    assert [os.path.basename(file.path) for file in report.files] == sorted(os.listdir(folder))
    S = TINY.patch_size
    total, ends = np.zeros(5), np.zeros(5)
    by_extension: dict[str, np.ndarray] = {}
    by_patch, by_byte = np.zeros((TINY.patch_length, 5)), np.zeros((S, 5))
    kinds = {"right": 0, "patch": 0, "byte": 0}
    for file in report.files:
        batch = PackedPatches.from_files([file.path], TINY)
        with torch.no_grad():
            logits = tiny_model.logits(batch)
        truth = batch.patches[1:].long()
        nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), truth, reduction="none")
        tokens = logits.argmax(-1)
        row = counted(nats, tokens, truth)
        check(file.scores, row)
        total += row
        by_extension.setdefault(file.extension, np.zeros(5))[:] += row
        for place in range(len(truth)):
            patch = counted(nats[place], tokens[place], truth[place])
            if bool((truth[place] == EOP).all()):
                ends += patch
                continue
            by_patch[place] += patch
            for s in range(S):
                by_byte[s] += counted(nats[place, s], tokens[place, s], truth[place, s])
            right = (tokens[place] == truth[place]).tolist()
            kinds["right" if all(right) else "byte" if right[0] else "patch"] += 1
    check(report.total, list(total))
    check(report.end_of_file, list(ends))
    assert set(report.by_extension) == set(by_extension) == {"bin", "", "txt", "md"}
    for name, scores in report.by_extension.items():
        check(scores, list(by_extension[name]))
    for place, scores in enumerate(report.by_patch):
        check(scores, list(by_patch[place]))
    assert len(report.by_patch) == -(-max(SIZES) // S)
    for place, scores in enumerate(report.by_byte):
        check(scores, list(by_byte[place]))
    check(report.decoders.first_byte, list(by_byte[0]))
    check(report.decoders.later_bytes, list(by_byte[1:].sum(0)))
    result = report.decoders
    assert [result.right, result.patch_level, result.byte_level] == [kinds["right"], kinds["patch"], kinds["byte"]]
    assert result.patches == sum(kinds.values()) == sum(-(-size // S) for size in SIZES)


def test_agrees_with_the_model_and_with_training(tiny_model: BGPT, folder: Path) -> None:
    report = evaluate_files(tiny_model, folder)
    paths = [file.path for file in report.files]
    likelihood = tiny_model.log_likelihood(PackedPatches.from_files(paths, TINY))
    np.testing.assert_allclose([file.scores.nats for file in report.files], likelihood.nats, rtol=1e-5)
    assert [file.scores.bytes for file in report.files] == likelihood.num_bytes.tolist()
    source = FileSource(folder, TINY, 60, split="eval", eval_share=1.0)
    figures = likelihood_evaluation(list(source.one_pass()))(tiny_model)
    for name in ("loss", "bits_per_position", "bits_per_byte", "bytes"):
        assert report.to_dict()[name] == pytest.approx(figures[name], rel=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_scores_do_not_depend_on_batches_or_chunks(
    tiny_model: BGPT, folder: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate_files(tiny_model, folder)
    monkeypatch.setattr(batch_scores, "CHUNK", chunk)
    parts = evaluate_files(tiny_model, folder, patches_per_batch=1)
    for one, other in zip(whole.files, parts.files, strict=True):
        check(one.scores, [getattr(other.scores, name) for name in ByteScores.COUNTS])
    assert whole.decoders.to_dict()["right_share"] == parts.decoders.to_dict()["right_share"]
    assert whole.baselines == parts.baselines


def test_dropout_is_off_and_the_mode_stays(folder: Path) -> None:
    torch.manual_seed(0)
    model = BGPT(BGPTConfig.from_dict({**TINY.to_dict(), "dropout": 0.5})).train()
    first, second = (evaluate_files(model, folder, baselines=False).total.nats for _ in range(2))
    assert first == second
    assert all(module.training for module in model.modules())


def test_errors_by_decoder_in_a_worked_example(
    tiny_model: BGPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file.txt").write_bytes(b"abcdefghijklm")
    truth = np.array([[*b"abcd"], [*b"efgh"], [*b"ijkl"], [*b"m", EOP, EOP, EOP], [EOP] * 4], np.int16)
    tokens = truth.copy()
    tokens[1, 0] = 1  # patch level, though the rest is right
    tokens[2, 3] = 1  # byte level
    tokens[3, 1] = 1  # byte level: what should have ended the file
    tokens[4, 0] = 1  # of the end of the file, so of neither
    nats = np.full((5, 4), math.log(2), np.float32)
    nats[:, 0] = 2 * math.log(2)

    def scored(model: BGPT, batch: PackedPatches) -> BatchScores:
        assert batch.patches[1:].tolist() == truth.tolist()
        return BatchScores(nats, tokens, truth, np.arange(1, 6))

    monkeypatch.setattr(batch_scores, "score_batch", scored)
    report = evaluate_files(tiny_model, tmp_path)
    result = report.decoders
    assert [result.patches, result.right, result.patch_level, result.byte_level] == [4, 1, 1, 2]
    assert result.to_dict()["share_of_bits_in_first_bytes"] == pytest.approx(8 / 20)
    assert result.first_byte.accuracy == pytest.approx(3 / 4)
    assert result.later_bytes.accuracy == pytest.approx(8 / 9)
    assert result.later_bytes.accuracy_positions == pytest.approx(10 / 12)
    assert report.end_of_file.accuracy_positions == pytest.approx(3 / 4)
    assert report.end_of_file.figures()["accuracy"] is None
    assert report.total.per_position == pytest.approx(25 / 20)
    assert report.total.per_byte == pytest.approx(25 / 13)
    assert report.total.accuracy == pytest.approx(11 / 13)
    assert [scores.accuracy for scores in report.by_patch] == pytest.approx([1, 3 / 4, 3 / 4, 1])


def test_over_long_files_are_cut_and_counted(tiny_model: BGPT, tmp_path: Path) -> None:
    max_bytes = TINY.patch_size * (TINY.patch_length - 1)
    sizes = {"fits.a": max_bytes - TINY.patch_size, "ends.a": max_bytes, "long.a": max_bytes + 1000}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(bytes(number * 7 % 251 for number in range(size)))
    report = evaluate_files(tiny_model, tmp_path)
    assert {os.path.basename(file.path): file.cut_bytes for file in report.files} == {
        "ends.a": 0,
        "fits.a": 0,
        "long.a": 1000,
    }
    assert report.documents_cut == 2
    assert report.to_dict()["cut_bytes"] == 1000
    assert report.end_of_file.positions == TINY.patch_size
    # The compressors get what the model saw, so that the figures can be held against each other.
    long = (tmp_path / "long.a").read_bytes()[:max_bytes]
    compressed = {
        "gzip": len(gzip.compress(long, 9, mtime=0)),
        "xz": len(lzma.compress(long, preset=9 | lzma.PRESET_EXTREME)),
    }
    assert compressed.items() <= report.files[2].compressed.items()
    every = b"".join(Path(file.path).read_bytes()[:max_bytes] for file in report.files)
    solid = 8 * len(gzip.compress(every, 9, mtime=0)) / len(every)
    assert report.baselines["gzip_solid"] == pytest.approx(solid, rel=1e-9)
    assert report.baselines["gzip_solid"] < report.baselines["gzip"]


def test_unreadable_files_are_skipped_and_named(tiny_model: BGPT, folder: Path) -> None:
    whole = evaluate_files(tiny_model, folder)
    (folder / "empty.txt").write_bytes(b"")
    os.mkfifo(folder / "pipe.txt")
    (folder / "gone.txt").symlink_to(folder / "nowhere")
    report = evaluate_files(tiny_model, folder)
    assert report.skipped == {"empty": 1, "not a regular file": 1, "vanished": 1}
    assert any("pipe.txt" in warning for warning in report.warnings)
    assert report.total.nats == whole.total.nats
    with pytest.raises(DataError, match="at least one file that can be read, got none; skipped"):
        evaluate_files(tiny_model, folder / "empty.txt")
    with pytest.raises(DataError, match="No such file"):
        evaluate_files(tiny_model, folder / "nowhere")


def test_wrong_arguments_are_named(tiny_model: BGPT, folder: Path) -> None:
    with pytest.raises(TypeError, match="model: expected a BGPT, got str"):
        evaluate_files("model", folder)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="patches_per_batch: expected at least 1"):
        evaluate_files(tiny_model, folder, patches_per_batch=0)
    other = PackedPatches.from_bytes([("a", b"abc")], BGPTConfig(patch_size=8, patch_length=9))
    with pytest.raises(ValueError, match="expected patches of 4 bytes, got 8"):
        score_batch(tiny_model, other)
    with pytest.raises(ValueError, match="at least one patch to predict"):
        score_batch(tiny_model, PackedPatches.from_bytes([("a", b"")], TINY, end_of_file=False))


@pytest.mark.parametrize("wrong", [{"resamples": 0}, {"confidence": 1.0}, {"seed": -1}])
def test_wrong_bootstrap_options_fail_before_files_are_scored(
    tiny_model: BGPT, folder: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any]
) -> None:
    def scored(model: BGPT, batch: PackedPatches) -> BatchScores:
        raise AssertionError("files were scored first")

    monkeypatch.setattr(batch_scores, "score_batch", scored)
    with pytest.raises(ValueError, match=r"resamples|confidence|non-negative"):
        evaluate_files(tiny_model, folder, **wrong)


def test_progress_intervals_and_json(tiny_model: BGPT, folder: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int, int]] = []
    report = evaluate_files(
        tiny_model, folder, patches_per_batch=30, progress=lambda *call: calls.append(call), seed=4, resamples=200
    )
    assert calls[-1] == (len(SIZES), len(SIZES), sum(SIZES))
    assert len(calls) > 3
    assert [done for done, _, _ in calls] == sorted({done for done, _, _ in calls})
    again = evaluate_files(tiny_model, folder, patches_per_batch=30, seed=4, resamples=200)
    assert again.intervals == report.intervals
    for name, value in (("bits_per_byte", report.total.per_byte), ("accuracy", report.total.accuracy)):
        interval = report.intervals[name]
        assert interval is not None
        assert interval.low <= value <= interval.high
    write_json(tmp_path / "report.json", report.to_dict())
    output = json.loads((tmp_path / "report.json").read_text())
    assert output["files"] == len(SIZES) == len(output["by_file"])
    assert "by_file" not in report.to_dict(files=False)
    alone = evaluate_files(tiny_model, report.files[0].path)
    assert alone.intervals["bits_per_byte"] is None


@pytest.mark.parametrize("stride", [1, 7, 23])
def test_with_a_stride_every_byte_of_a_long_file_is_scored_once_after_its_context(
    tiny_model: BGPT, tmp_path: Path, stride: int
) -> None:
    """Against windows cut by hand, one at a time."""
    S, L = TINY.patch_size, TINY.patch_length
    sizes = [3, 88, 89, 200, 333]
    contents = [np.random.default_rng(size).bytes(size) for size in sizes]
    for size, content in zip(sizes, contents, strict=True):
        (tmp_path / f"{size:04}.bin").write_bytes(content)
    report = evaluate_files(tiny_model, tmp_path, stride=stride, patches_per_batch=60)
    assert [file.scores.bytes for file in report.files] == sizes
    assert [file.cut_bytes for file in report.files] == [0] * 5
    assert report.documents_cut == 0
    assert report.end_of_file.positions == 5 * S, "the end of each file once"
    assert [patch.bytes for patch in report.by_patch] == [
        sum(min(S, max(0, size - place * S)) for size in sizes) for place in range(-(-333 // S))
    ]
    assert [file.compressed["gzip"] for file in report.files] == [len(gzip.compress(one, 9)) for one in contents]
    for file, content in zip(report.files, contents, strict=True):
        patches = PackedPatches.from_bytes([("bin", content)], BGPTConfig(patch_size=S, patch_length=1000)).patches
        first, scored, nats = 0, 1, 0.0
        while scored < len(patches):
            window = torch.cat([patches[:1], patches[1 + first : L + first]])
            packed = PackedPatches(window, torch.tensor([0, len(window)], dtype=torch.int32))
            new = torch.arange(scored - first, len(window))
            with torch.no_grad():
                nats += float(tiny_model(packed, new).nats.double().sum())
            scored, first = first + len(window), first + stride
        assert file.scores.nats == pytest.approx(nats, rel=1e-5)
    heads = evaluate_files(tiny_model, tmp_path)
    assert heads.documents_cut == 3
    assert heads.total.bytes < report.total.bytes


def test_a_stride_is_within_the_context(tiny_model: BGPT, folder: Path) -> None:
    for stride in (-1, TINY.patch_length):
        with pytest.raises(ValueError, match=r"evaluate_files: stride: expected 0…23"):
            evaluate_files(tiny_model, folder, stride=stride)
