"""`bgpt-fast train` on very little data, and with plots that fail: the run is complete and the exit code is 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.cli import CommandLine

from bgpt_fast.report import plots

MODEL = (
    *("--model.patch-size", 4, "--model.patch-length", 16, "--model.hidden-size", 8, "--model.num-heads", 1),
    *("--model.patch-num-layers", 1, "--model.byte-num-layers", 1, "--training.threads", 1),
)


@pytest.fixture
def command_line(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


def _train(line: CommandLine, data: Path, output: Path, *words: object) -> Any:
    return line.run("train", "--data", data, "--output", output, *MODEL, "--training.steps", 2, *words)


def test_one_small_file_is_enough(tmp_path: Path, command_line: CommandLine) -> None:
    (tmp_path / "a.txt").write_bytes(b"little")
    error = _train(command_line, tmp_path / "a.txt", tmp_path / "run").err
    assert "the train split holds 4 patches, so batches shrink to that from" in error
    assert "--eval-share 0.02: no document falls into it, so nothing is evaluated" in error
    assert (tmp_path / "run" / "checkpoints" / "step-00000002").is_dir()


def test_batches_below_the_context_are_announced_with_what_helps(tmp_path: Path, command_line: CommandLine) -> None:
    (tmp_path / "a.txt").write_bytes(b"little" * 100)
    error = _train(command_line, tmp_path / "a.txt", tmp_path / "run", "--patches-per-batch", 7).err
    assert "--patches-per-batch 7: a batch holds at least the context of 16 patches" in error
    assert "--model.patch-length" in error


def test_small_classes_and_pairs_are_enough(tmp_path: Path, command_line: CommandLine) -> None:
    for name in ("cat_1.txt", "dog_1.txt", "a.abc", "a.mid"):
        (tmp_path / name).write_bytes(name.encode())
    _train(command_line, tmp_path, tmp_path / "classes", "--task", "classification")
    error = _train(command_line, tmp_path, tmp_path / "pairs", "--conversion", "abc&mid").err
    assert error.count("batches shrink") == 1


def test_a_plot_that_fails_is_no_failure_of_the_run(
    tmp_path: Path, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_bytes(b"little")

    def fail(*_: object) -> None:
        raise RuntimeError("no fonts")

    monkeypatch.setattr(plots, "training_curve", fail)
    result = _train(command_line, tmp_path / "a.txt", tmp_path / "run")
    assert "training_curve.png could not be drawn: RuntimeError: no fonts" in result.err
    assert "checkpoint:" in result.out
