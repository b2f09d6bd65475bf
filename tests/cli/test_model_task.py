"""No command works with a model that was trained for something else; weights that do not say it still work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.cli import CONFIG, MACHINE, CommandLine
from support.paths import EXAMPLES

from bgpt_fast import BGPT, BGPTForClassification
from bgpt_fast.checkpoint import ModelTask
from bgpt_fast.cli.model_task import machine_of
from bgpt_fast.tasks.cpu_states import SMALL_MACHINE, StreamOptions

MODELS = {
    "text": ModelTask.of("generation", extensions=["txt"]),
    "pairs": ModelTask.of("conversion", extensions=["abc", "mid"], conversions=["abc->mid"]),
    "machine": ModelTask.of("cpu-states", extensions=["bin"], machine=(2, 16)),
    "other-machine": ModelTask.of("cpu-states", extensions=["bin"], machine=(3, 16)),
    "unknown": None,
}


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a random model of each task, a classifier, and files."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for name, task in MODELS.items():
        model = BGPT(CONFIG)
        model.task = task
        model.save_pretrained(tmp_path / name)
    classifier = BGPTForClassification(CONFIG, {"a.txt": 0, "b.txt": 1})
    classifier.task = ModelTask.of("classification", extensions=["txt"])
    classifier.save_pretrained(tmp_path / "classifier")
    for name in ("a.txt", "a.abc", "a.mid", "b.wav"):
        (tmp_path / name).write_bytes(b"a" * 20)
    return tmp_path


COMMANDS = {
    "convert": (["convert", "a.abc", "--to", "mid"], {"pairs", "unknown"}),
    "convert the other way": (["convert", "a.mid", "--to", "abc"], {"unknown"}),
    "generate txt": (["generate", "--ext", "txt", "--max-new-bytes", "4"], {"text", "unknown"}),
    "generate bin": (["generate", "--ext", "bin", "--max-new-bytes", "4"], {"machine", "other-machine", "unknown"}),
    "continue wav": (["generate", "b.wav", "--max-new-bytes", "4"], {"unknown"}),
    "simulate": (["simulate", "--random", "2", *MACHINE], {"machine", "unknown"}),
    "evaluate programs": (["evaluate", "--programs", "2", *MACHINE], {"machine", "unknown"}),
    "evaluate files": (["evaluate", "a.txt"], {"text", "unknown"}),
    "evaluate pairs": (["evaluate", "a.abc", "a.mid", "--conversion", "abc->mid"], {"pairs", "unknown"}),
    "evaluate both ways": (["evaluate", "a.abc", "a.mid", "--conversion", "abc&mid"], {"unknown"}),
}


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_wrong_model_is_refused(name: str, models: Path, cli: CommandLine) -> None:
    words, right = COMMANDS[name]
    for model in MODELS:
        output = models / f"out-{model}"
        more = [] if words[0] == "evaluate" else ["--output", output]
        command = [*words, "--checkpoint", model, *more]
        if model in right:
            cli.run(*command)
            continue
        errors = cli.run(*command, code=2).err
        assert f"WrongModelError: {model}: expected" in errors
        assert not output.exists(), "nothing is written"
        if words[0] in ("convert", "simulate") and model == "text":
            cli.run(*command, "--any-model")
    cli.fails("expected a generative model, got a classifier", *words, "--checkpoint", "classifier")


def test_errors_name_the_command_and_the_options(models: Path, cli: CommandLine) -> None:
    for words, expected in (
        (["simulate", *MACHINE, "--checkpoint", "other-machine"], "give --machine.num-registers 3 --machine.memory"),
        (["simulate", *MACHINE, "--checkpoint", "text"], "use it with bgpt-fast generate or evaluate FILES"),
        (["convert", "a.abc", "--to", "mid", "--checkpoint", "machine"], "use it with bgpt-fast simulate"),
        (["evaluate", "a.txt", "--checkpoint", "pairs"], "evaluate --conversion 'abc->mid'"),
        (["convert", "a.mid", "--to", "wav", "--checkpoint", "pairs"], "got one of abc->mid"),
        (["generate", "--ext", "wav", "--checkpoint", "text"], "one that was trained on .txt"),
        (["classify", "b.wav", "--checkpoint", "classifier"], "one that was trained on .txt"),
        (["classify", "a.txt", "--checkpoint", "text"], "bgpt-fast train --task classification --init-from"),
    ):
        cli.fails(expected, *words)
    cli.run("classify", "b.wav", "--checkpoint", "classifier", "--any-model")


def test_the_models_machine_is_the_default(models: Path, cli: CommandLine) -> None:
    assert machine_of(models / "other-machine") == StreamOptions(3, 16, 1, 3)
    assert machine_of(EXAMPLES / "cpu_states/checkpoint") == SMALL_MACHINE
    for name in ("text", "unknown", "not there"):
        assert machine_of(models / name) == SMALL_MACHINE
    cli.run("simulate", "--random", "2", "--checkpoint", "other-machine", "--output", "out")
    report = json.loads((models / "out/report.json").read_text())
    assert (report["options"]["machine"]["num_registers"], report["options"]["machine"]["max_program"]) == (3, 3)
    evaluated = cli.run("evaluate", "--programs", "2", "--json", "--checkpoint=other-machine").out
    assert json.loads(evaluated)["options"]["machine"]["num_registers"] == 3
    cli.fails("with 2 registers", "simulate", "--checkpoint", "other-machine", "--machine.num-registers", "2")


def test_weights_that_do_not_say_their_task_are_named(models: Path, cli: CommandLine) -> None:
    words = ["convert", "a.abc", "--to", "mid", "--checkpoint"]
    assert "unknown: does not say what it was trained for" in cli.run(*words, "unknown", "--output", "one").err
    assert "does not say" not in cli.run(*words, "pairs", "--output", "two").err


def test_the_models_only_extension_is_the_default(models: Path, cli: CommandLine) -> None:
    cli.run("generate", "--checkpoint", "text", "--max-new-bytes", "4", "--output", "out")
    assert (models / "out/00000.txt").exists()


def test_other_files_beside_known_ones_are_named(models: Path, cli: CommandLine) -> None:
    output = cli.run("evaluate", "a.txt", "b.wav", "--checkpoint", "text")
    assert "there are .wav files too, and the model was trained on none of these" in output.err
    skipped = cli.run("convert", "a.abc", "a.txt", "--to", "mid", "--checkpoint", "pairs", "--output", "out").out
    assert "sources skipped: 1 not .abc, which the model converts to .mid" in skipped
