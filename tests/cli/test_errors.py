"""Errors of commands: the option instead of the Python argument, and the exit code of wrong values and of failures."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from bgpt_fast.checkpoint import CheckpointError
from bgpt_fast.cli.errors import report_error, with_option_name
from bgpt_fast.cli.generate import Generate
from bgpt_fast.cli.train_options import Train
from bgpt_fast.data import DataError
from bgpt_fast.data.workers import WorkerError
from bgpt_fast.training import NonFiniteLossError
from bgpt_fast.training.checkpoint_store import CheckpointDamagedError, CheckpointWriteError


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("TrainConfig.best_metric: expected one", Train, "--training.best-metric: expected one"),
        ("BGPTConfig.hidden_size: expected 1", Train, "--model.hidden-size: expected 1"),
        ("FileSource: patches_per_batch: expected", Train, "--patches-per-batch: expected"),
        ("generate: top_k: expected", Generate, "--top-k: expected"),
        ("TrainConfig.steps: expected", Generate, "TrainConfig.steps: expected"),
        ("FileSource: look_ahead: expected", Train, "FileSource: look_ahead: expected"),
        ("checkpoint: expected a folder", Generate, "checkpoint: expected a folder"),
        ("generate: top_k: expected", None, "generate: top_k: expected"),
    ],
)
def test_arguments_are_named_as_options(text: str, options: type | None, expected: str) -> None:
    assert with_option_name(text, options) == expected


@pytest.mark.parametrize(
    ("error", "code"),
    [
        *((ValueError("x"), 2), (TypeError("x"), 2), (DataError("x"), 2), (CheckpointError("x"), 2)),
        *((FileNotFoundError("x"), 2), (FileExistsError("x"), 2), (IsADirectoryError("x"), 2)),
        *((WorkerError("x"), 1), (CheckpointDamagedError("x"), 1), (CheckpointWriteError("x"), 1)),
        *((OSError(errno.ENOSPC, "full"), 1), (PermissionError("x"), 1), (ImportError("x"), 1)),
        *((NonFiniteLossError(1, 0.0, 0.0, Path("a")), 1),),
    ],
)
def test_exit_codes(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    error.add_note("a note")
    assert report_error("train", error) == code
    assert capsys.readouterr().err == f"bgpt-fast train: {type(error).__name__}: {error}; a note\n"
