"""`bgpt-fast migrate-config`: converts the released code's `config.py` to options of `bgpt-fast train`."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from bgpt_fast.cli.common import read_options
from bgpt_fast.cli.train_options import options_from_values
from bgpt_fast.data.pairs import parse_conversion
from bgpt_fast.files import atomic_write, read_file
from bgpt_fast.parsing import MAX_BYTES, dump_yaml
from bgpt_fast.terminal import print_text

_MODEL = {
    "PATCH_SIZE": "patch_size",
    "PATCH_LENGTH": "patch_length",
    "BYTE_NUM_LAYERS": "byte_num_layers",
    "PATCH_NUM_LAYERS": "patch_num_layers",
    "HIDDEN_SIZE": "hidden_size",
}
_OLD_NAMES = {
    "LOAD_FROM_PRE_CHECKPOINT": "LOAD_FROM_PRETRAINED",
    "PRE_WEIGHTS_PATH": "PRETRAINED_PATH",
    "MODE": "INFERENCE_MODE",
}
"""Names in the first released files → those in later ones."""
_RELEASED = {
    "PATCH_SIZE": 16,
    "PATCH_LENGTH": 1024,
    "BYTE_NUM_LAYERS": 3,
    "PATCH_NUM_LAYERS": 12,
    "HIDDEN_SIZE": 768,
    "NUM_EPOCHS": 32,
    "LEARNING_RATE": 1e-5,
    "BATCH_SIZE": 8,
    "ACCUMULATION_STEPS": 1,
}
"""Values of the last released config.py, for constants that a file lacks."""
_OPTIONAL = {
    "TRAIN_FOLDERS": [],
    "EVAL_FOLDERS": [],
    "EVAL_SPLIT": 0.01,
    "PATCH_SAMPLING_BATCH_SIZE": 0,
    "LOAD_FROM_PRETRAINED": False,
    "PRETRAINED_PATH": None,
    "CONVERSION_MODE": None,
    "WANDB_LOG": False,
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
_SETTERS = {"globals", "locals", "vars", "exec", "eval", "setattr"}
_KNOWN = {*_RELEASED, *_OPTIONAL, *_ELSEWHERE}


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
    migrated, notes = migrate(read_constants(options.config), options.task)
    options_from_values(migrated, str(options.config))  # raises the errors that bgpt-fast train would
    is_yaml = options.output.suffix in (".yaml", ".yml")
    with atomic_write(options.output) as file:
        file.write((dump_yaml(migrated) if is_yaml else json.dumps(migrated, indent=2) + "\n").encode())
    for note in notes:
        print_text(f"· {note}")
    print_text(f"{options.output}: written; now: bgpt-fast train --config {shlex.quote(str(options.output))}")
    return 0


def read_constants(path: Path) -> dict[str, Any]:
    """Returns the constants that a Python file assigns to names; the file is not run.

    Args:
        path: the released config.py of any version. Names of the user's own whose value is no constant have the value
            None.

    Raises:
        ValueError: it is not Python, has none of the released names, or does anything else with one than to assign a
            constant to it.
        OSError: it cannot be read.
    """
    try:
        tree = ast.parse(read_file(path, MAX_BYTES), str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: nested too deeply
        raise ValueError(f"{path}: expected the released config.py, got no Python: {error!s:.200}") from error
    constants: dict[str, Any] = {}
    for node in tree.body:
        targets: Sequence[ast.expr] = ()
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets = [node.target]
        if targets and all(isinstance(target, ast.Name) for target in targets):
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            try:
                value = ast.literal_eval(node.value)  # type: ignore[attr-defined]
            except (ValueError, TypeError, RecursionError, MemoryError):
                value = None
                _refuse(path, node, [*names, *_names_set(node)])
            constants |= dict.fromkeys(names, value)
        elif not _has_no_effect(node):
            _refuse(path, node, _names(node))
    if not {"PATCH_SIZE", "PATCH_LENGTH", "HIDDEN_SIZE"} & constants.keys():
        raise ValueError(
            f"{path}: expected the released config.py with PATCH_SIZE and so on, got {sorted(constants)[:10]}"
        )
    return constants


def _has_no_effect(node: ast.stmt) -> bool:
    """Whether a statement is text (a docstring), or declares a name without a value."""
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return is_text or (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is None)


def _names_set(node: ast.AST) -> list[str]:
    """The names that an expression sets: by :=, or those in its calls of functions that can set any."""
    names = [part.target.id for part in ast.walk(node) if isinstance(part, ast.NamedExpr)]
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and _SETTERS & set(_names(call.func)):
            names += _names(call)
    return names


def _names(node: ast.AST) -> list[str]:
    """All names in a piece of code: of variables, arguments, functions, modules, and within texts."""
    names: list[str] = []
    for part in ast.walk(node):
        for _, value in ast.iter_fields(part):
            names += [
                name
                for text in (value if isinstance(value, list) else [value])
                if isinstance(text, str)
                for name in re.findall(r"\w+|\*", text)
            ]
    return names


def _refuse(path: Path, node: ast.stmt, names: Sequence[str]) -> None:
    """Raises ValueError if one of the names that a statement uses is a released one."""
    code = " ".join(ast.unparse(node).split())
    if isinstance(node, ast.ImportFrom) and "*" in names:
        raise ValueError(
            f"{path}:{node.lineno}: expected constants, got {code!r:.80}, which may set any of them; write their values"
        )
    name = next((name for name in names if _OLD_NAMES.get(name, name) in _KNOWN), None)
    if name is not None:
        raise ValueError(
            f"{path}:{node.lineno}: {name}: expected to be assigned a constant, got {code!r:.80}; write its value"
        )


def migrate(constants: dict[str, Any], task: str) -> tuple[dict[str, Any], list[str]]:
    """Returns options for `bgpt-fast train`, and notes for the user.

    Args:
        constants: those of `read_constants`; missing ones take the released values.
        task: "generation" or "classification".

    Raises:
        ValueError: a constant has an impossible value.
    """
    for name, new in _OLD_NAMES.items():
        if name in constants and constants.get(new, constants[name]) != constants[name]:
            raise ValueError(
                f"{new}: expected one value, got {constants[new]!r:.80}, and {constants[name]!r:.80} as {name}"
            )
    constants_by_name = {_OLD_NAMES.get(name, name): value for name, value in constants.items()}
    values = {**_RELEASED, **_OPTIONAL, **constants_by_name}
    folders = {name: values[name] for name in ("TRAIN_FOLDERS", "EVAL_FOLDERS")}
    for name, paths in folders.items():
        if not isinstance(paths, list | tuple) or not all(isinstance(path, str) for path in paths):
            raise ValueError(f"{name}: expected a list of paths, got {paths!r:.80}")
    if not isinstance(values["EVAL_SPLIT"], int | float) or not 0 <= values["EVAL_SPLIT"] <= 1:
        raise ValueError(f"EVAL_SPLIT: expected a share from 0 to 1, got {values['EVAL_SPLIT']!r:.80}")
    context, epochs = _positive(values, "PATCH_LENGTH"), _positive(values, "NUM_EPOCHS")
    rows, accumulation, batch_note = _batch(values, task)
    migrated: dict[str, Any] = {
        "preset": "paper-110m",
        "data": [*folders["TRAIN_FOLDERS"]],
        "task": task,
        "patches_per_batch": rows * context,
        "epochs": float(epochs),
        "model": {
            **{ours: values[theirs] for theirs, ours in _MODEL.items()},
            "dropout": 0.1,
            "num_heads": None,
            "byte_num_heads": None,
        },
        "training": {
            "learning_rate": values["LEARNING_RATE"],
            "accumulation": accumulation,
            # The released train-cls.py does not sample patches.
            "targets_per_step": values["PATCH_SAMPLING_BATCH_SIZE"] if task == "generation" else 0,
            "wandb": values["WANDB_LOG"],
            "wandb_project": "bgpt",
            "save_every": 1000,
            "eval_every": 1000,
        },
    }
    notes = [
        f"{name}: not in the file; {value}, the released value"
        for name, value in _RELEASED.items()
        if name not in constants
    ]
    notes += [
        batch_note,
        "documents are packed, so that a batch holds more of them than the released code's, and an epoch has fewer "
        "steps",
        "dropout is 0.1, the released setting; 0 trains faster",
        "the learning rate warms up over 10 % and falls along a cosine, as the released code meant; its loop kept it "
        "constant",
        "the released code kept the checkpoint of its best epoch: so does --training.best-metric "
        + ("loss" if task == "generation" else "accuracy --training.best-is highest"),
    ]
    if folders["EVAL_FOLDERS"]:
        migrated["eval_data"] = [*folders["EVAL_FOLDERS"]]
    else:
        migrated["eval_share"] = values["EVAL_SPLIT"]
    if values["LOAD_FROM_PRETRAINED"]:
        if not isinstance(values["PRETRAINED_PATH"], str):
            raise ValueError(
                f"PRETRAINED_PATH: expected the path of weights, since LOAD_FROM_PRETRAINED is "
                f"{values['LOAD_FROM_PRETRAINED']!r}, got {values['PRETRAINED_PATH']!r:.80}"
            )
        migrated["init_from"] = values["PRETRAINED_PATH"]
        notes.append("init_from: the sizes of those weights replace the model's")
    mode = values["CONVERSION_MODE"]
    if mode is not None and task == "generation":
        try:
            parse_conversion(mode)
        except (TypeError, ValueError) as error:
            raise ValueError(f"CONVERSION_MODE: {error}") from error
        migrated |= {"task": "conversion", "conversion": mode}
        if "&" in str(mode):
            notes.append(f"{mode}: trains both ways; the released code took (a, b) twice and never (b, a)")
    if not migrated["data"]:
        notes.append("TRAIN_FOLDERS: none; add bgpt-fast train --data")
    for name in constants:
        known = _OLD_NAMES.get(name, name)
        if known in _ELSEWHERE:
            notes.append(f"{name}: not carried over: {_ELSEWHERE[known]}")
        elif known not in _KNOWN:
            notes.append(f"{name}: unknown, not carried over")
    return migrated, notes


def _batch(values: dict[str, Any], task: str) -> tuple[int, int, str]:
    """Returns the files of a batch, the batches of a step, and a note that says where they come from.

    The released train-gen.py splits BATCH_SIZE files into parts of BATCH_SIZE // ACCUMULATION_STEPS; train-cls.py
    reads neither, and takes one file at a time.
    """
    size, accumulation = _positive(values, "BATCH_SIZE"), _positive(values, "ACCUMULATION_STEPS")
    context = values["PATCH_LENGTH"]
    if task == "classification":
        return (
            1,
            1,
            f"patches_per_batch is PATCH_LENGTH = {context}: train-cls.py takes one file a step, not BATCH_SIZE",
        )
    if accumulation > size:
        raise ValueError(f"ACCUMULATION_STEPS: expected at most BATCH_SIZE {size}, got {accumulation}")
    rows = size // accumulation
    parts = -(-size // rows)
    note = (
        f"patches_per_batch is BATCH_SIZE // ACCUMULATION_STEPS · PATCH_LENGTH = {rows} · {context}; a step has "
        f"{parts} such batches"
    )
    return rows, parts, note


def _positive(values: dict[str, Any], name: str) -> int:
    value = values[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r:.80}")
    return value
