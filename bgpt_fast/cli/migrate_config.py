"""`bgpt-fast migrate-config`: converts the released code's `config.py` to options of `bgpt-fast train`."""

from __future__ import annotations

import ast
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml

from bgpt_fast.cli.common import read_options
from bgpt_fast.files import atomic_write, read_text
from bgpt_fast.parsing import MAX_BYTES
from bgpt_fast.terminal import print_text

_MODEL = {
    "PATCH_SIZE": "patch_size",
    "PATCH_LENGTH": "patch_length",
    "BYTE_NUM_LAYERS": "byte_num_layers",
    "PATCH_NUM_LAYERS": "patch_num_layers",
    "HIDDEN_SIZE": "hidden_size",
}
_TRAINING = {
    "LEARNING_RATE": "learning_rate",
    "ACCUMULATION_STEPS": "accumulation",
    "PATCH_SAMPLING_BATCH_SIZE": "targets_per_step",
    "WANDB_LOG": "wandb",
}
_ELSEWHERE = {
    "WEIGHTS_PATH": "a run's checkpoints are in its own folder, --output",
    "LOGS_PATH": "a run's log.jsonl is in its own folder, --output",
    "LOAD_FROM_CHECKPOINT": "a run is resumed when it is started again with the same --output",
    "SHOW_WARNS": "warnings are shown once each",
    "DETERMINISTIC": "every run is seeded: --training.seed",
    "INFERENCE_WEIGHTS_PATH": "bgpt-fast generate --checkpoint",
    "INPUT_EXT": "bgpt-fast convert takes the extension from the files' names",
    "TARGET_EXT": "bgpt-fast convert --to",
    "INPUT_FOLDER": "bgpt-fast convert FOLDER",
    "OUTPUT_FOLDER": "bgpt-fast generate --output",
    "INFERENCE_MODE": "bgpt-fast generate, or bgpt-fast convert",
    "NUM_SAMPLES": "bgpt-fast generate --count",
    "TOP_K": "bgpt-fast generate --top-k",
    "TOP_P": "bgpt-fast generate --top-p",
    "TEMPERATURE": "bgpt-fast generate --temperature",
}


@dataclass(frozen=True)
class MigrateConfig:
    """Converts the released code's config.py to a file of options for bgpt-fast train --config.

    The file is parsed for constants, never run. The options follow what the released code intended (AdamW, 10 % warm-up
    and cosine, which its training loop did not apply; dropout 0.1); constants without a matching option are listed.

    Args:
        config: the released config.py.
        output: the options to write, as JSON, or as YAML if named .yaml or .yml.
        task: "generation" for what train-gen.py trained (conversion follows from CONVERSION_MODE), "classification"
            for train-cls.py.
    """

    config: Annotated[Path, tyro.conf.Positional]
    output: Path = Path("options.yaml")
    task: Literal["generation", "classification"] = "generation"


OPTIONS = MigrateConfig


def run(words: Sequence[str]) -> int:
    options = read_options(MigrateConfig, "migrate-config", words)
    if options.output.exists():
        raise FileExistsError(f"{options.output}: exists; choose another --output or remove it")
    constants = read_constants(options.config)
    migrated, notes = migrate(constants, options.task)
    with atomic_write(options.output) as file:
        file.write(_text(migrated, options.output).encode())
    for note in notes:
        print_text(f"· {note}")
    print_text(f"{options.output}: written; now: bgpt-fast train --config {shlex.quote(str(options.output))}")
    return 0


def read_constants(path: Path) -> dict[str, Any]:
    """Returns the constants that a Python file assigns to names; the file is not run.

    Raises:
        ValueError: it is not Python, assigns a value that is not a constant, or has none of the released names.
        OSError: it cannot be read.
    """
    try:
        tree = ast.parse(read_text(path, MAX_BYTES), str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: nested too deeply
        raise ValueError(f"{path}: expected the released config.py, got no Python: {error!s:.200}") from error
    constants: dict[str, Any] = {}
    for node in tree.body:
        if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)):
            continue
        name = node.targets[0].id
        try:
            constants[name] = ast.literal_eval(node.value)
        except (ValueError, TypeError, RecursionError, MemoryError) as error:
            raise ValueError(
                f"{path}:{node.lineno}: {name}: expected a constant, got an expression; write its value"
            ) from error
    if not {"PATCH_SIZE", "PATCH_LENGTH", "HIDDEN_SIZE"} & constants.keys():
        raise ValueError(
            f"{path}: expected the released config.py with PATCH_SIZE and so on, got {sorted(constants)[:10]}"
        )
    return constants


def migrate(constants: dict[str, Any], task: str) -> tuple[dict[str, Any], list[str]]:
    """Returns options for `bgpt-fast train`, and notes for the user.

    Args:
        constants: those of the released config.py; missing ones take the released values.
        task: "generation" or "classification".

    Raises:
        ValueError: a constant has an impossible value.
    """
    folders = [constants.get(name, []) for name in ("TRAIN_FOLDERS", "EVAL_FOLDERS")]
    if not all(isinstance(paths, list) and all(isinstance(path, str) for path in paths) for paths in folders):
        raise ValueError(f"TRAIN_FOLDERS, EVAL_FOLDERS: expected lists of paths, got {folders}")
    model = {ours: constants[theirs] for theirs, ours in _MODEL.items() if theirs in constants}
    training = {ours: constants[theirs] for theirs, ours in _TRAINING.items() if theirs in constants}
    rows = _positive(constants, "BATCH_SIZE", 16)
    context = _positive(constants, "PATCH_LENGTH", 512)
    migrated: dict[str, Any] = {
        "preset": "paper-110m",
        "data": folders[0],
        "task": task,
        "patches_per_batch": rows * context,
        "epochs": float(_positive(constants, "NUM_EPOCHS", 32)),
        "model": {**model, "dropout": 0.1, "num_heads": None, "byte_num_heads": None},
        "training": {**training, "save_every": 1000, "eval_every": 1000},
    }
    notes = [
        f"patches_per_batch is BATCH_SIZE · PATCH_LENGTH = {rows} · {context}; documents are packed, so that a batch "
        "holds more of them than the released code's",
        "dropout is 0.1, the released setting; 0 trains faster",
        "the learning rate warms up over 10 % and falls along a cosine, as the released code meant; its loop kept it "
        "constant",
    ]
    if folders[1]:
        migrated["eval_data"] = folders[1]
    else:
        migrated["eval_share"] = float(constants.get("EVAL_SPLIT", 0.01))
    if constants.get("LOAD_FROM_PRETRAINED"):
        migrated["init_from"] = constants.get("PRETRAINED_PATH")
        notes.append("init_from: the sizes of those weights replace the model's")
    mode = constants.get("CONVERSION_MODE")
    if mode is not None and task == "generation":
        migrated |= {"task": "conversion", "conversion": str(mode)}
        if "&" in str(mode):
            notes.append(f"{mode}: trains both ways; the released code took (a, b) twice and never (b, a)")
    known = {*_MODEL, *_TRAINING, *_ELSEWHERE, "TRAIN_FOLDERS", "EVAL_FOLDERS", "EVAL_SPLIT", "BATCH_SIZE"}
    known |= {"NUM_EPOCHS", "LOAD_FROM_PRETRAINED", "PRETRAINED_PATH", "CONVERSION_MODE"}
    notes += [f"{name}: not carried over: {where}" for name, where in _ELSEWHERE.items() if name in constants]
    notes += [f"{name}: unknown, not carried over" for name in constants if name not in known]
    return migrated, notes


def _positive(constants: dict[str, Any], name: str, default: int) -> int:
    value = constants.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
    return value


def _text(options: dict[str, Any], path: Path) -> str:
    if path.suffix in (".yaml", ".yml"):
        return yaml.safe_dump(options, sort_keys=False, allow_unicode=True)
    return json.dumps(options, indent=2) + "\n"
