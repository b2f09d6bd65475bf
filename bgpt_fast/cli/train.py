"""`bgpt-fast train`: trains a model on files, or on the endless programs of the CPU-state machine."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from bgpt_fast.checkpoint import load_weights
from bgpt_fast.classifier import BGPTForClassification
from bgpt_fast.cli.common import as_json, console, read_options
from bgpt_fast.cli.train_data import TrainData, task_of
from bgpt_fast.cli.train_options import named_before, preset_options, read_options_file
from bgpt_fast.config import BGPTConfig
from bgpt_fast.files import write_json
from bgpt_fast.model import BGPT
from bgpt_fast.tasks.cpu_states import StreamOptions
from bgpt_fast.training import TrainConfig, Trainer, TrainingInterrupted, TrainResult
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


def run(words: Sequence[str]) -> int:
    warnings.showwarning = _show_warning
    options = read_options(Train, "train", words, default=_defaults(words))
    task = task_of(options)
    model: BGPT | BGPTForClassification
    torch.manual_seed(options.training.seed)
    if task == "classification":
        model, data = _classifier(options)
    else:
        model = _generative(options)
        data = TrainData(options, model.config)
    training = options.training
    if options.epochs:
        steps = data.steps(options.epochs, training.accumulation)
        training = dataclasses.replace(training, steps=steps, max_minutes=0.0, schedule_by="steps")
    trainer = Trainer(model, data.source, training, options.output, data.evaluation())
    if trainer.ranks.is_main:
        # Only now: a run that may not go on with these options keeps its own.
        write_json(options.output / "options.json", as_json(options))
        if trainer.resumed:
            console.print(f"{options.output}: goes on from step {trainer.step}")
    try:
        result = trainer.train()
    except TrainingInterrupted as stop:
        print(f"bgpt-fast train: {stop}", file=sys.stderr)
        return stop.exit_code
    if trainer.ranks.is_main:
        _report(options, result)
    return 0


def _defaults(words: Sequence[str]) -> Train:
    """What --config and --preset say, before the other options are read: they take their defaults from there."""
    path, preset = named_before(words, "--config"), named_before(words, "--preset")
    has_files = named_before(words, "--data") is not None
    base = preset_options("tiny" if has_files else "cpu-states", Train())
    if path is not None:
        base = read_options_file(Path(path), base)
    return base if preset is None else preset_options(preset, base)


def _generative(options: Train) -> BGPT:
    if options.init_from is not None:
        start = BGPT.from_pretrained(str(options.init_from), dtype=torch.float32)
        model = BGPT(dataclasses.replace(start.config, dropout=options.model.dropout))
        model.load_state_dict(start.state_dict())
        return model
    return BGPT(options.model)


def _classifier(options: Train) -> tuple[BGPTForClassification, TrainData]:
    """A new classifier, one with a generative model's patch decoder, or one that is trained on."""
    if options.init_from is None:
        data = TrainData(options, options.model)
        assert data.labels is not None
        return BGPTForClassification(options.model, data.labels), data
    source = str(options.init_from)
    found = load_weights(source)
    data = TrainData(options, found.config, found.labels)
    assert data.labels is not None
    if found.labels is None:
        start = BGPTForClassification.from_generative(source, data.labels, dtype=torch.float32)
    else:
        start = BGPTForClassification.from_pretrained(source, dtype=torch.float32)
    model = BGPTForClassification(dataclasses.replace(start.config, dropout=options.model.dropout), start.labels)
    model.load_state_dict(start.state_dict())
    return model, data


def _report(options: Train, result: TrainResult) -> None:
    figures = " · ".join(f"{name} {value:.4f}" for name, value in result.evaluation.items())
    console.print(
        f"{result.steps} steps in {result.seconds:.0f} s ({result.patches_per_second:,.0f} patches/s), "
        f"loss {result.loss:.4f} nats; {figures}\ncheckpoint: {result.checkpoint_path}"
    )
    if importlib.util.find_spec("matplotlib") is None:
        console.print("no training_curve.png: plots need matplotlib: pip install 'bgpt-fast[plot]'")
        return
    from bgpt_fast.report.plots import training_curve

    curve = options.output / "training_curve.png"
    training_curve(result.log_path, curve, options.output.name)
    console.print(f"curve: {curve}")


def _show_warning(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
    print(f"bgpt-fast train: {category.__name__}: {message}", file=sys.stderr)
