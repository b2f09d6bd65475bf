"""`bgpt-fast train` on every kind of data, its options files and presets."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.cli import CommandLine

from bgpt_fast import BGPT, BGPTConfig, BGPTForClassification
from bgpt_fast.cli.train_data import TrainData
from bgpt_fast.cli.train_options import options_from_file
from bgpt_fast.training.presets import PRESETS

TINY: dict[str, Any] = {
    "patches_per_batch": 64,
    "eval_share": 0.2,
    "programs_per_batch": 4,
    "machine": {"num_registers": 1, "memory_size": 16, "min_program": 1, "max_program": 3},
    "model": {
        "patch_size": 8, "patch_length": 32, "hidden_size": 16, "patch_num_layers": 1, "num_heads": 2,
        "byte_num_heads": 2,
    },
    "training": {
        "steps": 3, "max_minutes": 0.0, "schedule_by": "steps", "eval_every": 0, "tensorboard": False, "prefetch": 0,
        "precision": "fp32",
    },
}  # fmt: skip
Run = Callable[..., str]
STILL = {"steps": 1, "learning_rate": 1e-30, "muon_learning_rate": 1e-30}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Forty files of two classes, each with a partner of another extension."""
    stream = random.Random(0)
    folder = tmp_path / "files"
    folder.mkdir()
    for index in range(40):
        label = ("ones", "twos")[index % 2]
        body = bytes([1 + index % 2]) * stream.randrange(20, 90)
        (folder / f"{label}_{index}.bin").write_bytes(body)
        (folder / f"{label}_{index}.neg").write_bytes(bytes(255 - byte for byte in body))
    return folder


@pytest.fixture
def run(cli: CommandLine) -> Run:
    """`bgpt-fast train` with tiny options; returns its standard error."""

    def run(folder: Path, *words: object, code: int = 0, **options: Any) -> str:
        folder.mkdir(exist_ok=True)
        path = folder / "tiny.yaml"
        merged = {**TINY, **options, "training": {**TINY["training"], **options.get("training", {})}}
        path.write_text(yaml.safe_dump(merged))
        return str(cli.run("train", "--config", path, "--output", folder / "run", *words, code=code).err)

    return run


def lines(tmp_path: Path, kind: str) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    return [line for line in entries if line["kind"] == kind]


def test_files_are_packed_full_and_a_curve_is_drawn(tmp_path: Path, files: Path, run: Run) -> None:
    run(tmp_path, "--data", files, training={"steps": 8})
    assert all(line["fill"] >= 0.98 for line in lines(tmp_path, "train"))
    assert lines(tmp_path, "eval")[0]["loss"] > 0
    assert (tmp_path / "run/training_curve.png").read_bytes().startswith(b"\x89PNG")


def test_classification_from_scratch_from_a_generative_model_and_on(tmp_path: Path, files: Path, run: Run) -> None:
    words = ["--data", files, "--task", "classification"]
    run(tmp_path / "a", *words, training={"steps": 40, "learning_rate": 0.01, "optimizer": "adamw"})
    assert lines(tmp_path / "a", "train")[-1]["accuracy"] > 0.9
    assert "bits_per_byte" not in lines(tmp_path / "a", "train")[-1]
    assert lines(tmp_path / "a", "eval")[-1]["accuracy"] > 0.9
    classifier = tmp_path / "a/run/checkpoints/step-00000040"
    model = BGPTForClassification.from_pretrained(classifier)
    assert model.labels == {"ones.bin": 0, "ones.neg": 1, "twos.bin": 2, "twos.neg": 3}

    run(tmp_path / "b", "--data", files)
    generative = tmp_path / "b/run/checkpoints/step-00000003"
    run(tmp_path / "c", *words, "--init-from", generative, training=STILL)
    started = BGPTForClassification.from_pretrained(tmp_path / "c/run/checkpoints/step-00000001").state_dict()
    for name, tensor in BGPT.from_pretrained(generative).patch_level_decoder.state_dict().items():
        torch.testing.assert_close(started[f"patch_level_decoder.{name}"], tensor)

    run(tmp_path / "d", *words, "--init-from", classifier, training=STILL)
    assert lines(tmp_path / "d", "eval")[-1]["accuracy"] == lines(tmp_path / "a", "eval")[-1]["accuracy"]
    error = run(tmp_path / "e", "--data", files, "--init-from", classifier, code=2)
    assert "expected a generative model, got a classifier" in error


def test_conversion_pairs_both_ways(tmp_path: Path, files: Path, run: Run) -> None:
    run(tmp_path, "--data", files, "--conversion", "bin&neg", model={**TINY["model"], "patch_length": 64})
    described = json.loads((tmp_path / "run/run.json").read_text())["source"]
    assert described["kind"] == "pairs"
    assert "DataError" in run(tmp_path / "x", "--data", files, "--conversion", "bin->mid", code=2)


def test_a_drafter_generates_the_same_files_and_is_refused_by_other_models(
    tmp_path: Path, files: Path, run: Run, cli: CommandLine
) -> None:
    words = ["--data", files]
    for name, seed in (("model", 0), ("other", 1)):
        run(tmp_path / name, *words, training={"steps": 20, "seed": seed})
    model, drafter = tmp_path / "model/run", tmp_path / "drafter/run"
    # The patches are the model's, whatever the options say.
    run(tmp_path / "drafter", *words, "--drafter-for", model, training={"steps": 20}, model={"hidden_size": 8})
    config = BGPT.from_pretrained(drafter).config
    assert (config.patch_size, config.patch_length, config.hidden_size) == (8, 32, 8)
    command = ["generate", "--ext", "bin", "--count", 3, "--max-new-bytes", 40, "--temperature", 0.05, "--checkpoint"]
    plain, drafted = tmp_path / "plain", tmp_path / "drafted"
    cli.run(*command, model, "--output", plain)
    text = cli.text(*command, model, "--output", drafted, "--drafter", drafter)
    assert re.search(r"the drafter guessed [\d,]+ bytes, [\d,]+ of them right", text)
    reports = [json.loads((folder / "report.json").read_text())["files"] for folder in (plain, drafted)]
    assert [file["digest"] for file in reports[0]] == [file["digest"] for file in reports[1]]
    assert sum(file["drafted"] for file in reports[1]) >= sum(file["accepted"] for file in reports[1]) > 0
    # The drafter changes no byte, so the folder is complete without it, too.
    assert "complete: 0 files generated" in cli.text(*command, model, "--output", drafted)
    wrong = ["--output", tmp_path / "x", "--drafter", drafter]
    cli.fails("expected a drafter of", *command, tmp_path / "other/run", *wrong)
    cli.fails("got a model of its own", *command, model, "--output", tmp_path / "x", "--drafter", model)
    cli.run(*command, tmp_path / "other/run", *wrong, "--any-model")
    classes = ["--task", "classification", "--drafter-for", model]
    assert "expected --data to generate or convert, got --task class" in run(tmp_path / "c", *words, *classes, code=2)
    pairs = run(tmp_path / "p", *words, "--conversion", "bin&neg", "--drafter-for", model, code=2)
    assert "expected a model of the task conversion, got one of generation" in pairs


def test_rows_of_parquet(tmp_path: Path, run: Run) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = [f"row {index} " * (1 + index % 9) for index in range(200)]
    parquet.write_table(pa.table({"text": texts}), tmp_path / "rows.parquet")
    assert "expected --column" in run(tmp_path, "--data", tmp_path / "rows.parquet", code=2)
    run(tmp_path, "--data", tmp_path / "rows.parquet", "--column", "text")
    assert json.loads((tmp_path / "run/run.json").read_text())["source"]["kind"] == "arrow"


def test_a_mixture_of_files_and_the_machine(tmp_path: Path, files: Path, run: Run) -> None:
    words = ["--data", files, "cpu-states"]
    assert "expected --weights" in run(tmp_path, *words, code=2)
    run(tmp_path, *words, "--weights", 0.5, 0.5, training={"steps": 12})
    described = json.loads((tmp_path / "run/run.json").read_text())["source"]
    assert described["kind"] == "mixed"
    assert sum(described["batches"]) == 12
    assert all(described["batches"])
    assert "expected one for each of the 2 --data" in run(tmp_path / "x", *words, "--weights", 1, code=2)


def test_epochs_are_steps(tmp_path: Path, files: Path, run: Run) -> None:
    options = options_from_file(_file(tmp_path, {**TINY, "data": [str(files)]}))
    patches = TrainData(options, options.model).source.total_patches  # type: ignore[attr-defined]
    run(tmp_path, "--data", files, "--epochs", 1.5)
    assert lines(tmp_path, "train")[-1]["step"] == pytest.approx(1.5 * patches / 64, abs=1)
    assert "--epochs: expected files" in run(tmp_path / "x", "--epochs", 1, code=2)
    passes = "--epochs: expected a number of passes above 0"
    for epochs, message in (("-1", passes), ("inf", passes), ("nan", "--epochs: expected a number, got nan")):
        error = run(tmp_path / "y", "--data", files, f"--epochs={epochs}", code=2)
        assert message in error


def test_an_epoch_is_one_pass_with_partly_filled_batches(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    for index in range(50):
        # 32 patches each: of batches of 63 patches, every one has a single file.
        (folder / f"{index}.bin").write_bytes(bytes([index]) * 240)
    words = ["--data", folder, "--epochs", 2, "--eval-share", 0, "--patches-per-batch", 63]
    run(tmp_path, *words)
    assert lines(tmp_path, "train")[-1]["step"] == 100


def test_separate_evaluation_data_and_its_limit(tmp_path: Path, files: Path, run: Run) -> None:
    words = ["--data", files, "--eval-data", files]
    run(tmp_path, *words)
    whole = _train_data(tmp_path)._held_out()
    assert sum(batch.num_documents for batch in whole) == 80
    run(tmp_path / "x", *words, "--eval-patches", 70)
    assert len(_train_data(tmp_path / "x")._held_out()) == 2


def test_evaluation_data_may_be_files_and_rows(tmp_path: Path, files: Path, run: Run) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"text": [f"row {index} " * 5 for index in range(50)]}), tmp_path / "rows.parquet")
    words = ["--data", tmp_path / "rows.parquet", "--column", "text", "--eval-data", tmp_path / "rows.parquet", files]
    run(tmp_path, *words)
    held_out = _train_data(tmp_path)._held_out()
    extensions = Counter(extension for batch in held_out for extension, _ in batch.to_bytes())
    assert extensions == {"txt": 50, "bin": 40, "neg": 40}


@pytest.mark.parametrize("held_out", ["files", "files/part", ".", "part-of-it"])
def test_evaluation_on_training_data_warns(tmp_path: Path, files: Path, run: Run, held_out: str) -> None:
    (files / "part").mkdir()
    (files / "part" / "ones_x.bin").write_bytes(b"part" * 20)
    (tmp_path / "part-of-it").mkdir()
    (tmp_path / "part-of-it" / "ones_y.bin").write_bytes(b"apart" * 20)
    error = run(tmp_path, "--data", files, "--eval-data", tmp_path / held_out)
    assert ("is training data, too" in error) == (held_out != "part-of-it")


def test_a_mixture_of_a_folder_and_its_subfolder_shares_the_split(tmp_path: Path, files: Path, run: Run) -> None:
    part = files / "part"
    part.mkdir()
    for index in range(30):
        (part / f"{index}.bin").write_bytes(b"%d " % index * 30)
    words = ["--data", files, part, "--weights", 1, 1]
    assert f"{part} is in" in run(tmp_path, *words, code=2)
    # By content, a file is on one side, whichever way it is reached.
    run(tmp_path, *words, "--split-by", "content")
    data = _train_data(tmp_path)
    held_out = {content for batch in data._held_out() for _, content in batch.to_bytes()}
    learned = {Path(path).read_bytes() for source in data.source.sources for path in source.paths}  # type: ignore[attr-defined]
    assert held_out
    assert not held_out & learned


def _train_data(tmp_path: Path) -> TrainData:
    options = options_from_file(tmp_path / "run/options.json")
    return TrainData(options, options.model)


def _file(tmp_path: Path, options: dict[str, Any]) -> Path:
    path = tmp_path / "options.json"
    path.write_text(json.dumps(options))
    return path


def test_options_files_reproduce_a_run(tmp_path: Path, files: Path, cli: CommandLine, run: Run) -> None:
    run(tmp_path, "--data", files, "--weights", 1.0)
    again = tmp_path / "again"
    cli.run("train", "--config", tmp_path / "run/options.json", "--output", again)
    first, second = (
        BGPT.from_pretrained(folder / "checkpoints/step-00000003").state_dict() for folder in (tmp_path / "run", again)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_presets(tmp_path: Path) -> None:
    assert options_from_file(_file(tmp_path, {})).model == PRESETS["cpu-states"].model
    assert options_from_file(_file(tmp_path, {"data": ["x"]})).model == PRESETS["tiny"].model
    paper = options_from_file(_file(tmp_path, {"preset": "paper-110m", "training": {"steps": 7}}))
    assert paper.model == BGPTConfig()
    assert paper.training.steps == 7
    assert paper.training.precision == "auto"
    assert all(preset.patches_per_batch >= preset.model.patch_length for preset in PRESETS.values())


def test_an_options_file_without_a_preset_takes_the_one_of_the_data(
    tmp_path: Path, files: Path, cli: CommandLine
) -> None:
    path = _file(tmp_path, {"training": {**TINY["training"], "steps": 1}})
    words = ["--output", tmp_path / "run", "--patches-per-batch", 128, "--eval-share", 0]
    cli.run("train", "--config", path, "--data", files, *words)
    assert options_from_file(tmp_path / "run/options.json").model == PRESETS["tiny"].model


@pytest.mark.parametrize("task", ["generation", "classification"])
def test_dropout_option_applies_to_a_checkpoint(tmp_path: Path, files: Path, task: str, run: Run) -> None:
    words = ["--data", files, "--task", task]
    run(tmp_path / "a", *words)
    start = tmp_path / "a/run/checkpoints/step-00000003"
    words += ["--init-from", start, "--model.dropout", 0.25]
    run(tmp_path / "b", *words, training=STILL)
    kind = BGPT if task == "generation" else BGPTForClassification
    began, ended = (kind.from_pretrained(path) for path in (start, tmp_path / "b/run/checkpoints/step-00000001"))
    assert (began.config.dropout, ended.config.dropout) == (0.0, 0.25)
    for name, tensor in began.state_dict().items():
        torch.testing.assert_close(ended.state_dict()[name], tensor)
    assert lines(tmp_path / "b", "train")[0]["loss"] != lines(tmp_path / "b", "eval")[-1]["loss"]
    # The same run goes on, whose model has that dropout.
    run(tmp_path / "b", *words, training=STILL)


def test_unknown_classes_of_a_classifier_warn(tmp_path: Path, files: Path, run: Run) -> None:
    words = ["--data", files, "--task", "classification"]
    run(tmp_path / "a", *words)
    start = tmp_path / "a/run/checkpoints/step-00000003"
    assert "of none of its classes" not in run(tmp_path / "b", *words, "--init-from", start)
    (files / "threes_1.bin").write_bytes(b"three")
    assert "1 files are of none of its classes" in run(tmp_path / "c", *words, "--init-from", start)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected options by name"),
        ({"wings": 2}, "unknown options ['wings']"),
        ({"training": {"wings": 2}}, "training: unknown options"),
        ({"training": 3}, "training: expected options by name"),
        ({"training": {"steps": "many"}}, "expected int"),
        ({"data": "files"}, "data: expected a list"),
        ({"epochs": True}, "epochs: expected float"),
        ({"task": "sing"}, "task: expected one of"),
        ({"preset": "huge"}, "expected one of ['cpu-states'"),
        ({"extension": 10}, "extension: expected str, got 10, which is no text; write it in quotes"),
        ({"training": {"wandb": "maybe"}}, "wandb: expected bool, got 'maybe'"),
        ({"training": {"steps": 1.5}}, "steps: expected int, got 1.5"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        options_from_file(_file(tmp_path, options))


@pytest.mark.parametrize("mark", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_numbers_and_words_of_yaml(tmp_path: Path, mark: str) -> None:
    text = """
data: [2024-01-31, 1e]
extension: no
training:
  {learning_rate: 1e-3, steps: 1e4, seed: 010, eps: 1E-10, weight_decay: .5, wandb: off, schedule_by: steps}
"""
    path = tmp_path / "options.yaml"
    path.write_bytes(text.encode(mark))
    options = options_from_file(path)
    assert (options.data, options.extension) == (("2024-01-31", "1e"), "no")
    training = options.training
    assert (training.learning_rate, training.steps, training.seed, training.eps) == (1e-3, 10_000, 10, 1e-10)
    assert (training.weight_decay, training.wandb) == (0.5, False)
    path.write_text("training: {max_minutes: 1:30}", encoding="utf-8")
    with pytest.raises(ValueError, match="max_minutes: expected float, got '1:30'"):
        options_from_file(path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "conversion"], "expected --conversion"),
        (["--task", "classification"], "expected --data"),
        (["--task", "generation", "--data", ".", "--conversion", "a->b"], "expected --task conversion"),
        (["--task", "cpu-states", "--data", "."], "expected no --data"),
        (["--weights", "1"], "expected --task generation"),
        (["--eval-data", "."], "--eval-data: expected --data with it"),
        (["--data", ".", "--column", "text"], "--column: expected Parquet or Arrow files"),
        (["--column", "text"], "--column: expected Parquet or Arrow files"),
        (["--data", ".", "--column", "text", "--conversion", "a->b"], "--column: expected Parquet or Arrow files"),
        (["--data", ".", "--eval-data", "cpu-states"], "--eval-data: expected files and folders, got cpu-states"),
        (["--data", ".", "--extension", "abc"], "--extension: expected --column with it"),
        (["--data", ".", "--extension-column", "kind"], "--extension-column: expected --column with it"),
        (["--data", ".", "--conversion", "a->b", "--split-by", "content"], "--split-by content: expected single files"),
    ],
)
def test_options_that_contradict(
    tmp_path: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("a file")
    cli.fails(message, "train", "--output", tmp_path / "run", *words)
