"""Options of `bgpt-fast train`: their names and defaults, presets, and files in JSON or YAML."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import yaml

from bgpt_fast.config import BGPTConfig
from bgpt_fast.tasks.cpu_states import StreamOptions
from bgpt_fast.training import TrainConfig
from bgpt_fast.training.presets import PRESETS


@dataclass(frozen=True)
class Train:
    """Trains a model on files, or on the endless programs of the CPU-state machine.

    A run lives in one folder: options.json (give it to --config to run the same again), log.jsonl, checkpoints/,
    tensorboard/, training_curve.png. Run again with the same folder, it goes on where it stopped. SIGTERM and SIGINT
    save first. Under torchrun each process takes its share of the data.

    Args:
        data: files and folders to learn; none means programs of the CPU-state machine.
        output: the run's folder.
        config: a JSON or YAML file of options, such as another run's options.json; options on the command line win.
        preset: model, settings and batch to start from: cpu-states (the default without files), tiny (the default with
            files; minutes on two cores), small (an hour of a GPU), paper-110m (the paper's).
        task: "auto" tells by the other options: files are learned as they are ("generation"), with --conversion as
            pairs; "classification" takes files named LABEL_anything.ext.
        init_from: start from this checkpoint's weights; its sizes replace --model, all but the dropout. A classifier
            may start from a generative model.
        conversion: "abc->mid", or "abc&mid" for both ways: files that differ in nothing but their extension are pairs.
        weights: shares of the batches, one for each of --data, which then are sources of their own; a path
            "cpu-states" that is no file means the machine.
        column: with Parquet and Arrow files: the column to learn, bytes or text. They may be URLs, such as
            hf://datasets/owner/name/, and are then streamed.
        extension: with Parquet and Arrow files: the extension that all rows have.
        extension_column: with Parquet and Arrow files: a column with each row's extension instead.
        patches_per_batch: with files: most patches of a batch, documents whole and end to end; at least the context.
        epochs: with files: train for so many passes, whatever --training.steps and --training.max-minutes say; 0: as
            they say.
        eval_data: with files: files and folders to evaluate on, instead of a share of --data.
        eval_share: with files: share of the files that is held out for evaluation; 0: train on all, evaluate nothing.
        eval_patches: with files: most patches of an evaluation.
        split_by: with files: hold out by a hash of the "path", or of the "content", which keeps copies together. Pairs
            go by their path, rows of Parquet and Arrow files by their content.
        machine: without files: the machine and its programs.
        machine_on: without files: where programs are made: the "cpu", or the "gpu" that trains (not yet run on a GPU);
            "auto" means the GPU where training is on one and the build has CUDA. The programs are the same, and a run
            may go on with either.
        programs_per_batch: without files: programs of a batch.
        long_share: without files: share of a batch's programs that have the largest number of instructions, the rest
            being of any length. Long ones have more to learn from; short ones teach where in memory to look.
        eval_programs: without files: held-out programs of an evaluation.
        model: sizes and initial values.
        training: how long, how fast, how often.
    """

    data: tuple[str, ...] = ()
    output: Path = Path("runs/train")
    config: Path | None = None
    preset: Literal["cpu-states", "tiny", "small", "paper-110m"] = "cpu-states"
    task: Literal["auto", "generation", "conversion", "classification", "cpu-states"] = "auto"
    init_from: Path | None = None
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
    machine: StreamOptions = field(
        default_factory=lambda: StreamOptions(num_registers=2, memory_size=64, min_program=1, max_program=15)
    )
    machine_on: Literal["auto", "cpu", "gpu"] = "auto"
    programs_per_batch: int = 64
    long_share: float = 0.3
    eval_programs: int = 400
    model: BGPTConfig = PRESETS["cpu-states"].model
    training: TrainConfig = PRESETS["cpu-states"].training


def options_from_file(path: Path) -> Train:
    """Options from a file that `bgpt-fast train` wrote, or a part of one; what it lacks keeps its default.

    Raises:
        ValueError: no mapping of options, an unknown name, or a bad value; says which.
    """
    return read_options_file(path, Train())


def preset_options(name: str, base: Train) -> Train:
    """`base` with a preset's model, settings and batch.

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


def read_options_file(path: Path, base: Train) -> Train:
    """Options from a file that `bgpt-fast train` or `migrate-config` wrote, or a part of one; the rest is `base`'s.

    Args:
        path: JSON, or YAML if it is named .yaml or .yml.
        base: what holds where the file says nothing, unless it names a preset, or data, which means "tiny".

    Raises:
        ValueError: no mapping of options, an unknown name, or a bad value; says which.
        OSError: the file cannot be read.
    """
    text = path.read_text(encoding="utf-8")
    is_yaml = path.suffix in (".yaml", ".yml")
    try:
        found = yaml.safe_load(text) if is_yaml else json.loads(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: expected {'YAML' if is_yaml else 'JSON'}, got {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected options by name, got {type(found).__name__}")
    preset = found.get("preset") or ("tiny" if found.get("data") else None)
    if preset is not None:
        base = preset_options(str(preset), base)
    return _filled(base, found, str(path))


def _filled(base: Any, found: Mapping[str, Any], where: str) -> Any:
    """A dataclass with some of its fields replaced by plain values."""
    hints = get_type_hints(type(base))
    unknown = sorted(map(str, set(found) - set(hints)))
    if unknown:
        raise ValueError(f"{where}: unknown options {unknown}; known are {sorted(hints)}")
    values = {}
    for name, value in found.items():
        current = getattr(base, name)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, dict):
                raise ValueError(f"{where}: {name}: expected options by name, got {value!r}")
            values[name] = _filled(current, value, f"{where}: {name}")
        else:
            values[name] = _typed(value, hints[name], f"{where}: {name}")
    try:
        return dataclasses.replace(base, **values)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from error


def _typed(value: Any, hint: Any, where: str) -> Any:
    """A plain value as the type that a field has."""
    options = get_args(hint)
    if get_origin(hint) is Literal:
        if value not in options:
            raise ValueError(f"{where}: expected one of {list(options)}, got {value!r}")
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where}: expected a list, got {value!r}")
        return tuple(_typed(item, options[0], where) for item in value)
    if type(None) in options:
        return None if value is None else _typed(value, options[0], where)
    wanted = str if hint is Path else hint
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, wanted) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where}: expected {'a path' if hint is Path else hint.__name__}, got {value!r}")
    return hint(value)


def named_before(words: Sequence[str], option: str) -> str | None:
    """What an option is given as, read before the others, which take their defaults from there."""
    for index, word in enumerate(words):
        if word.startswith(f"{option}="):
            return word.removeprefix(f"{option}=")
        if word == option and index + 1 < len(words):
            return words[index + 1]
    return None
