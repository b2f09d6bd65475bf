"""Errors of commands: the option instead of the Python argument, and the exit code of wrong values and of failures."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from support.cli import CommandLine

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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("generate --checkpoint x --count 99999999999999", "--count: expected 1…1,000,000, got 99,999,999,999,999"),
        (
            f"generate --checkpoint x --seed {10**400}",
            "--seed: expected a whole number of 64 bits, got one of 401 digits",
        ),
        (f"convert a --to b --checkpoint x --seed {10**30}", "--seed: expected a whole number of 64 bits"),
        (f"classify a --checkpoint x --patches-per-batch {10**30}", "--patches-per-batch: expected a whole number"),
        ("simulate --checkpoint x --acc 256", "--acc: expected 0…255, got 256"),
        ("simulate --checkpoint x --registers 1 300", "--registers: expected values of 0…255, got (1, 300)"),
        ("simulate --checkpoint x --random 0", "--random: expected at least 1, got 0"),
        ("evaluate --checkpoint x --confidence nan", "--confidence: expected a number, got nan"),
        ("evaluate --checkpoint x --confidence 1", "--confidence: expected a share between 0 and 1, got 1.0"),
        ("evaluate --checkpoint x --resamples 99999999999", "--resamples: expected 1…1,000,000, got 99,999,999,999"),
        ("evaluate --checkpoint x --programs 99999999999", "--programs: expected 1…10,000,000, got 99,999,999,999"),
        ("evaluate --checkpoint x --seed -1", "--seed: expected at least 0, got -1"),
        ("data check a --onset-tolerance nan", "--onset-tolerance: expected a number, got nan"),
        ("data check a --gallery-files -1", "--gallery-files: expected at least 0, got -1"),
        ("data cpu-states --train 999999999999", "--train: expected 0…100,000,000, got 999,999,999,999"),
        ("data media a --text-encoding nonsense", "text_encoding: expected an encoding of Python's, got nonsense"),
        ("data media a --text-encoding hex", "text_encoding: expected an encoding of Python's, got hex"),
        (f"data media a --most-bytes {10**17}", "most_bytes: expected 1 to 2⁴⁰, got 100000000000000000"),
    ],
)
def test_numbers_out_of_range_are_named_before_anything_is_read(words: str, message: str, cli: CommandLine) -> None:
    cli.fails(message, *words.split())
