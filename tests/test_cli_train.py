"""`bgpt-fast train` on every kind of data, its options files and presets, and `migrate-config`."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bgpt_fast import BGPT, BGPTConfig, BGPTForClassification
from bgpt_fast.cli.main import main
from bgpt_fast.cli.train import Train, options_from_file
from bgpt_fast.cli.train_data import TrainData
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
STILL = {"steps": 1, "learning_rate": 1e-30, "muon_learning_rate": 1e-30}
RELEASED = """
TRAIN_FOLDERS = [
    # "other/train",
    "tunes/train", "speech/train",
]
EVAL_FOLDERS = []
EVAL_SPLIT = 0.01
PRETRAINED_PATH = "weights-text.pth"
WEIGHTS_PATH = "weights.pth"
PATCH_SIZE = 16   # Patch Size
PATCH_LENGTH = 64
BYTE_NUM_LAYERS = 1
PATCH_NUM_LAYERS = 2
HIDDEN_SIZE = 64
NUM_EPOCHS = 2
LEARNING_RATE = 1e-4
BATCH_SIZE = 4
ACCUMULATION_STEPS = 2
PATCH_SAMPLING_BATCH_SIZE = 100
LOAD_FROM_PRETRAINED = False
CONVERSION_MODE = 'abc&mid'
WANDB_LOG = False
MY_OWN = 3
"""


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


def run(tmp_path: Path, *words: object, **options: Any) -> int:
    """`bgpt-fast train` with tiny options."""
    tmp_path.mkdir(exist_ok=True)
    path = tmp_path / "tiny.yaml"
    merged = {**TINY, **options, "training": {**TINY["training"], **options.get("training", {})}}
    path.write_text(yaml.safe_dump(merged))
    return main(["train", "--config", str(path), "--output", str(tmp_path / "run"), *map(str, words)])


def lines(tmp_path: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def test_files_are_packed_full_and_a_curve_is_drawn(tmp_path: Path, files: Path) -> None:
    assert run(tmp_path, "--data", files, training={"steps": 8}) == 0
    assert all(line["fill"] >= 0.98 for line in lines(tmp_path, "train"))
    assert lines(tmp_path, "eval")[0]["loss"] > 0
    assert (tmp_path / "run/training_curve.png").read_bytes().startswith(b"\x89PNG")


def test_classification_from_scratch_from_a_generative_model_and_on(
    tmp_path: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", files, "--task", "classification"]
    assert run(tmp_path / "a", *words, training={"steps": 40, "learning_rate": 0.01, "optimizer": "adamw"}) == 0
    assert lines(tmp_path / "a", "train")[-1]["accuracy"] > 0.9
    assert "bits_per_byte" not in lines(tmp_path / "a", "train")[-1]
    assert lines(tmp_path / "a", "eval")[-1]["accuracy"] > 0.9
    classifier = tmp_path / "a/run/checkpoints/step-00000040"
    model = BGPTForClassification.from_pretrained(classifier)
    assert model.labels == {"ones.bin": 0, "ones.neg": 1, "twos.bin": 2, "twos.neg": 3}

    assert run(tmp_path / "b", "--data", files) == 0
    generative = tmp_path / "b/run/checkpoints/step-00000003"
    assert run(tmp_path / "c", *words, "--init-from", generative, training=STILL) == 0
    started = BGPTForClassification.from_pretrained(tmp_path / "c/run/checkpoints/step-00000001").state_dict()
    for name, tensor in BGPT.from_pretrained(generative).patch_level_decoder.state_dict().items():
        torch.testing.assert_close(started[f"patch_level_decoder.{name}"], tensor)

    assert run(tmp_path / "d", *words, "--init-from", classifier, training=STILL) == 0
    assert lines(tmp_path / "d", "eval")[-1]["accuracy"] == lines(tmp_path / "a", "eval")[-1]["accuracy"]
    assert run(tmp_path / "e", "--data", files, "--init-from", classifier) == 1
    assert "expected a generative model, got a classifier" in capsys.readouterr().err


def test_conversion_pairs_both_ways(tmp_path: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--data", files, "--conversion", "bin&neg", model={**TINY["model"], "patch_length": 64}) == 0
    described = json.loads((tmp_path / "run/run.json").read_text())["source"]
    assert described["kind"] == "pairs"
    assert run(tmp_path / "x", "--data", files, "--conversion", "bin->mid") == 1
    assert "DataError" in capsys.readouterr().err


def test_rows_of_parquet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = [f"row {index} " * (1 + index % 9) for index in range(200)]
    parquet.write_table(pa.table({"text": texts}), tmp_path / "rows.parquet")
    assert run(tmp_path, "--data", tmp_path / "rows.parquet") == 1
    assert "expected --column" in capsys.readouterr().err
    assert run(tmp_path, "--data", tmp_path / "rows.parquet", "--column", "text") == 0
    assert json.loads((tmp_path / "run/run.json").read_text())["source"]["kind"] == "arrow"


def test_a_mixture_of_files_and_the_machine(tmp_path: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", files, "cpu-states"]
    assert run(tmp_path, *words) == 1
    assert "expected --weights" in capsys.readouterr().err
    assert run(tmp_path, *words, "--weights", 0.5, 0.5, training={"steps": 12}) == 0
    described = json.loads((tmp_path / "run/run.json").read_text())["source"]
    assert described["kind"] == "mixed"
    assert sum(described["batches"]) == 12
    assert all(described["batches"])
    assert run(tmp_path / "x", *words, "--weights", 1) == 1
    assert "expected one for each of the 2 --data" in capsys.readouterr().err


def test_epochs_are_steps(tmp_path: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = options_from_file(_file(tmp_path, {**TINY, "data": [str(files)]}))
    patches = TrainData(options, options.model).source.total_patches  # type: ignore[attr-defined]
    assert run(tmp_path, "--data", files, "--epochs", 1.5) == 0
    assert lines(tmp_path, "train")[-1]["step"] == round(1.5 * patches / 64)
    assert run(tmp_path / "x", "--epochs", 1) == 1
    assert "--epochs: expected files" in capsys.readouterr().err


def test_evaluation_data_of_its_own_and_its_limit(tmp_path: Path, files: Path) -> None:
    words = ["--data", files, "--eval-data", files]
    assert run(tmp_path, *words) == 0
    whole = TrainData(_options(tmp_path), _options(tmp_path).model)._held_out()
    assert sum(batch.num_documents for batch in whole) == 80
    assert run(tmp_path / "x", *words, "--eval-patches", 70) == 0
    limited = TrainData(_options(tmp_path / "x"), _options(tmp_path / "x").model)._held_out()
    assert len(limited) == 2


def _options(tmp_path: Path) -> Train:
    return options_from_file(tmp_path / "run/options.json")


def _file(tmp_path: Path, options: dict[str, Any]) -> Path:
    path = tmp_path / "options.json"
    path.write_text(json.dumps(options))
    return path


def test_options_files_reproduce_a_run(tmp_path: Path, files: Path) -> None:
    assert run(tmp_path, "--data", files, "--weights", 1.0) == 0
    again = tmp_path / "again"
    assert main(["train", "--config", str(tmp_path / "run/options.json"), "--output", str(again)]) == 0
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
    assert paper.training.precision == "bf16"
    assert all(preset.patches_per_batch >= preset.model.patch_length for preset in PRESETS.values())


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
    ],
)
def test_bad_options_are_named(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        options_from_file(_file(tmp_path, options))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "conversion"], "expected --conversion"),
        (["--task", "classification"], "expected --data"),
        (["--task", "generation", "--data", ".", "--conversion", "a->b"], "expected --task conversion"),
        (["--task", "cpu-states", "--data", "."], "expected no --data"),
        (["--weights", "1"], "expected --task generation"),
    ],
)
def test_options_that_contradict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["train", "--output", str(tmp_path / "run"), *words]) == 1
    assert message in capsys.readouterr().err


def test_migrate_config(tmp_path: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.py").write_text(RELEASED)
    target = tmp_path / "new.yaml"
    assert main(["migrate-config", str(tmp_path / "config.py"), "--output", str(target)]) == 0
    out = capsys.readouterr().out
    assert "MY_OWN: unknown" in out
    assert "WEIGHTS_PATH: not carried over" in out
    options = options_from_file(target)
    assert options.data == ("tunes/train", "speech/train")
    assert (options.task, options.conversion, options.init_from) == ("conversion", "abc&mid", None)
    assert (options.patches_per_batch, options.epochs, options.eval_share) == (256, 2.0, 0.01)
    assert (options.model.hidden_size, options.model.patch_length, options.model.dropout) == (64, 64, 0.1)
    assert options.model.num_heads == 1
    training = options.training
    assert (training.learning_rate, training.accumulation, training.targets_per_step) == (1e-4, 2, 100)
    assert (training.schedule, training.warmup_share, training.optimizer) == ("cosine", 0.1, "adamw")
    assert main(["migrate-config", str(tmp_path / "config.py"), "--output", str(target)]) == 1
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("PATCH_SIZE = ", "got no Python"),
        ("PATCH_SIZE = __import__('os').system('touch ran')", "expected a constant"),
        ("x = 1", "expected the released config.py"),
        ("PATCH_SIZE = 16\nBATCH_SIZE = 0", "BATCH_SIZE: expected a whole number"),
        ("PATCH_SIZE = 16\nTRAIN_FOLDERS = 'a'", "expected lists of paths"),
    ],
)
def test_migrate_config_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.py").write_text(text)
    assert main(["migrate-config", "config.py", "--output", "new.yaml"]) == 1
    assert message in capsys.readouterr().err
    assert not Path("ran").exists()
    assert not Path("new.yaml").exists()
