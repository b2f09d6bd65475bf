"""`bgpt-fast evaluate` on files and on generated files."""

from __future__ import annotations

import json
import os
import random
import re
import sys
from pathlib import Path

import pytest
from support.cli import MACHINE, CommandLine

from bgpt_fast import BGPT
from bgpt_fast.cli import evaluate
from bgpt_fast.tasks.conversion_likelihood import evaluate_pairs
from bgpt_fast.tasks.evaluation import evaluate_files


@pytest.fixture
def data(tmp_path: Path) -> Path:
    stream = random.Random(0)
    (tmp_path / "data").mkdir()
    for number in range(25):
        (tmp_path / f"data/{number}.e{number}").write_bytes(stream.randbytes(20 + 10 * number))
    return tmp_path / "data"


def test_files(checkpoint: Path, data: Path, tmp_path: Path, cli: CommandLine) -> None:
    words = ["evaluate", "--checkpoint", checkpoint, data, "--output", tmp_path / "out.json"]
    output = cli.run(*words, "--plots", tmp_path / "plots").out
    headings = ("bits per byte: all bits over real bytes", "patch level", "byte level")
    for text in (*headings, "xz", "and 5 more", "patches 9–15"):
        assert text in output
    result = json.loads((tmp_path / "out.json").read_text())
    report = evaluate_files(BGPT.from_pretrained(checkpoint), data, seed=1)
    assert result["bits_per_byte"] == report.total.per_byte
    assert result["intervals"]["bits_per_byte"] == list(report.intervals["bits_per_byte"] or ())
    assert result["cut_to_fit"] == report.documents_cut > 0
    assert len(list((tmp_path / "plots").iterdir())) == 5
    cli.fails("expected a new or empty folder for plots", *words, "--plots", tmp_path / "plots")
    assert cli.json(*words, "--no-baselines")["baselines_bits_per_byte"] == {}


def test_target_files_of_pairs_are_scored(checkpoint: Path, tmp_path: Path, cli: CommandLine) -> None:
    stream = random.Random(0)
    (tmp_path / "pairs").mkdir()
    for number, size in enumerate((10, 30, 100)):  # the last pair is over the context
        for extension in ("abc", "mid"):
            (tmp_path / f"pairs/{number}.{extension}").write_bytes(stream.randbytes(size))
    words = ["evaluate", "--checkpoint", checkpoint, tmp_path / "pairs", "--output", tmp_path / "o.json"]
    output = cli.run(*words, "--conversion", "abc&mid").out
    for name in ("abc->mid", "mid->abc"):
        assert f"{name}: target files, after their sources" in output
    assert "skipped: pair over the context" in output
    result = json.loads((tmp_path / "o.json").read_text())["conversion"]
    reports = evaluate_pairs(BGPT.from_pretrained(checkpoint), tmp_path / "pairs", "abc&mid", seed=1)
    for name, report in reports.items():
        assert result[name]["bits_per_byte"] == report.total.per_byte
        assert result[name]["bits_per_position"] == report.total.per_position
        assert result[name]["files"] == 2
        assert result[name]["bytes"] == 40
    words += ["--conversion", "abc->mid", "--plots", tmp_path / "plots"]
    assert list(cli.json(*words)["conversion"]) == ["abc->mid"]
    assert (tmp_path / "plots/abc-to-mid/decoders.png").is_file()


def test_names_of_any_bytes_are_printed(checkpoint: Path, tmp_path: Path, cli: CommandLine) -> None:
    (tmp_path / "odd/a[").mkdir(parents=True)
    for name in (b"a[/b].x[red]", b"\xff.\xfe", b"new\nline.txt", b"a.$\\frac$", b"a.\x01"):
        Path(os.fsdecode(os.fsencode(tmp_path / "odd") + b"/" + name)).write_bytes(b"abc")
    words = ["evaluate", "--checkpoint", checkpoint, tmp_path / "odd", "--plots", tmp_path / "plots"]
    output = cli.run(*words).out
    assert "x[red]" in output
    assert "\\udcfe" in output


def test_generated_files(checkpoint: Path, data: Path, tmp_path: Path, cli: CommandLine) -> None:
    generated = tmp_path / "made"
    generated.mkdir()
    for number in range(4):
        (generated / f"{number}.txt").write_bytes(b"la" * 100)
    assert "sign of mode collapse: 100% of the files are loops" in cli.run("evaluate", "--generated", generated).out
    result = cli.json("evaluate", data, "--generated", generated)
    assert "bits_per_byte" not in result
    assert result["generated"]["copies"] == 0.75
    assert result["generated"]["real"]["copies"] == 0
    assert any("distinct" in sign for sign in result["generated"]["signs_of_collapse"])
    output = cli.run("evaluate", data, "--generated", data, "--checkpoint", checkpoint).out
    assert "no sign of mode collapse" in output
    assert "errors by decoder" in output


def test_generated_files_are_compared_with_their_own_kind(tmp_path: Path, cli: CommandLine) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "pairs").mkdir()
    for number in range(3):
        (tmp_path / f"made/{number}.mid").write_bytes(b"la" * 100)
        (tmp_path / f"pairs/{number}.mid").write_bytes(b"la" * 100)
        (tmp_path / f"pairs/{number}.abc").write_bytes(random.Random(number).randbytes(200))
    result = cli.json("evaluate", tmp_path / "pairs", "--generated", tmp_path / "made")["generated"]
    assert (result["real"]["files"], result["real"]["loop_share"]) == (3, result["loop_share"])
    (tmp_path / "made/one.xyz").write_bytes(b"another kind")
    for path in (tmp_path / "made").glob("*.mid"):
        path.unlink()
    assert cli.json("evaluate", tmp_path / "pairs", "--generated", tmp_path / "made")["generated"]["real"]["files"] == 6


def test_reports_of_generate_are_left_out(checkpoint: Path, tmp_path: Path, cli: CommandLine) -> None:
    generated = tmp_path / "made"
    words = ["generate", "--checkpoint", checkpoint, "--count", "2", "--output", generated]
    cli.run(*words, "--max-new-bytes", "30")
    (generated / "below").mkdir()
    (generated / "below/report.json").write_bytes(b"a file of that name")
    (generated / ".lock").write_bytes(b"of one that was killed")
    result = cli.json("evaluate", "--generated", generated)["generated"]
    assert result["files"] == 3
    assert result["longest_run"] <= 30


def test_wrong_options_are_named(data: Path, tmp_path: Path, cli: CommandLine) -> None:
    (tmp_path / "none").mkdir()
    for words, message in (
        ([data], "--checkpoint: expected a model's weights, got none"),
        ([], "--checkpoint: expected a model's weights, got none"),
        (["--generated", tmp_path / "none"], "expected files with something in them, got none"),
        (["--plots", tmp_path / "plots"], "--plots: expected files to evaluate, got none"),
        (["--conversion", "abc->mid"], "--conversion: expected pairs of files to evaluate, got none"),
        (
            [data, "--conversion", "abc->mid", "--generated", data],
            "--checkpoint: expected a model's weights, got none",
        ),
        (
            [data, "--generated", data, "--plots", tmp_path / "plots"],
            "--plots: expected a --checkpoint with it, got none",
        ),
        ([data, "--output", tmp_path], "--output: expected a file to write, got the folder"),
        (["--programs", "0"], "--programs: expected 1…10,000,000, got 0"),
    ):
        cli.fails(message, "evaluate", *words)


def test_wrong_options_fail_before_files_are_scored(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: CommandLine
) -> None:
    def score(*_: object, **__: object) -> None:
        raise AssertionError("files were scored first")

    monkeypatch.setattr(evaluate, "evaluate_files", score)
    words = ["evaluate", data, "--checkpoint", checkpoint]
    (tmp_path / "none").mkdir()
    cli.fails("expected files with something in them, got none", *words, "--generated", tmp_path / "none")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    cli.fails("plots need matplotlib", *words, "--plots", tmp_path / "plots", code=1)


def test_accuracies_have_their_counts(checkpoint: Path, data: Path, cli: CommandLine) -> None:
    output = cli.text("evaluate", data, "--checkpoint", checkpoint)
    figures = cli.json("evaluate", data, "--checkpoint", checkpoint)
    assert re.search(rf"real bytes right .* [\d,]+ of {figures['bytes']:,} ", output)
    assert re.search(rf"last position .* \([\d,]+ of {figures['decoders']['patches']:,}\)", output)
    output = cli.text("evaluate", "--checkpoint", checkpoint, "--programs", "3", *MACHINE)
    assert re.search(r"programs right to the last byte .* \d of 3", output)


def test_stride_scores_whole_files(checkpoint: Path, tmp_path: Path, cli: CommandLine) -> None:
    (tmp_path / "long.txt").write_bytes(b"abc" * 500)
    words = ["evaluate", tmp_path / "long.txt", "--checkpoint", checkpoint]
    assert cli.json(*words, "--stride", "8")["bytes"] == 1500
    assert cli.json(*words)["bytes"] < 1500
    cli.fails("--stride: expected 0…15, got 16", *words, "--stride", "16")
    cli.fails("--stride: expected single files", *words, "--stride", "8", "--conversion", "abc->mid")
