"""`bgpt-fast evaluate` on files and on generated files."""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

import pytest

from bgpt_fast import BGPT
from bgpt_fast.cli import evaluate
from bgpt_fast.cli.main import main
from bgpt_fast.tasks.conversion_likelihood import evaluate_pairs
from bgpt_fast.tasks.evaluation import evaluate_files


@pytest.fixture
def data(tmp_path: Path) -> Path:
    stream = random.Random(0)
    (tmp_path / "data").mkdir()
    for number in range(25):
        (tmp_path / f"data/{number}.e{number}").write_bytes(stream.randbytes(20 + 10 * number))
    return tmp_path / "data"


def test_files(checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--checkpoint", str(checkpoint), str(data), "--output", str(tmp_path / "out.json")]
    assert main([*words, "--plots", str(tmp_path / "plots")]) == 0
    output = capsys.readouterr().out
    for text in (
        "bits per byte: all bits over real bytes",
        "patch level",
        "byte level",
        "xz",
        "and 5 more",
        "patches 9–15",
    ):
        assert text in output
    result = json.loads((tmp_path / "out.json").read_text())
    report = evaluate_files(BGPT.from_pretrained(checkpoint), data, seed=1)
    assert result["bits_per_byte"] == report.total.per_byte
    assert result["intervals"]["bits_per_byte"] == list(report.intervals["bits_per_byte"] or ())
    assert result["cut_to_fit"] == report.documents_cut > 0
    assert len(list((tmp_path / "plots").iterdir())) == 5
    assert main([*words, "--plots", str(tmp_path / "plots")]) == 1
    assert "expected a new or empty folder for plots" in capsys.readouterr().err
    assert main([*words, "--json", "--no-baselines"]) == 0
    assert json.loads(capsys.readouterr().out)["baselines_bits_per_byte"] == {}


def test_target_files_of_pairs_are_scored(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stream = random.Random(0)
    (tmp_path / "pairs").mkdir()
    for number, size in enumerate((10, 30, 100)):  # the last pair is over the context
        for extension in ("abc", "mid"):
            (tmp_path / f"pairs/{number}.{extension}").write_bytes(stream.randbytes(size))
    words = ["evaluate", "--checkpoint", str(checkpoint), str(tmp_path / "pairs"), "--output", str(tmp_path / "o.json")]
    assert main([*words, "--conversion", "abc&mid"]) == 0
    output = capsys.readouterr().out
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
    assert main([*words, "--conversion", "abc->mid", "--json", "--plots", str(tmp_path / "plots")]) == 0
    assert list(json.loads(capsys.readouterr().out)["conversion"]) == ["abc->mid"]
    assert (tmp_path / "plots/abc-to-mid/decoders.png").is_file()


def test_names_of_any_bytes_are_printed(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "odd/a[").mkdir(parents=True)
    for name in (b"a[/b].x[red]", b"\xff.\xfe", b"new\nline.txt", b"a.$\\frac$", b"a.\x01"):
        Path(os.fsdecode(os.fsencode(tmp_path / "odd") + b"/" + name)).write_bytes(b"abc")
    words = ["evaluate", "--checkpoint", str(checkpoint), str(tmp_path / "odd"), "--plots", str(tmp_path / "plots")]
    assert main(words) == 0
    output = capsys.readouterr().out
    assert "x[red]" in output
    assert "\\udcfe" in output


def test_generated_files(checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generated = tmp_path / "made"
    generated.mkdir()
    for number in range(4):
        (generated / f"{number}.txt").write_bytes(b"la" * 100)
    assert main(["evaluate", "--generated", str(generated)]) == 0
    assert "sign of mode collapse: 100% of the files are loops" in capsys.readouterr().out
    assert main(["evaluate", str(data), "--generated", str(generated), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert "bits_per_byte" not in result
    assert result["generated"]["copies"] == 0.75
    assert result["generated"]["real"]["copies"] == 0
    assert any("distinct" in sign for sign in result["generated"]["signs_of_collapse"])
    assert main(["evaluate", str(data), "--generated", str(data), "--checkpoint", str(checkpoint)]) == 0
    output = capsys.readouterr().out
    assert "no sign of mode collapse" in output
    assert "errors by decoder" in output


def test_generated_files_are_compared_with_their_own_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "pairs").mkdir()
    for number in range(3):
        (tmp_path / f"made/{number}.mid").write_bytes(b"la" * 100)
        (tmp_path / f"pairs/{number}.mid").write_bytes(b"la" * 100)
        (tmp_path / f"pairs/{number}.abc").write_bytes(random.Random(number).randbytes(200))
    assert main(["evaluate", str(tmp_path / "pairs"), "--generated", str(tmp_path / "made"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["generated"]
    assert (result["real"]["files"], result["real"]["loop_share"]) == (3, result["loop_share"])
    (tmp_path / "made/one.xyz").write_bytes(b"another kind")
    for path in (tmp_path / "made").glob("*.mid"):
        path.unlink()
    assert main(["evaluate", str(tmp_path / "pairs"), "--generated", str(tmp_path / "made"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["generated"]["real"]["files"] == 6


def test_reports_of_generate_are_left_out(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generated = tmp_path / "made"
    words = ["generate", "--checkpoint", str(checkpoint), "--count", "2", "--output", str(generated)]
    assert main([*words, "--max-new-bytes", "30"]) == 0
    (generated / "below").mkdir()
    (generated / "below/report.json").write_bytes(b"a file of that name")
    (generated / ".lock").write_bytes(b"of one that was killed")
    capsys.readouterr()
    assert main(["evaluate", "--generated", str(generated), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["generated"]
    assert result["files"] == 3
    assert result["longest_run"] <= 30


def test_wrong_options_are_named(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "none").mkdir()
    for words, message in (
        ([str(data)], "--checkpoint: expected a model's weights, got none"),
        ([], "--checkpoint: expected a model's weights, got none"),
        (["--generated", str(tmp_path / "none")], "expected files with something in them, got none"),
        (["--plots", str(tmp_path / "plots")], "--plots: expected files to evaluate, got none"),
        (["--conversion", "abc->mid"], "--conversion: expected pairs of files to evaluate, got none"),
        (
            [str(data), "--conversion", "abc->mid", "--generated", str(data)],
            "--checkpoint: expected a model's weights, got none",
        ),
        (
            [str(data), "--generated", str(data), "--plots", str(tmp_path / "plots")],
            "--plots: expected a --checkpoint with it, got none",
        ),
        ([str(data), "--output", str(tmp_path)], "--output: expected a file to write, got the folder"),
        (["--programs", "0"], "--programs: expected at least 1, got 0"),
    ):
        assert main(["evaluate", *words]) == 1
        assert message in capsys.readouterr().err


def test_wrong_options_fail_before_files_are_scored(
    checkpoint: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def score(*_: object, **__: object) -> None:
        raise AssertionError("files were scored first")

    monkeypatch.setattr(evaluate, "evaluate_files", score)
    words = ["evaluate", str(data), "--checkpoint", str(checkpoint)]
    (tmp_path / "none").mkdir()
    assert main([*words, "--generated", str(tmp_path / "none")]) == 1
    assert "expected files with something in them, got none" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([*words, "--plots", str(tmp_path / "plots")]) == 1
    assert "plots need matplotlib" in capsys.readouterr().err
