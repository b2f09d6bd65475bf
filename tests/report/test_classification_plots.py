"""Plots of a classification: of any classes, and by the command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import TINY

from bgpt_fast import BGPTForClassification
from bgpt_fast.cli.main import main
from bgpt_fast.report.classification_plots import classification_plots
from bgpt_fast.report.plots import shown_text
from bgpt_fast.tasks.classification import score

pytest.importorskip("matplotlib")
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("classes", [3, 31])
def test_all_are_drawn(classes: int, tmp_path: Path) -> None:
    names = [f"a$b$\udcff{index}.bmp" for index in range(classes)]
    # The last class has no document, and none is given it: neither has it a precision nor a recall.
    report = score(names, [0, 0, *range(classes - 1)], [0, 1, *range(classes - 1)])
    assert report.by_class[names[-1]].precision is None
    paths = classification_plots(report.to_dict(), tmp_path / "plots")
    assert [path.name for path in paths] == ["confusion.png", "classes.png"]
    assert all(path.read_bytes().startswith(PNG) for path in paths)


def test_names_are_no_formulas() -> None:
    assert shown_text("$x$\n\udcff") == r"\$x\$\n\udcff"


def test_the_command_draws_what_it_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    BGPTForClassification(TINY, {"one.txt": 0, "two.txt": 1}).save_pretrained(tmp_path / "classifier")
    files = tmp_path / "files"
    files.mkdir()
    (files / "plain.txt").write_text("hello")
    words = ["classify", str(tmp_path / "classifier"), str(files), "--device", "cpu", "--plots"]
    assert main([*words, str(tmp_path / "none")]) == 0
    assert "nothing to draw" in capsys.readouterr().err
    assert not list((tmp_path / "none").iterdir())
    (files / "one_a.txt").write_text("hello")
    assert main([*words, str(tmp_path / "plots")]) == 0
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["classes.png", "confusion.png"]
    assert main([*words, str(tmp_path / "plots")]) != 0, "what stands there is not replaced"
