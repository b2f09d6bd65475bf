"""`bgpt-fast train`: trains a model on files, or on an endless stream of programs of the CPU-state machine."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch

from bgpt_fast.checkpoint.load import load_weights
from bgpt_fast.classifier import BGPTForClassification
from bgpt_fast.cli.common import as_json, drawing, read_options, value_of
from bgpt_fast.cli.errors import FAILURE, report_error
from bgpt_fast.cli.outputs import fingerprint
from bgpt_fast.cli.train_data import CPU_STATES, Task, TrainData, task_of
from bgpt_fast.cli.train_options import LAYOUT, SHORT, Train, options_from_file, preset_options
from bgpt_fast.cli.train_samples import sampler
from bgpt_fast.cli.train_summary import ENDED, print_end, print_start
from bgpt_fast.data import DataError
from bgpt_fast.device import default_cpu
from bgpt_fast.files import write_json
from bgpt_fast.memory import named_out_of_memory
from bgpt_fast.model import BGPT
from bgpt_fast.terminal import print_error, print_text
from bgpt_fast.training import Trainer, TrainingInterrupted, TrainResult
from bgpt_fast.training.progress import figures_text

OPTIONS = Train


@default_cpu()
def run(words: Sequence[str]) -> int:
    options = read_options(Train, "train", words, _defaults(words), LAYOUT, short=SHORT)
    task = task_of(options)
    sizes, setting = f"{options.patches_per_batch:,} patches", "patches_per_batch"
    if task == CPU_STATES:
        sizes, setting = f"{options.programs_per_batch:,} programs", "documents_per_batch"
    with named_out_of_memory(lambda: f"a run with batches of {sizes}", setting, advice="train a smaller model"):
        return _run(options, task)


def _run(options: Train, task: Task) -> int:
    model: BGPT | BGPTForClassification
    torch.manual_seed(options.training.seed)
    drafter_for = ""
    if options.drafter_for is not None:
        options, drafter_for = _drafter(options, options.drafter_for, task)
    if task == "classification":
        model, data = _classifier(options)
    else:
        model = _generative(options)
        data = TrainData(options, model.config)
    training = options.training
    if options.epochs:
        steps = data.steps(options.epochs, training.accumulation)
        training = dataclasses.replace(training, steps=steps, max_minutes=0.0, schedule_by="steps")
    trainer = Trainer(model, data.source, training, options.output, data.evaluation(), sample=sampler(options, data))
    if drafter_for:
        assert trainer.model.task is not None
        trainer.model.task = dataclasses.replace(trainer.model.task, drafter_for=drafter_for)
    if trainer.ranks.is_main:
        # Only now: if the run cannot be resumed with these options, Trainer raises and the old file remains.
        # The precision is the run's, which "auto" stands for.
        own = dataclasses.replace(options.training, precision=trainer.config.precision)
        write_json(options.output / "options.json", as_json(dataclasses.replace(options, training=own)))
        skipped = print_start(options, data, trainer)
    try:
        result = trainer.train()
    except TrainingInterrupted as stop:
        print_error(f"bgpt-fast train: {stop}")
        return stop.exit_code
    except DataError as error:
        # Wrong options are named before; this is data that has changed, or cannot be read, during the run.
        report_error("train", error)
        return FAILURE
    if trainer.ranks.is_main:
        _report(options, result)
        print_end(options, trainer, skipped)
    return 0


def _defaults(words: Sequence[str]) -> Train:
    """Returns the options' defaults, which depend on --config, --preset and --data."""
    path, preset = value_of(words, "--config"), value_of(words, "--preset")
    has_files = value_of(words, "--data") is not None
    base = preset_options("tiny" if has_files else "cpu-states", Train())
    if path is not None:
        base = options_from_file(Path(path), base)
    return base if preset is None else preset_options(preset, base)


def _drafter(options: Train, target: Path, task: Task) -> tuple[Train, str]:
    """Returns the options with the patches of the model that is to be drafted for, and its digest."""
    if task not in ("generation", "conversion"):
        raise ValueError(f"--drafter-for: expected --data to generate or convert, got --task {task}")
    model = BGPT.from_pretrained(str(target), dtype=torch.float32)
    if task not in (model.task.tasks if model.task is not None else (task,)):
        raise ValueError(f"--drafter-for {target}: expected a model of the task {task}, got one of {model.task}")
    patch_size, patch_length = model.config.patch_size, model.config.patch_length
    config = dataclasses.replace(options.model, patch_size=patch_size, patch_length=patch_length)
    return dataclasses.replace(options, model=config), fingerprint(model)


def _generative(options: Train) -> BGPT:
    if options.init_from is not None:
        start = BGPT.from_pretrained(str(options.init_from), dtype=torch.float32)
        model = BGPT(dataclasses.replace(start.config, dropout=options.model.dropout))
        model.load_state_dict(start.state_dict())
        return model
    return BGPT(options.model)


def _classifier(options: Train) -> tuple[BGPTForClassification, TrainData]:
    """Returns a new classifier, one with a generative model's patch decoder, or a trained one, and its data."""
    if options.init_from is None:
        data = TrainData(options, options.model)
        assert data.labels is not None
        return BGPTForClassification(options.model, data.labels), data
    source = str(options.init_from)
    weights = load_weights(source)
    data = TrainData(options, weights.config, weights.labels)
    assert data.labels is not None
    if weights.labels is None:
        start = BGPTForClassification.from_generative(source, data.labels, dtype=torch.float32)
    else:
        start = BGPTForClassification.from_pretrained(source, dtype=torch.float32)
    model = BGPTForClassification(dataclasses.replace(start.config, dropout=options.model.dropout), start.labels)
    model.load_state_dict(start.state_dict())
    return model, data


def _report(options: Train, result: TrainResult) -> None:
    speed = ""
    if result.patches_per_second:
        speed = f" ({result.patches_per_second:,.0f} patches/s, {100 * result.data_wait_share:.1f} % waiting for data)"
    print_text(
        f"complete: {result.steps:,} steps in {result.seconds:.0f} s{speed}: {ENDED[result.stopped_by]}; "
        f"last loss {result.loss:.4f} nats"
    )
    if result.evaluation:
        print_text(f"held out: {figures_text(result.evaluation)}")
    print_text(f"checkpoint: {result.checkpoint_path}")
    if importlib.util.find_spec("matplotlib") is None:
        print_text("no training_curve.png: plots need matplotlib: pip install '.[plot]' in the repository")
        return
    curve = options.output / "training_curve.png"
    with drawing("train", str(curve)):
        from bgpt_fast.report.plots import training_curve

        training_curve(result.log_path, curve, options.output.name)
        print_text(f"curve: {curve}")
