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
from support.cli import CONFIG, MACHINE

from bgpt_fast import BGPT, BGPTConfig, BGPTForClassification
from bgpt_fast.checkpoint import load_weights
from bgpt_fast.cli.data import KINDS
from bgpt_fast.cli.main import COMMANDS, main
from bgpt_fast.cli.train_options import Train
from bgpt_fast.tasks import cpu_states
from bgpt_fast.tasks.classification import predict
from bgpt_fast.tasks.cpu_states import StreamOptions
from bgpt_fast.training import TrainConfig

MODEL = [
    *("--model.patch-length", "16", "--model.hidden-size", "16", "--model.patch-num-layers", "1"),
    *("--model.num-heads", "2", "--model.byte-num-heads", "2"),
]


def test_help_lists_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)
    for words in [*([command] for command in COMMANDS), *(["data", kind] for kind in KINDS)]:
        output = {}
        for option in ("--help", *(["--help-all"] if words != ["data"] else [])):
            assert main([*words, option]) == 0
            out = capsys.readouterr().out
            assert f"usage: bgpt-fast {' '.join(words)}" in out
            output[option] = set(re.findall(r"--[\w.-]+", out))
        if len(output) == 2:
            assert output["--help"] - {"--help-all"} <= output["--help-all"]
            assert len(output["--help"]) <= 25, "--help is short"


def test_help_of_train_is_short_and_help_all_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    short = capsys.readouterr().out
    assert "--training.steps" in short
    assert "--training.grad-clip" not in short
    assert "bgpt-fast train --help-all shows all options" in short
    assert main(["train", "--help-all", "--data", "x"]) == 0
    out = capsys.readouterr().out
    for heading in ("file options", "table options", "program options", "model options", "training options"):
        assert heading in out
    for kind, prefix in ((Train, ""), (BGPTConfig, "model."), (TrainConfig, "training."), (StreamOptions, "machine.")):
        for field in dataclasses.fields(kind):
            if field.name not in ("model", "training", "machine"):
                assert f"--{prefix}{field.name.replace('_', '-')}" in out
    assert "512" in out.split("--patches-per-batch")[1].split("--epochs")[0], (
        "defaults are those of the preset that --data chooses"
    )


def test_renamed_options_still_work(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "long.abc").write_bytes(bytes(200))
    words = ["convert", str(tmp_path / "long.abc"), "--to", "mid", "--checkpoint", str(checkpoint)]
    for old in (["--overlong", "error"], ["--overlong=error"]):
        assert main([*words, *old, "--output", str(tmp_path / "out")]) == 1
        errors = capsys.readouterr().err
        assert "over the context" in errors
        assert (
            "bgpt-fast convert: DeprecationWarning: option: the value '--overlong' is now called '--too-long'" in errors
        )


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["fly"]) == 2
    assert "expected a command, one of train" in capsys.readouterr().err
    assert main(["env", "--wings"]) == 2
    assert main(["data", "feathers"]) == 2
    assert main(["generate", "--checkpoint", "nowhere"]) == 1
    assert "CheckpointError: nowhere: expected a checkpoint folder" in capsys.readouterr().err
    assert main(["--version"]) == 0


def test_env_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["packages"]["torch"] == torch.__version__.split("+")[0] or result["packages"]["torch"]
    assert result["vector_instructions"] in ("portable", "AVX2", "AVX-512")


def test_data_cpu_states_as_released(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "cpu-states", "--output", str(tmp_path / "data"), "--train", "30", "--test", "20", *MACHINE]
    assert main(words) == 0
    report = json.loads((tmp_path / "data/report.json").read_text())
    train = cpu_states.read_folder(tmp_path / "data/train", 2, 16)
    test = cpu_states.read_folder(tmp_path / "data/test", 2, 16)
    assert len(train) == report["train"]["files"] <= 30
    assert not {trace.name for trace in train} & {trace.name for trace in test}
    assert main(words) == 1
    assert "expected a new or empty folder for the data" in capsys.readouterr().err


@pytest.mark.parametrize("stream", ["philox", "parallel"])
@pytest.mark.filterwarnings("ignore:--stream. the value 'parallel' is now called 'philox':DeprecationWarning")
def test_data_cpu_states_in_bulk(stream: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    words = ["data", "cpu-states", "--output", str(tmp_path / "data"), "--stream", stream, "--format", "parquet"]
    assert main([*words, "--train", "300", "--test", "7", *MACHINE]) == 0
    assert len(cpu_states.read_parquet(tmp_path / "data/train.parquet")) == 300
    assert len(cpu_states.read_parquet(tmp_path / "data/test.parquet")) == 7


def train(output: Path, steps: int, *more: str) -> int:
    words = ["train", "--output", str(output), "--programs-per-batch", "4", "--eval-programs", "5", *MACHINE, *MODEL]
    words += ["--training.schedule-by", "steps", "--training.max-minutes", "0", "--training.steps", str(steps)]
    return main([*words, *more])


def test_train_on_cpu_states_simulate_and_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", 6) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    weights = tmp_path / "run/checkpoints/step-00000006"
    assert main(["train", "--config", str(tmp_path / "run/options.json"), "--output", str(tmp_path / "again")]) == 0
    again = BGPT.from_pretrained(tmp_path / "again/checkpoints/step-00000006").state_dict()
    for name, tensor in BGPT.from_pretrained(weights).state_dict().items():
        assert torch.equal(tensor, again[name]), "options.json runs the same again"

    out = tmp_path / "simulated"
    assert main(["simulate", "--checkpoint", str(weights), "--random", "3", "--output", str(out), *MACHINE]) == 0
    report = json.loads((out / "report.json").read_text())
    assert 0 <= report["teacher_forced"]["accuracy"] <= 1
    assert len(list((out / "predicted").iterdir())) == 3
    assert "predicted" in capsys.readouterr().out
    assert main(["evaluate", "--checkpoint", str(weights), "--programs", "3", "--json", *MACHINE]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["free_running"]["programs"] == 3


def test_simulate_takes_assembly(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = tmp_path / "add.asm"
    program.write_text("LOADI 7\nADD A\nHLT\n")
    words = ["simulate", str(program), "--checkpoint", str(checkpoint), "--output", str(tmp_path / "out"), *MACHINE]
    words += ["--registers", "1", "2"]
    assert main(words) == 0
    assert "LOADI 7" in capsys.readouterr().out
    program.write_text("LOADI 7\n\n\nFLY\nHLT\n")
    assert main(words) == 1
    error = capsys.readouterr().err
    assert "line 4" in error
    assert "add.asm" in error
    assert "FLY" in error


def test_train_on_files_and_generate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(60):
        path = tmp_path / f"data/{index % 3}/{index}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("ab" * (index % 9 + 1))
    words = ["train", "--data", str(tmp_path / "data"), "--output", str(tmp_path / "run"), *MODEL]
    words += ["--patches-per-batch", "32", "--eval-share", "0.2", "--training.schedule-by", "steps"]
    assert main([*words, "--training.steps", "3"]) == 0
    weights = tmp_path / "run/checkpoints/step-00000003"
    capsys.readouterr()
    assert main(["evaluate", "--checkpoint", str(weights), str(tmp_path / "data"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == 60

    prompt = tmp_path / "start.txt"
    prompt.write_text("abab")
    out = tmp_path / "made"
    words = ["generate", "--checkpoint", str(weights), str(prompt), "--count", "3", "--max-new-bytes", "5"]
    assert main([*words, "--output", str(out)]) == 0
    report = json.loads((out / "report.json").read_text())
    assert [file["path"] for file in report["files"]] == ["00000.txt", "00001.txt", "00002.txt"]
    for file in report["files"]:
        content = (out / file["path"]).read_bytes()
        assert content.startswith(b"abab")
        assert len(content) == file["bytes"] <= 9


def test_wrong_training_options_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--data", str(tmp_path / "none"), "--output", str(tmp_path / "run")]) == 1
    assert "none" in capsys.readouterr().err
    (tmp_path / "bad.json").write_text('{"modle": {}}')
    assert main(["train", "--config", str(tmp_path / "bad.json")]) == 1
    assert "unknown options ['modle']" in capsys.readouterr().err
    (tmp_path / "bad.json").write_text("{")
    assert main(["train", "--config", str(tmp_path / "bad.json")]) == 1
    assert "expected JSON" in capsys.readouterr().err
    assert train(tmp_path / "run", 3, "--model.patch-length", "4") == 1
    assert "context" in capsys.readouterr().err


def test_a_refused_run_keeps_its_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", 2) == 0
    options = (tmp_path / "run/options.json").read_text()
    assert train(tmp_path / "run", 2, "--model.hidden-size", "32") == 1
    assert "holds a run of another model" in capsys.readouterr().err
    (tmp_path / "file.txt").write_text("ab" * 4000)
    words = ["--data", str(tmp_path / "file.txt"), "--eval-share", "0", "--patches-per-batch", "16"]
    words += ["--preset", "cpu-states"]
    assert train(tmp_path / "run", 2, *words) == 1
    assert "train on what the run was started with" in capsys.readouterr().err
    assert (tmp_path / "run/options.json").read_text() == options


def test_the_command_line_takes_precedence_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"training": {"steps": 100, "max_minutes": 0, "schedule_by": "steps"}}')
    words = ["train", "--config", str(tmp_path / "c.json"), "--output", str(tmp_path / "run"), *MACHINE, *MODEL]
    words += ["--programs-per-batch", "4", "--eval-programs", "5", "--training.max-minutes", "0"]
    assert main([*words, "--training.steps", "2"]) == 0
    assert json.loads((tmp_path / "run/options.json").read_text())["training"]["steps"] == 2


def test_a_failing_evaluation_loses_no_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", 3, "--training.best-metric", "nosuch") == 1
    assert "nosuch" in capsys.readouterr().err
    assert (tmp_path / "run/checkpoints/step-00000003").is_dir()


def test_a_diverging_training_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rates = ["--training.learning-rate", "1e30", "--training.muon-learning-rate", "1e30"]
    assert train(tmp_path / "run", 50, *rates) == 1
    assert "NonFiniteLossError" in capsys.readouterr().err


def test_wrong_paths_are_errors_before_anything_runs(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(checkpoint), "--output", str(tmp_path / "out")]
    assert main(["generate", *words, "--ext", "../../evil"]) == 1
    assert "expected an extension such as txt" in capsys.readouterr().err
    assert main(["simulate", *words, *MACHINE, "--device", "nosuch"]) == 1
    assert "device: expected 'auto', 'cpu' or a GPU" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("")
    for command in (["generate", *words], ["simulate", *words, *MACHINE]):
        assert main(command) == 1
        assert "expected a new or empty folder" in capsys.readouterr().err
    folder = tmp_path / "traces"
    cpu_states.write_folder(cpu_states.generate(3, num_registers=2, memory_size=16, max_program=4), folder)
    broken = sorted(folder.iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:-1])
    assert main(["simulate", str(folder), *words, *MACHINE]) == 1
    assert broken.name in capsys.readouterr().err


def test_names_that_are_not_utf_8(tmp_path: Path, checkpoint: Path) -> None:
    prompt = tmp_path / os.fsdecode(b"a\xff.b\xfe")
    prompt.write_bytes(b"abc")
    out = tmp_path / "out"
    assert main(["generate", str(prompt), "--checkpoint", str(checkpoint), "--output", str(out)]) == 0
    report = json.loads((out / "report.json").read_text())
    assert (out / report["files"][0]["path"]).read_bytes().startswith(b"abc")
    assert report["options"]["prompts"] == [str(prompt)]


def test_a_stopped_training_saves(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "bgpt_fast.cli.main", "train", "--output", str(tmp_path / "run"), *MACHINE, *MODEL]
    words += ["--programs-per-batch", "4", "--eval-programs", "5", "--training.schedule-by", "steps"]
    words += ["--training.steps", "100000", "--training.max-minutes", "0"]
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
    tmp_path: Path,
    classifier: Path,
    labelled: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(labelled)
    path = tmp_path / "made/predictions.json"
    assert main(["classify", str(classifier), ".", "--output", str(path), "--device", "cpu"]) == 0
    output, errors = capsys.readouterr()
    assert "7 files" in output
    assert "[red]plain.md" in output, "no markup"
    assert r"odd\udcff\n.txt" in output, "no control characters"
    assert "accuracy 50.00%" in output
    assert "2 of 4 files" in " ".join(output.split())
    assert "head only" in output
    assert "1 empty" in errors
    assert "1 not a regular file" in errors
    assert "empty: './one_empty.txt'" in errors
    assert main(["classify", str(classifier), ".", "--json", "--patches-per-batch", "1"]) == 0
    printed = json.loads(capsys.readouterr().out)
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


def test_classify_without_labels_in_the_names(
    classifier: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classify", str(classifier), str(labelled / "[red]plain.md"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["report"] is None
    assert main(["classify", str(classifier), str(labelled / "[red]plain.md")]) == 0
    assert "accuracy" not in capsys.readouterr().out


def test_classify_prints_at_most_what_fits_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {f"c{index}.x": index for index in range(13)}
    BGPTForClassification(CONFIG, names).save_pretrained(tmp_path / "many")
    monkeypatch.chdir(tmp_path)
    Path("files").mkdir()
    for index in range(203):
        Path(f"files/c1_{index}.x").write_bytes(b"x")
    assert main(["classify", "many", "files"]) == 0
    output = capsys.readouterr().out
    assert output.count("c1_") == 200
    assert "the first 200" in output
    assert "the confusion matrix of 13 classes is in --output and --json" in output
    assert "interval" not in output, "all files are alike, and all right or all wrong"


def test_classify_takes_released_weights_with_labels(
    tmp_path: Path, classifier: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": load_weights(classifier).state_dict}, tmp_path / "weights.pth")
    # The file states no number of heads: one per 64 channels, as released, is not this model's, and no matter here.
    words = ["classify", str(tmp_path / "weights.pth"), str(labelled / "one_a.txt"), "--json"]
    assert main(words) == 1
    assert "labels: expected a label map" in capsys.readouterr().err
    labels = tmp_path / "labels.json"
    for content, message in (
        ("{", "--labels: .*expected JSON"),
        ("[1]", "--labels: .*expected a JSON object, got list"),
        ('{"one": 0}', "expected shape .1.* got .2.*; the label map has 1 classes"),
    ):
        labels.write_text(content)
        assert main([*words, "--labels", str(labels)]) == 1
        assert re.search(message, capsys.readouterr().err)
    labels.write_text('{"uno.txt": 0, "dos.txt": 1}')
    assert main([*words, "--labels", str(labels)]) == 0
    assert json.loads(capsys.readouterr().out)["labels"] == ["uno.txt", "dos.txt"]


def test_wrong_classify_options_are_named(
    tmp_path: Path, checkpoint: Path, classifier: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, code, message in (
        ([], 2, ""),
        ([str(classifier)], 1, "expected files or folders after the checkpoint, got none"),
        ([str(classifier), str(tmp_path / "nowhere")], 1, "nowhere.*give files and folders that exist"),
        ([str(classifier), str(labelled / "one_empty.txt")], 1, "expected at least one file.*left out: 1 empty"),
        ([str(checkpoint), str(labelled)], 1, "expected a classifier, got a generative model"),
        ([str(classifier), str(labelled), "--output", str(tmp_path)], 1, "expected a file to write, got the folder"),
        ([str(classifier), str(labelled), "--patches-per-batch", "0"], 1, "patches_per_batch: expected at least 1"),
        ([str(classifier), str(labelled), "--device", "nosuch"], 1, "device: expected 'auto', 'cpu' or a GPU"),
    ):
        assert main(["classify", *words]) == code
        assert re.search(message, capsys.readouterr().err)
    for command in (["generate"], ["evaluate", str(labelled)]):
        assert main([*command, "--checkpoint", str(classifier)]) == 1
        assert "expected a generative model, got a classifier of 2 classes" in capsys.readouterr().err
