"""What `train` says at its start and at its end, and its samples while it trains."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from support.cli import MACHINE, CommandLine

SMALL = [
    *("--model.patch-size", 8, "--model.patch-length", 16, "--model.hidden-size", 16, "--model.patch-num-layers", 1),
    *("--model.num-heads", 2, "--model.byte-num-heads", 2, "--patches-per-batch", 32, "--eval-share", 0.3),
    *("--threads", 1, "--training.no-tensorboard"),
]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; in files/ are pairs, five of which are over the context, and an empty file."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "files"
    folder.mkdir()
    for index in range(40):
        (folder / f"one_{index}.abc").write_bytes(b"ab" * (10 if index % 8 else 100))
        (folder / f"one_{index}.mid").write_bytes(b"cd" * 10)
    (folder / "empty.abc").write_bytes(b"")
    return tmp_path


def train(cli: CommandLine, *words: object) -> str:
    return cli.run("train", "--steps", 2, *words).out


def test_the_start_says_what_is_trained_and_the_end_what_to_do_next(files: Path, cli: CommandLine) -> None:
    output = train(cli, "--data", "files", "--output", "run", *SMALL)
    lines = {line.split()[0]: line for line in reversed(output.splitlines()) if line.strip()}
    assert "parameters: patches of 8 bytes, context 16 patches (128 bytes), width 16" in lines["model"]
    assert "new weights" in lines["model"]
    assert "generation (.abc, .mid)" in lines["task"]
    assert "longer than the context and are read in windows" in lines["data"]
    assert "an evaluation scores" in lines["held"]
    assert "2 steps" in lines["training"]
    assert "on cpu (threads: 1; products: float32 " in lines["training"]
    assert "at most 32 patches a batch" in lines["training"]
    assert "run: a new run" in lines["folder"]
    assert "skipped: 1 empty" in output
    for command in ("bgpt-fast generate --ext abc --count 3 --checkpoint run", "bgpt-fast evaluate FILES --checkpoint"):
        assert command in output
    assert "run: complete: " in train(cli, "--data", "files", "--output", "run", *SMALL)
    assert "weights of run" in train(cli, "--data", "files", "--output", "more", "--init-from", "run", *SMALL)


def test_pairs_over_the_context_are_counted_with_what_helps(files: Path, cli: CommandLine) -> None:
    output = train(cli, "--data", "files", "--conversion", "abc->mid", "--output", "run", *SMALL)
    trained, held_out = (re.search(text, output) for text in (r"(\d) pair over the context", r"(\d) more over the"))
    assert int(trained[1] if trained else 0) + int(held_out[1] if held_out else 0) == 5
    assert "the longest pair needs --model.patch-length 31" in output
    assert "bgpt-fast convert FILES.abc --to mid --checkpoint run" in output


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data", "files"], {"00.abc", "01.mid"}),
        (["--data", "files", "--conversion", "abc->mid"], {"00.mid", "01.mid", "02.mid"}),
    ],
)
def test_samples_of_files(words: list[object], expected: set[str], files: Path, cli: CommandLine) -> None:
    errors = cli.run("train", "--steps", 4, "--sample-every", 2, *words, "--output", "run", *SMALL).err
    for step in (2, 4):
        assert f"step {step}: samples, in run/samples/step-{step:08d}/" in errors
        assert {path.name for path in (files / f"run/samples/step-{step:08d}").iterdir()} == expected
    assert "00." in errors


def test_samples_change_nothing(files: Path, cli: CommandLine) -> None:
    words = ["--data", "files", *SMALL, "--model.dropout", 0.1, "--training.schedule-by", "steps", "--minutes", 0]
    for name, more in (("plain", []), ("samples", ["--sample-every", 1])):
        train(cli, *words, "--output", name, *more)
    weights = [
        (files / name / "checkpoints/step-00000002/model.safetensors").read_bytes() for name in ("plain", "samples")
    ]
    assert weights[0] == weights[1]


def test_samples_of_the_machine(tmp_path: Path, cli: CommandLine) -> None:
    words = ["--programs-per-batch", 4, "--eval-programs", 5, *MACHINE, *SMALL, "--output", tmp_path / "run"]
    output, errors = cli.run("train", "--steps", 2, "--sample-every", 2, *words)
    assert "of 3 programs right to the last byte, free running" in errors
    assert len(list((tmp_path / "run/samples/step-00000002").iterdir())) == 3
    [command] = [line for line in output.splitlines() if "bgpt-fast simulate" in line]
    again = shlex.split(command.removeprefix("next:"))[1:]
    cli.run(*again, "--random", 2, "--output", tmp_path / "simulated")


def test_a_failing_sample_does_not_end_the_run(files: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("bgpt_fast.cli.train_samples._write", fail)
    errors = cli.run("train", "--steps", 2, "--sample-every", 1, "--data", "files", "--output", "run", *SMALL).err
    assert "step 1: no sample: OSError: disk full" in errors
    words = ["--data", "files", "--task", "classification", "--output", "other", *SMALL]
    cli.fails("--training.sample-every: expected a task that generates files", "train", "--sample-every", 1, *words)


def test_wrong_inputs_are_named_with_their_cause(files: Path, cli: CommandLine) -> None:
    words = ["--output", "run", *SMALL]
    cli.fails(
        "expected pairs of files NAME.abc and NAME.wav", "train", "--data", "files", "--conversion", "abc->wav", *words
    )
    (files / "plain").mkdir()
    (files / "plain/a.txt").write_bytes(b"a" * 500)
    cli.fails("expected files named LABEL_anything.ext", "train", "--data", "plain", "--task", "classification", *words)
    (files / "long").mkdir()
    for index in range(20):
        (files / f"long/{index}.abc").write_bytes(b"a" * 500)
        (files / f"long/{index}.mid").write_bytes(b"a" * 500)
    cli.fails("pairs are over the context", "train", "--data", "long", "--conversion", "abc->mid", *words)
    train(cli, "--data", "files", *words)
    cli.fails("files: expected a file to continue, got a folder", "generate", "files", "--checkpoint", "run")
