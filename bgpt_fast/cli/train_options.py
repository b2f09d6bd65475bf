"""Options of `bgpt-fast train`: their names and defaults, presets, and files in JSON or YAML."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from bgpt_fast.cli.common import HelpLayout
from bgpt_fast.config import BGPTConfig
from bgpt_fast.parsing import read_json, read_yaml
from bgpt_fast.tasks.cpu_states import SMALL_MACHINE, StreamOptions
from bgpt_fast.training import TrainConfig
from bgpt_fast.training.presets import PRESETS


@dataclass(frozen=True)
class Train:
    """Trains a model on files, or on random programs of the CPU-state machine.

    A run is one folder: options.json (pass it to --config to repeat the run), log.jsonl, checkpoints/, tensorboard/,
    training_curve.png. The same folder resumes a stopped run. SIGTERM and SIGINT save a checkpoint before exiting.
    Under torchrun each process trains on its share of the data.

    Args:
        data: files and folders to train on; if empty, random programs of the CPU-state machine.
        output: the run's folder.
        config: a JSON or YAML file of options; the command line takes precedence.
        preset: defaults: cpu-states without --data, tiny with it (minutes on two cores), small (an hour of a GPU),
            paper-110m.
        task: "auto" derives it from --data and --conversion; "classification" needs files LABEL_anything.ext.
        init_from: start from this checkpoint's weights and sizes.
        drafter_for: train a small model that guesses the bytes of this checkpoint's files, for generate and convert
            --drafter; --data are files as it was trained on, and the patch size and context are its own.
        conversion: "abc->mid", or "abc&mid" for both directions: files of a pair differ only in their extension.
        weights: share of the batches for each path of --data, each then a separate source; the path "cpu-states"
            means the machine.
        column: column of a table to learn, of bytes or text. Files may be URLs, such as hf://datasets/owner/name/,
            which are streamed.
        extension: the extension of all rows of a table.
        extension_column: a column with each row's extension, instead of --extension.
        patches_per_batch: maximum number of patches in a batch of packed documents; at least the context.
        epochs: passes over the data, instead of --training.steps and --training.max-minutes.
        eval_data: files and folders to evaluate on, instead of a share of --data.
        eval_share: share of the files held out for evaluation; 0 means no evaluation.
        eval_patches: number of patches in an evaluation: all of the held-out documents, or windows of every file and
            a sample of the pairs, labelled files or rows.
        split_by: hold files out by a hash of their "path", or of their "content", which keeps copies together. Pairs
            are always split by path, rows of tables by content.
        machine: the CPU-state machine and its programs.
        machine_on: where programs are generated: the "cpu", or the training "gpu"; "auto" means
            the GPU where training is on one and the build has CUDA. The programs are the same.
        programs_per_batch: number of programs in a batch.
        long_share: share of a batch's programs that have the largest number of instructions; the others have any
            length. Long programs have more targets; from short ones the model learns where in memory to look.
        small_values: share of the training programs whose start values and immediates are 0…15: among the programs of
            the paper small operands are rare. Held-out programs are always the paper's.
        eval_programs: number of held-out programs in an evaluation.
        model: sizes and initial values.
        training: duration, learning rate, evaluations, checkpoints and devices.
    """

    data: tuple[str, ...] = ()
    output: Path = Path("runs/train")
    config: Path | None = None
    preset: Literal["cpu-states", "tiny", "small", "paper-110m"] = "cpu-states"
    task: Literal["auto", "generation", "conversion", "classification", "cpu-states"] = "auto"
    init_from: Path | None = None
    drafter_for: Path | None = None
    conversion: str = ""
    weights: tuple[float, ...] = ()
    column: str = ""
    extension: str = "txt"
    extension_column: str | None = None
    patches_per_batch: int = PRESETS["cpu-states"].patches_per_batch
    epochs: float = 0.0
    eval_data: tuple[str, ...] = ()
    eval_share: float = 0.02
    eval_patches: int = 100_000
    split_by: Literal["path", "content"] = "path"
    machine: StreamOptions = SMALL_MACHINE
    machine_on: Literal["auto", "cpu", "gpu"] = "auto"
    programs_per_batch: int = 64
    long_share: float = 0.3
    small_values: float = 0.25
    eval_programs: int = 400
    model: BGPTConfig = PRESETS["cpu-states"].model
    training: TrainConfig = PRESETS["cpu-states"].training


SHORT = {
    "--steps": "--training.steps",
    "--minutes": "--training.max-minutes",
    "--lr": "--training.learning-rate",
    "--device": "--training.device",
    "--threads": "--training.threads",
    "--precision": "--training.precision",
    "--seed": "--training.seed",
    "--eval-every": "--training.eval-every",
    "--sample-every": "--training.sample-every",
    "--save-every": "--training.save-every",
}
"""Short forms of options."""
_BOOLEANS = {"yes": True, "on": True, "no": False, "off": False}
"""The words that YAML 1.1 reads as truth values, besides true and false."""
LAYOUT = HelpLayout(
    basic=(
        *("data", "output", "config", "preset", "task", "init_from", "drafter_for", "conversion", "epochs"),
        *(
            "training.steps",
            "training.max_minutes",
            "training.learning_rate",
            "training.sample_every",
            "training.device",
        ),
    ),
    groups={
        "file": (
            "Apply to --data.",
            ("patches_per_batch", "epochs", "eval_data", "eval_share", "eval_patches", "split_by", "weights"),
        ),
        "table": ("Apply to Parquet and Arrow files of --data.", ("column", "extension", "extension_column")),
        "program": (
            "Apply without --data, and to the path cpu-states.",
            ("machine_on", "programs_per_batch", "long_share", "small_values", "eval_programs"),
        ),
    },
)


def preset_options(name: str, base: Train) -> Train:
    """Returns `base` with a preset's model, settings and batch.

    Raises:
        ValueError: no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"--preset: expected one of {list(PRESETS)}, got {name!r}")
    preset = PRESETS[name]
    return dataclasses.replace(
        base,
        preset=cast(Any, name),
        model=preset.model,
        training=preset.training,
        patches_per_batch=preset.patches_per_batch,
    )


def options_from_file(path: Path, base: Train | None = None) -> Train:
    """Reads an options file, as `bgpt-fast train` and `migrate-config` write it; it may contain only some options.

    Args:
        path: JSON, or YAML if it is named .yaml or .yml.
        base: the defaults of missing options, unless the file names a preset, or data, which means "tiny"; None means
            `Train()`.

    Raises:
        ValueError: not a mapping, an unknown name, or a wrong value; the message names it.
        OSError: the file cannot be read.
    """
    values = read_yaml(path) if path.suffix in (".yaml", ".yml") else read_json(path)
    return options_from_values(values, str(path), base)


def options_from_values(values: Any, where: str, base: Train | None = None) -> Train:
    """Returns the options that the value of an options file states; as `options_from_file`.

    Args:
        values: a mapping, JSON-like.
        where: the file's name, with which errors begin.
        base: as `options_from_file`.
    """
    base = Train() if base is None else base
    if isinstance(values, dict):
        preset = values.get("preset") or ("tiny" if values.get("data") else None)
        base = base if preset is None else preset_options(str(preset), base)
    return _replace(base, values, where)


def _replace(base: Any, values: Any, where: str) -> Any:
    """Returns a dataclass with some of its fields replaced by values from JSON or YAML."""
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected options by name, got {type(values).__name__}: {values!r:.80}")
    hints = get_type_hints(type(base))
    unknown = sorted(map(str, set(values) - set(hints)))
    if unknown:
        raise ValueError(f"{where}: unknown options {unknown!s:.200}; known are {sorted(hints)}")
    typed = {}
    for name, value in values.items():
        current, path = getattr(base, name), f"{where}: {name}"
        is_nested = dataclasses.is_dataclass(current)
        typed[name] = _replace(current, value, path) if is_nested else _typed(value, hints[name], path)
    try:
        return dataclasses.replace(base, **typed)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from error


def _typed(value: Any, hint: Any, where: str) -> Any:
    """Converts a value from JSON or YAML to the type of its field."""
    options = get_args(hint)
    if get_origin(hint) is Literal:
        if value not in options:
            raise ValueError(f"{where}: expected one of {list(options)}, got {value!r:.80}")
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where}: expected a list, got {value!r:.80}")
        return tuple(_typed(item, options[0], where) for item in value)
    if type(None) in options:
        return None if value is None else _typed(value, options[0], where)
    expected, advice = str if hint is Path else hint, ""
    if hint is bool and isinstance(value, str):
        value = _BOOLEANS.get(value.lower(), value)
    elif hint is int and isinstance(value, float) and value.is_integer():
        value = int(value)  # 1e4 is a float in YAML and JSON
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    elif expected is str and isinstance(value, int | float):
        advice = ", which is no text; write it in quotes"
    if not isinstance(value, expected) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where}: expected {'a path' if hint is Path else hint.__name__}, got {value!r:.80}{advice}")
    return hint(value)
