"""`bgpt-fast`: each command does its job on tiny inputs, and says what is wrong with wrong ones."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.cli import CONFIG, MACHINE, CommandLine
from support.paths import EXAMPLES

from bgpt_fast import BGPT, BGPTConfig, BGPTForClassification
from bgpt_fast.checkpoint import load_weights
from bgpt_fast.cli.data import KINDS
from bgpt_fast.cli.data_cpu_states import CPUStates
from bgpt_fast.cli.evaluate import Evaluate
from bgpt_fast.cli.main import COMMANDS
from bgpt_fast.cli.simulate import Simulate
from bgpt_fast.cli.train_options import Train
from bgpt_fast.tasks import cpu_states
from bgpt_fast.tasks.classification import predict
from bgpt_fast.tasks.cpu_states import SMALL_MACHINE, StreamOptions
from bgpt_fast.training import TrainConfig

MODEL = [
    *("--model.patch-length", "16", "--model.hidden-size", "16", "--model.patch-num-layers", "1"),
    *("--model.num-heads", "2", "--model.byte-num-heads", "2"),
]

MACHINES = (Train, Simulate, Evaluate, CPUStates)


def test_help_lists_commands_and_options(cli: CommandLine) -> None:
    out = cli.run("--help").out
    assert all(command in out for command in COMMANDS)
    for words in [*([command] for command in COMMANDS), *(["data", kind] for kind in KINDS)]:
        output = {}
        for option in ("--help", *(["--help-all"] if words != ["data"] else [])):
            out = cli.run(*words, option).out
            assert f"usage: bgpt-fast {' '.join(words)}" in out
            output[option] = set(re.findall(r"--[\w.-]+", out))
        if len(output) == 2:
            assert output["--help"] - {"--help-all"} <= output["--help-all"]
            assert len(output["--help"]) <= 25, "--help is short"


def test_help_of_train_is_short_and_help_all_is_complete(cli: CommandLine) -> None:
    short = cli.run("train", "--help").out
    assert "--training.steps" in short
    assert "--training.grad-clip" not in short
    assert "bgpt-fast train --help-all shows all options" in short
    out = cli.run("train", "--help-all", "--data", "x").out
    for heading in ("file options", "table options", "program options", "model options", "training options"):
        assert heading in out
    for kind, prefix in ((Train, ""), (BGPTConfig, "model."), (TrainConfig, "training."), (StreamOptions, "machine.")):
        for field in dataclasses.fields(kind):
            if field.name not in ("model", "training", "machine"):
                assert f"--{prefix}{field.name.replace('_', '-')}" in out
    assert "512" in out.split("--patches-per-batch")[1].split("--epochs")[0], (
        "defaults are those of the preset that --data chooses"
    )


def test_renamed_options_still_work(tmp_path: Path, checkpoint: Path, cli: CommandLine) -> None:
    (tmp_path / "long.abc").write_bytes(bytes(200))
    words = ["convert", tmp_path / "long.abc", "--to", "mid", "--checkpoint", checkpoint]
    for old in (["--overlong", "error"], ["--overlong=error"]):
        errors = cli.run(*words, *old, "--output", tmp_path / "out", code=2).err
        assert "over the context" in errors
        assert "convert: DeprecationWarning: option: the value '--overlong' is now called '--too-long'" in errors


def test_exit_codes(cli: CommandLine) -> None:
    cli.run(code=2)
    assert "expected a command, one of train" in cli.run("fly", code=2).err
    cli.run("env", "--wings", code=2)
    cli.run("data", "feathers", code=2)
    cli.fails("CheckpointError: nowhere: expected a checkpoint folder", "generate", "--checkpoint", "nowhere")
    cli.run("--version")


def test_commands_have_one_default_machine() -> None:
    defaults = [
        next(field for field in dataclasses.fields(kind) if field.name == "machine").default for kind in MACHINES
    ]
    assert defaults == [SMALL_MACHINE] * len(MACHINES)
    shipped = json.loads((EXAMPLES / "cpu_states/checkpoint/options.json").read_text(encoding="utf-8"))["machine"]
    assert StreamOptions(**shipped) == SMALL_MACHINE, "that of the shipped model"


def test_env_is_json(cli: CommandLine) -> None:
    result = cli.json("env")
    assert result["packages"]["torch"] == torch.__version__.split("+")[0] or result["packages"]["torch"]
    assert result["vector_instructions"] in ("portable", "AVX2", "AVX-512")


def test_data_cpu_states_as_released(tmp_path: Path, cli: CommandLine) -> None:
    words = ["data", "cpu-states", "--output", tmp_path / "data", "--train", "30", "--test", "20", *MACHINE]
    cli.run(*words)
    report = json.loads((tmp_path / "data/report.json").read_text())
    train = cpu_states.read_folder(tmp_path / "data/train", 2, 16)
    test = cpu_states.read_folder(tmp_path / "data/test", 2, 16)
    assert len(train) == report["train"]["files"] <= 30
    assert not {trace.name for trace in train} & {trace.name for trace in test}
    cli.fails("expected a new or empty folder for the data", *words)


@pytest.mark.parametrize("stream", ["philox", "parallel"])
@pytest.mark.filterwarnings("ignore:--stream. the value 'parallel' is now called 'philox':DeprecationWarning")
def test_data_cpu_states_in_bulk(stream: str, tmp_path: Path, cli: CommandLine) -> None:
    pytest.importorskip("pyarrow")
    words = ["data", "cpu-states", "--output", tmp_path / "data", "--stream", stream, "--format", "parquet"]
    cli.run(*words, "--train", "300", "--test", "7", *MACHINE)
    assert len(cpu_states.read_parquet(tmp_path / "data/train.parquet")) == 300
    assert len(cpu_states.read_parquet(tmp_path / "data/test.parquet")) == 7


def train_words(output: Path, steps: int, *more: object) -> list[object]:
    words: list[object] = ["train", "--output", output, "--programs-per-batch", 4, "--eval-programs", 5]
    words += ["--training.schedule-by", "steps", "--training.max-minutes", 0, "--training.steps", steps]
    return [*words, *MACHINE, *MODEL, *more]


def test_train_on_cpu_states_simulate_and_evaluate(tmp_path: Path, cli: CommandLine) -> None:
    cli.run(*train_words(tmp_path / "run", 6))
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    weights = tmp_path / "run/checkpoints/step-00000006"
    cli.run("train", "--config", tmp_path / "run/options.json", "--output", tmp_path / "again")
    again = BGPT.from_pretrained(tmp_path / "again/checkpoints/step-00000006").state_dict()
    out = cli.run("train", "--config", tmp_path / "run/options.json", "--output", tmp_path / "again").out
    assert f"{tmp_path / 'again'}: complete: all steps are done; nothing is trained again" in out
    for name, tensor in BGPT.from_pretrained(weights).state_dict().items():
        assert torch.equal(tensor, again[name]), "options.json runs the same again"

    out = tmp_path / "simulated"
    output = cli.run("simulate", "--checkpoint", weights, "--random", "3", "--output", out, *MACHINE).out
    report = json.loads((out / "report.json").read_text())
    assert 0 <= report["teacher_forced"]["accuracy"] <= 1
    assert len(list((out / "predicted").iterdir())) == 3
    assert "predicted" in output
    result = cli.json("evaluate", "--checkpoint", weights, "--programs", "3", *MACHINE)
    assert result["free_running"]["programs"] == 3


def test_simulate_takes_assembly(tmp_path: Path, checkpoint: Path, cli: CommandLine) -> None:
    program = tmp_path / "add.asm"
    program.write_text("LOADI 7\nADD A\nHLT\n")
    words = ["simulate", program, "--checkpoint", checkpoint, "--output", tmp_path / "out", *MACHINE]
    words += ["--registers", "1", "2"]
    assert "LOADI 7" in cli.run(*words).out
    program.write_bytes("; a comment\r\nloadi 7\r\nAdd a\rHLT".encode("utf-16"))
    words[words.index(tmp_path / "out")] = tmp_path / "again"
    assert "LOADI 7" in cli.run(*words).out
    program.write_text("LOADI 7\n\n\nFLY\nHLT\n")
    error = cli.run(*words, code=2).err
    assert all(part in error for part in ("line 4", "add.asm", "FLY"))


def test_train_on_files_and_generate(tmp_path: Path, cli: CommandLine) -> None:
    for index in range(60):
        path = tmp_path / f"data/{index % 3}/{index}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("ab" * (index % 9 + 1))
    words = ["train", "--data", tmp_path / "data", "--output", tmp_path / "run", *MODEL]
    words += ["--patches-per-batch", "32", "--eval-share", "0.2", "--training.schedule-by", "steps"]
    cli.run(*words, "--training.steps", "3")
    weights = tmp_path / "run/checkpoints/step-00000003"
    assert cli.json("evaluate", "--checkpoint", weights, tmp_path / "data")["files"] == 60

    prompt = tmp_path / "start.txt"
    prompt.write_text("abab")
    out = tmp_path / "made"
    words = ["generate", "--checkpoint", weights, prompt, "--count", "3", "--max-new-bytes", "5"]
    assert "complete" not in cli.run(*words, "--output", out).out
    assert "complete: 0 files generated" in cli.run(*words, "--output", out).out
    report = json.loads((out / "report.json").read_text())
    assert [file["path"] for file in report["files"]] == ["00000.txt", "00001.txt", "00002.txt"]
    for file in report["files"]:
        content = (out / file["path"]).read_bytes()
        assert content.startswith(b"abab")
        assert len(content) == file["bytes"] <= 9


def test_wrong_training_options_are_named(tmp_path: Path, cli: CommandLine) -> None:
    cli.fails("none", "train", "--data", tmp_path / "none", "--output", tmp_path / "run")
    (tmp_path / "bad.json").write_text('{"modle": {}}')
    cli.fails("unknown options ['modle']", "train", "--config", tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text("{")
    cli.fails("expected JSON", "train", "--config", tmp_path / "bad.json")
    cli.fails("context", *train_words(tmp_path / "run", 3, "--model.patch-length", "4"))


def test_a_refused_run_keeps_its_options(tmp_path: Path, cli: CommandLine) -> None:
    cli.run(*train_words(tmp_path / "run", 2))
    options = (tmp_path / "run/options.json").read_text()
    cli.fails("holds a run of another model", *train_words(tmp_path / "run", 2, "--model.hidden-size", "32"))
    (tmp_path / "file.txt").write_text("ab" * 4000)
    words = ["--data", tmp_path / "file.txt", "--eval-share", 0, "--patches-per-batch", 16, "--preset", "cpu-states"]
    cli.fails("train on what the run was started with", *train_words(tmp_path / "run", 2, *words))
    assert (tmp_path / "run/options.json").read_text() == options


def test_the_command_line_takes_precedence_over_the_file(tmp_path: Path, cli: CommandLine) -> None:
    (tmp_path / "c.json").write_text('{"training": {"steps": 100, "max_minutes": 0, "schedule_by": "steps"}}')
    words = ["train", "--config", tmp_path / "c.json", "--output", tmp_path / "run", *MACHINE, *MODEL]
    words += ["--programs-per-batch", "4", "--eval-programs", "5", "--training.max-minutes", "0"]
    cli.run(*words, "--training.steps", "2")
    assert json.loads((tmp_path / "run/options.json").read_text())["training"]["steps"] == 2


def test_a_failing_evaluation_loses_no_step(tmp_path: Path, cli: CommandLine) -> None:
    cli.fails("nosuch", *train_words(tmp_path / "run", 3, "--training.best-metric", "nosuch"))
    assert (tmp_path / "run/checkpoints/step-00000003").is_dir()


def test_a_diverging_training_is_named(tmp_path: Path, cli: CommandLine) -> None:
    rates = ["--training.learning-rate", "1e30", "--training.muon-learning-rate", "1e30"]
    cli.fails("NonFiniteLossError", *train_words(tmp_path / "run", 50, *rates), code=1)


def test_wrong_paths_are_errors_before_anything_runs(tmp_path: Path, checkpoint: Path, cli: CommandLine) -> None:
    words = ["--checkpoint", checkpoint, "--output", tmp_path / "out"]
    cli.fails("expected an extension such as txt", "generate", *words, "--ext", "../../evil")
    cli.fails("device: expected 'auto', 'cpu' or a GPU", "simulate", *words, *MACHINE, "--device", "nosuch")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("")
    for command in (["generate", *words], ["simulate", *words, *MACHINE]):
        cli.fails("expected a new or empty folder", *command)
    folder = tmp_path / "traces"
    cpu_states.write_folder(cpu_states.generate(3, num_registers=2, memory_size=16, max_program=4), folder)
    broken = sorted(folder.iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:-1])
    cli.fails(broken.name, "simulate", folder, *words, *MACHINE)


def test_names_that_are_not_utf_8(tmp_path: Path, checkpoint: Path, cli: CommandLine) -> None:
    prompt = tmp_path / os.fsdecode(b"a\xff.b\xfe")
    prompt.write_bytes(b"abc")
    out = tmp_path / "out"
    cli.run("generate", prompt, "--checkpoint", checkpoint, "--output", out)
    report = json.loads((out / "report.json").read_text())
    assert (out / report["files"][0]["path"]).read_bytes().startswith(b"abc")
    assert report["options"]["prompts"] == [str(prompt)]


def test_a_stopped_training_saves(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "bgpt_fast.cli.main", *map(str, train_words(tmp_path / "run", 100_000))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    log = tmp_path / "run/log.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (log.exists() and log.stat().st_size):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    [saved] = (tmp_path / "run/checkpoints").glob("step-*")
    assert BGPT.from_pretrained(saved).config.hidden_size == 16


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = BGPTForClassification(CONFIG, {"one.txt": 0, "two.txt": 1})
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([0.0, 1.0]))
    model.save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Seven files: four of known classes, one of an unknown one, two that are none; and three that cannot be read."""
    folder = tmp_path / "labelled"
    (folder / "below").mkdir(parents=True)
    for name in ("one_a.txt", "one_b.txt", "two_a.txt", "below/two_b.txt", "two_c.bin", "[red]plain.md"):
        (folder / name).write_text("hello " * 5)
    (folder / os.fsdecode(b"odd\xff\n.txt")).write_bytes(bytes(9999))
    (folder / "one_empty.txt").write_bytes(b"")
    (folder / "gone.txt").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.txt")
    return folder


def test_classify_predicts_and_scores_labelled_names(
    tmp_path: Path, classifier: Path, labelled: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(labelled)
    path = tmp_path / "made/predictions.json"
    output, errors = cli.run("classify", "--checkpoint", classifier, ".", "--output", path, "--device", "cpu")
    assert "7 files" in output
    assert "[red]plain.md" in output, "no markup"
    assert r"odd\udcff\n.txt" in output, "no control characters"
    assert "accuracy 50.00%" in output
    assert "2 of 4 files" in " ".join(output.split())
    assert "head only" in output
    assert "1 empty" in errors
    assert "1 not a regular file" in errors
    assert "empty: './one_empty.txt'" in errors
    printed = cli.json("classify", "--checkpoint", classifier, ".", "--patches-per-batch", "1")
    saved = json.loads(path.read_bytes())
    assert saved["skipped"] == {"empty": 1, "vanished": 1, "not a regular file": 1}
    assert len(saved["first_skipped"]) == 3
    assert saved["cut_to_fit"] == 1
    assert saved["labels"] == ["one.txt", "two.txt"]
    assert saved["report"]["confusion"] == [[0, 2], [0, 2]]
    by_path = {file["path"]: file for file in saved["files"]}
    assert len(by_path) == 7
    assert by_path["./two_c.bin"]["true_label"] is None, "two.bin is no class of the model's"
    assert by_path["./one_a.txt"]["true_label"] == "one.txt"
    assert by_path[os.fsdecode(b"./odd\xff\n.txt")]["is_cut"]
    model = BGPTForClassification.from_pretrained(classifier)
    for file, other in zip(saved["files"], printed["files"], strict=True):
        [expected] = predict(model, [file["path"]])
        assert (file["label"], file["is_cut"]) == ("two.txt", expected.is_cut)
        assert file["probabilities"] == pytest.approx(expected.probabilities, rel=1e-5)
        assert other["probabilities"] == pytest.approx(expected.probabilities, rel=1e-5)


def test_classify_without_labels_in_the_names(classifier: Path, labelled: Path, cli: CommandLine) -> None:
    assert cli.json("classify", "--checkpoint", classifier, labelled / "[red]plain.md")["report"] is None
    assert "accuracy" not in cli.run("classify", "--checkpoint", classifier, labelled / "[red]plain.md").out


def test_classify_takes_the_checkpoint_before_the_files_as_before(
    classifier: Path, labelled: Path, cli: CommandLine
) -> None:
    output, errors = cli.run("classify", classifier, labelled / "one_a.txt", labelled / "one_b.txt")
    assert "2 files" in output
    assert "DeprecationWarning: the checkpoint" in errors
    assert "give it as --checkpoint" in errors
    assert "Deprecation" not in cli.run("classify", labelled, "--checkpoint", classifier).err


def test_short_forms_of_trains_options(tmp_path: Path, cli: CommandLine) -> None:
    cli.run(*train_words(tmp_path / "run", 5, "--steps", 2, "--lr=0.5", "--threads", 1, "--seed", 3))
    options = json.loads((tmp_path / "run/options.json").read_text())["training"]
    assert [options[name] for name in ("steps", "learning_rate", "threads", "seed")] == [2, 0.5, 1, 3]
    assert "--lr is --training.learning-rate" in cli.run("train", "--help").out


def test_classify_prints_at_most_what_fits_a_terminal(
    tmp_path: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {f"c{index}.x": index for index in range(13)}
    BGPTForClassification(CONFIG, names).save_pretrained(tmp_path / "many")
    monkeypatch.chdir(tmp_path)
    Path("files").mkdir()
    for index in range(203):
        Path(f"files/c1_{index}.x").write_bytes(b"x")
    output = cli.run("classify", "files", "--checkpoint", "many").out
    assert output.count("c1_") == 200
    assert "the first 200" in output
    assert "the confusion matrix of 13 classes is in --output and --json" in output
    assert "interval" not in output, "all files are alike, and all right or all wrong"


def test_classify_takes_released_weights_with_labels(
    tmp_path: Path, classifier: Path, labelled: Path, cli: CommandLine
) -> None:
    torch.save({"model": load_weights(classifier).state_dict}, tmp_path / "weights.pth")
    # The file states no number of heads: one per 64 channels, as released, is not this model's, and no matter here.
    words = ["classify", "--checkpoint", tmp_path / "weights.pth", labelled / "one_a.txt", "--json"]
    cli.fails("labels: expected a label map", *words)
    labels = tmp_path / "labels.json"
    for content, message in (
        ("{", "--labels: .*expected JSON"),
        ("[1]", "--labels: .*expected a JSON object, got list"),
        ('{"one": 0}', "expected shape .1.* got .2.*; the label map has 1 classes"),
    ):
        labels.write_text(content)
        assert re.search(message, cli.run(*words, "--labels", labels, code=2).err)
    labels.write_text('{"uno.txt": 0, "dos.txt": 1}')
    assert json.loads(cli.run(*words, "--labels", labels).out)["labels"] == ["uno.txt", "dos.txt"]


def test_wrong_classify_options_are_named(
    tmp_path: Path, checkpoint: Path, classifier: Path, labelled: Path, cli: CommandLine
) -> None:
    model = ["--checkpoint", classifier]
    for words, message in (
        ([labelled], "--checkpoint: expected a trained classifier, got none"),
        (model, "expected files or folders to classify, got none"),
        ([*model, tmp_path / "nowhere"], "nowhere.*give files and folders that exist"),
        ([*model, labelled / "one_empty.txt"], "expected at least one file.*left out: 1 empty"),
        (["--checkpoint", checkpoint, labelled], "expected a classifier, got a generative model"),
        ([*model, labelled, "--output", tmp_path], "expected a file to write, got the folder"),
        ([*model, labelled, "--patches-per-batch", "0"], "--patches-per-batch: expected at least 1"),
        ([*model, labelled, "--device", "nosuch"], "device: expected 'auto', 'cpu' or a GPU"),
    ):
        assert re.search(message, cli.run("classify", *words, code=2).err)
    for command in (["generate"], ["evaluate", labelled]):
        cli.fails("expected a generative model, got a classifier of 2 classes", *command, "--checkpoint", classifier)
