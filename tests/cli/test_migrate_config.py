"""`bgpt-fast migrate-config`: the names and the arithmetic of every released config.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.cli import CommandLine

from bgpt_fast.cli.train_options import Train, options_from_file

FIRST = """# Configuration for training
TRAIN_FOLDERS = [
                # "wikipedia/train",
                "ag_news/train",
                 ]     # Folder containing training data
EVAL_FOLDERS = [
                "ag_news/test",
                ]
PRE_WEIGHTS_PATH = "weights-text.pth"                           # Path to pre-trained weights
WEIGHTS_PATH = "weights-test-ag-cls.pth"                        # Path to save weights
LOGS_PATH = "logs-test-ag-cls.txt"                              # Path to save logs
PATCH_SIZE = 16                                                 # Patch Size
PATCH_LENGTH = 512                                              # Patch Length
BYTE_NUM_LAYERS = 3                                             # Number of layers in the decoder
PATCH_NUM_LAYERS = 12                                           # Number of layers in the encoder
HIDDEN_SIZE = 768                                               # Hidden Size
NUM_EPOCHS = 32
LEARNING_RATE = 1e-5                                            # Learning rate for the optimizer
BATCH_SIZE = 1                                                  # Batch size for training
ACCUMULATION_STEPS = 1
PATCH_SAMPLING_BATCH_SIZE = 0
LOAD_FROM_CHECKPOINT = False                                    # Whether to load weights from a checkpoint
LOAD_FROM_PRE_CHECKPOINT = True                                 # Whether to load pre-trained weights
INFERENCE_WEIGHTS_PATH = "weights-conversion.pth"               # Path to weights for inference
INPUT_EXT = "abc"
TARGET_EXT = "mid"
INPUT_FOLDER = "input"
OUTPUT_FOLDER = "output"
MODE = "convert"                                                # Mode of inference (convert or generate)
NUM_SAMPLES = 10
TOP_K = 0
TOP_P = 1.
TEMPERATURE = 1"""
"""The names and values of the first released file."""
LAST = """
TRAIN_FOLDERS = ["irishman/train",]
EVAL_FOLDERS = []
EVAL_SPLIT = 0.02
PRETRAINED_PATH = "weights-irish.pth"
WEIGHTS_PATH = "weights-irish.pth"
LOGS_PATH = "logs-irish.txt"
PATCH_SIZE = 16
PATCH_LENGTH = 1024
BYTE_NUM_LAYERS = 3
PATCH_NUM_LAYERS = 12
HIDDEN_SIZE = 768
NUM_EPOCHS = 32
LEARNING_RATE = 1e-5
BATCH_SIZE = 8
ACCUMULATION_STEPS = 1
PATCH_SAMPLING_BATCH_SIZE = 100
LOAD_FROM_CHECKPOINT = True
LOAD_FROM_PRETRAINED = False
CONVERSION_MODE = None
WANDB_LOG = True
SHOW_WARNS = False
DETERMINISTIC = True
INFERENCE_WEIGHTS_PATH = "weights-conversion.pth"
INPUT_EXT = "abc"
TARGET_EXT = "mid"
INPUT_FOLDER = "input"
OUTPUT_FOLDER = "output"
INFERENCE_MODE = "convert"
NUM_SAMPLES = 100
TOP_K = 0
TOP_P = 1.
TEMPERATURE = 1
"""
"""The names and values of the last one, but EVAL_FOLDERS, EVAL_SPLIT and PATCH_SAMPLING_BATCH_SIZE."""


@pytest.fixture
def migrated(tmp_path: Path, cli: CommandLine) -> Any:
    """Migrates a text; returns the options of train, and what was printed."""

    def migrate(text: str, *words: str) -> tuple[Train, str]:
        (tmp_path / "config.py").write_text(text, encoding="utf-8")
        target = tmp_path / f"options-{len([*tmp_path.iterdir()])}.yaml"
        out = cli.run("migrate-config", tmp_path / "config.py", "--output", target, *words).out
        return options_from_file(target), out

    return migrate


def test_the_first_released_file(migrated: Any) -> None:
    options, out = migrated(FIRST)
    assert "unknown" not in out
    assert (options.data, options.eval_data) == (("ag_news/train",), ("ag_news/test",))
    assert (str(options.init_from), options.task, options.epochs) == ("weights-text.pth", "generation", 32.0)
    assert (options.patches_per_batch, options.training.accumulation) == (512, 1)
    assert not options.training.wandb
    assert "MODE: not carried over: bgpt-fast generate, or bgpt-fast convert" in out
    options, _ = migrated(FIRST.replace("LOAD_FROM_PRE_CHECKPOINT = True", "LOAD_FROM_PRE_CHECKPOINT = False"))
    assert options.init_from is None


def test_the_last_released_file(migrated: Any) -> None:
    options, out = migrated(LAST)
    assert "unknown" not in out
    assert (options.data, options.eval_data, options.eval_share) == (("irishman/train",), (), 0.02)
    assert (options.init_from, options.task, options.epochs) == (None, "generation", 32.0)
    assert (options.patches_per_batch, options.training.accumulation) == (8 * 1024, 1)
    model, training = options.model, options.training
    assert (model.patch_size, model.patch_length, model.byte_num_layers) == (16, 1024, 3)
    assert (model.patch_num_layers, model.hidden_size, model.dropout) == (12, 768, 0.1)
    assert (model.num_heads, model.byte_num_heads) == (768 // 64, 768 // 64)
    assert (training.learning_rate, training.targets_per_step, training.wandb) == (1e-5, 100, True)
    # torch.optim.AdamW's defaults, and get_scheduler("cosine") with a tenth of the steps for warm-up.
    assert (training.optimizer, training.betas, training.eps, training.weight_decay) == (
        *("adamw", (0.9, 0.999), 1e-8, 0.01),
    )
    assert (training.schedule, training.warmup_share, training.min_lr_ratio) == ("cosine", 0.1, 0.0)


def released_parts(batch_size: int, accumulation: int) -> list[int]:
    """The files of each forward pass of a step, as train-gen.py's `split_into_minibatches` cuts them."""
    rows, size = list(range(batch_size)), batch_size // accumulation
    return [len(rows[start : start + size]) for start in range(0, len(rows), size)]


@pytest.mark.parametrize(("size", "accumulation"), [(8, 1), (8, 2), (8, 4), (16, 4), (8, 8), (8, 3), (7, 2)])
def test_the_batch_is_divided_by_the_accumulation(size: int, accumulation: int, migrated: Any) -> None:
    text = LAST.replace("BATCH_SIZE = 8", f"BATCH_SIZE = {size}")
    options, _ = migrated(text.replace("ACCUMULATION_STEPS = 1", f"ACCUMULATION_STEPS = {accumulation}"))
    parts = released_parts(size, accumulation)
    assert options.patches_per_batch == max(parts) * 1024
    assert options.training.accumulation == len(parts)


def test_a_classifier_has_one_file_a_step(migrated: Any) -> None:
    text = LAST.replace("ACCUMULATION_STEPS = 1", "ACCUMULATION_STEPS = 4")
    options, out = migrated(text, "--task", "classification")
    assert (options.task, options.patches_per_batch, options.training.accumulation) == ("classification", 1024, 1)
    assert options.training.targets_per_step == 0
    assert "one file a step" in out


@pytest.mark.parametrize(("mode", "both"), [("abc->mid", False), ("abc&mid", True)])
def test_conversion(mode: str, both: bool, migrated: Any) -> None:
    options, out = migrated(LAST.replace("CONVERSION_MODE = None", f"CONVERSION_MODE = '{mode}'"))
    assert (options.task, options.conversion) == ("conversion", mode)
    assert ("trains both ways" in out) == both


def test_other_ways_to_write_constants(migrated: Any) -> None:
    text = LAST.replace("BATCH_SIZE = 8", "BATCH_SIZE: int = 4").replace("TOP_K = 0", "TOP_K = MY_OWN = 7")
    text = text.replace('["irishman/train",]', '("a", "é")').replace("PATCH_SIZE = 16", "\ufeffPATCH_SIZE = 16")
    options, out = migrated(
        "\ufeff'''BATCH_SIZE'''\nimport os\nHOME = os.getcwd()\nDEBUG: bool\n" + text.replace("\ufeff", "")
    )
    assert (options.patches_per_batch, options.data) == (4 * 1024, ("a", "é"))
    assert "HOME: unknown" in out
    assert "MY_OWN: unknown" in out
    options, _ = migrated("PATCH_SIZE = 8\nBATCH_SIZE = 2\nBATCH_SIZE = 3\n")
    assert options.patches_per_batch == 3 * 1024, "the last one counts, and PATCH_LENGTH is the released one"


def test_what_a_file_lacks_is_said(migrated: Any) -> None:
    options, out = migrated("PATCH_LENGTH = 64\n")
    assert options.patches_per_batch == 8 * 64
    assert "BATCH_SIZE: not in the file; 8, the released value" in out
    assert "TRAIN_FOLDERS: none" in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("PATCH_SIZE = ", "got no Python"),
        ("PATCH_SIZE = __import__('os').system('touch ran')", "config.py:1: PATCH_SIZE: expected to be assigned"),
        ("PATCH_SIZE = 16\nBATCH_SIZE = 4 * 2", "config.py:2: BATCH_SIZE: expected to be assigned a constant"),
        ("PATCH_SIZE = 16\nBATCH_SIZE *= 2", "config.py:2: BATCH_SIZE: expected to be assigned a constant"),
        ("PATCH_SIZE = 16\nif x:\n    BATCH_SIZE = 2", "config.py:2: BATCH_SIZE: expected to be assigned a constant"),
        ("PATCH_SIZE = 16\nTRAIN_FOLDERS.append('a')", "config.py:2: TRAIN_FOLDERS: expected to be assigned"),
        ("PATCH_SIZE, BATCH_SIZE = 16, 8", "config.py:1: PATCH_SIZE: expected to be assigned a constant"),
        ("PATCH_SIZE = 16\nfrom other import *", "config.py:2: expected constants, got 'from other import"),
        ("PATCH_SIZE = 16\nimport os as BATCH_SIZE", "config.py:2: BATCH_SIZE: expected to be assigned"),
        ("PATCH_SIZE = 16\nfrom other import BATCH_SIZE", "config.py:2: BATCH_SIZE: expected to be assigned"),
        ("PATCH_SIZE = 16\ndef BATCH_SIZE(): pass", "config.py:2: BATCH_SIZE: expected to be assigned"),
        ("PATCH_SIZE = 16\nmatch 1:\n case BATCH_SIZE: pass", "config.py:2: BATCH_SIZE: expected to be assigned"),
        ("PATCH_SIZE = 16\nglobals()['BATCH_SIZE'] = 4", "config.py:2: BATCH_SIZE: expected to be assigned"),
        ("PATCH_SIZE = 16\nx = globals().update(BATCH_SIZE=4)", "config.py:2: BATCH_SIZE: expected to be assigned"),
        ("PATCH_SIZE = 16\nglobals()['BATCH_SIZE']: int = 4", "config.py:2: BATCH_SIZE: expected to be assigned"),
        ("PATCH_SIZE = 16\nexec('BATCH_SIZE = 4')", "config.py:2: BATCH_SIZE: expected to be assigned"),
        ("PATCH_SIZE = 16\nX = (BATCH_SIZE := 4)", "config.py:2: BATCH_SIZE: expected to be assigned"),
        (
            "PATCH_SIZE = 16\nLOAD_FROM_PRE_CHECKPOINT = True\nLOAD_FROM_PRETRAINED = False",
            "LOAD_FROM_PRETRAINED: expected one value, got False, and True as LOAD_FROM_PRE_CHECKPOINT",
        ),
        ("PATCH_SIZE = 16\nEVAL_SPLIT = 2", "EVAL_SPLIT: expected a share from 0 to 1"),
        ("PATCH_SIZE = 16\nCONVERSION_MODE = 'abc'", "CONVERSION_MODE: conversion: expected two different extensions"),
        ("x = 1", "expected the released config.py"),
        ("PATCH_SIZE = 16\nBATCH_SIZE = 0", "BATCH_SIZE: expected a whole number"),
        (
            "PATCH_SIZE = 16\nBATCH_SIZE = 2\nACCUMULATION_STEPS = 4",
            "expected at most BATCH_SIZE 2",
        ),
        ("PATCH_SIZE = 16\nTRAIN_FOLDERS = 'a'", "TRAIN_FOLDERS: expected a list of paths"),
        ("PATCH_SIZE = 16\nLEARNING_RATE = '1e-5'", "learning_rate: expected float, got '1e-5'"),
        ("PATCH_SIZE = 16\nLOAD_FROM_PRETRAINED = True", "PRETRAINED_PATH: expected the path of weights"),
        ("PATCH_SIZE = 16\nHIDDEN_SIZE = 100\nPATCH_LENGTH = 1", "patch_length: expected 2…2,147,483,647"),
    ],
)
def test_what_is_refused_is_named(
    tmp_path: Path, cli: CommandLine, text: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.py").write_text(text)
    cli.fails(message, "migrate-config", "config.py", "--output", "new.yaml")
    assert not Path("ran").exists()
    assert not Path("new.yaml").exists()


def test_an_existing_file_is_not_replaced(tmp_path: Path, cli: CommandLine) -> None:
    (tmp_path / "config.py").write_text(LAST)
    (tmp_path / "new.yaml").write_text("mine")
    cli.fails("exists", "migrate-config", tmp_path / "config.py", "--output", tmp_path / "new.yaml")
    assert (tmp_path / "new.yaml").read_text() == "mine"
