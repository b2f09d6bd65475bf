"""What `bgpt-fast train` prints: at its start what it will do, at its end what to do next."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from bgpt_fast.checkpoint.task import ModelTask
from bgpt_fast.classifier import BGPTForClassification
from bgpt_fast.cli.common import print_skipped
from bgpt_fast.cli.train_data import TrainData
from bgpt_fast.cli.train_options import Train
from bgpt_fast.tasks.cpu_states import StreamOptions
from bgpt_fast.terminal import print_text
from bgpt_fast.training import TrainConfig, Trainer
from bgpt_fast.training.precision import product_rates

ENDED = {"steps": "all steps are done", "time": "the time is up", "target": "the target is reached"}
"""Texts for `TrainResult.stopped_by`."""
_WIDTH = len("evaluation") + 2


def print_start(options: Train, data: TrainData, trainer: Trainer) -> Counter[str]:
    """Prints a run's model, device, data, what is skipped and cut, evaluation, budget and folder, before it starts.

    Returns:
        The number of skipped files or pairs by reason.
    """
    sources = source_descriptions(trainer.source.describe())
    for name, text in (
        ("model", _model_text(options, trainer)),
        ("task", str(trainer.model.task or "not known")),
        ("data", data_text(sources)),
        ("held out", data.evaluation_text or "nothing, so nothing is evaluated"),
        ("training", _training_text(trainer)),
        ("folder", _folder_text(options, trainer)),
    ):
        print_text(f"{name:<{_WIDTH}}{text}")
    _print_skipped(sources, options)
    return _skipped(sources)


def print_end(options: Train, trainer: Trainer, skipped_before: Counter[str]) -> None:
    """Prints what was skipped since the start of the run, and the commands that use the trained model."""
    print_skipped(
        _skipped(source_descriptions(trainer.source.describe())) - skipped_before, [], "skipped while training"
    )
    for place, command in enumerate(next_commands(options, trainer.model.task)):
        print_text(f"{'' if place else 'next:':<6}{command}")


def source_descriptions(description: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The descriptions of the sources of a mixture, or the description of a single source."""
    return list(description["sources"]) if description.get("kind") == "mixed" else [description]


def next_commands(options: Train, task: ModelTask | None) -> list[str]:
    """Commands that use the trained model."""
    run = shlex.quote(str(options.output))
    if options.drafter_for is not None:
        run = f"{shlex.quote(str(options.drafter_for))} --drafter {run}"
    tasks = () if task is None else task.tasks
    commands = []
    if "classification" in tasks:
        commands.append(f"bgpt-fast classify FILES --checkpoint {run}")
    for direction in () if task is None else task.conversions:
        source, target = direction.split("->")
        commands.append(f"bgpt-fast convert FILES.{source} --to {target} --checkpoint {run}")
    if task is not None and task.conversions:
        commands.append(f"bgpt-fast evaluate FILES --conversion {shlex.quote(options.conversion)} --checkpoint {run}")
    if "cpu-states" in tasks:
        commands.append(f"bgpt-fast simulate --random 200{_machine_words(options)} --checkpoint {run}")
    if "generation" in tasks:
        extension = task.extensions[0] if task is not None and task.extensions else "txt"
        commands.append(f"bgpt-fast generate --ext {shlex.quote(extension)} --count 3 --checkpoint {run}")
        commands.append(f"bgpt-fast evaluate FILES --checkpoint {run}")
    if options.drafter_for is not None:
        return [command for command in commands if command.split()[1] in ("convert", "generate")]
    return commands


def _machine_words(options: Train) -> str:
    """The options of simulate for a machine that is not its default."""
    machine, default = options.machine, Train().machine
    names = [name for name in StreamOptions.__dataclass_fields__ if getattr(machine, name) != getattr(default, name)]
    return "".join(f" --machine.{name.replace('_', '-')} {getattr(machine, name)}" for name in names)


def _model_text(options: Train, trainer: Trainer) -> str:
    model, config = trainer.model, trainer.model.config
    is_classifier = isinstance(model, BGPTForClassification)
    layers = f"{config.patch_num_layers}" if is_classifier else f"{config.patch_num_layers} + {config.byte_num_layers}"
    context = config.patch_length * config.patch_size
    start = f"weights of {options.init_from}" if options.init_from is not None else "new weights"
    classes = f", {len(model.labels)} classes" if isinstance(model, BGPTForClassification) else ""
    return (
        f"{_amount(model.num_parameters())} parameters: patches of {config.patch_size} bytes, context "
        f"{config.patch_length} patches ({context:,} bytes), width {config.hidden_size}, {layers} layers{classes}; "
        f"{start}"
    )


def data_text(sources: Sequence[Mapping[str, Any]]) -> str:
    """The number and size of the files of each source, of `source_descriptions`."""
    texts = []
    for source in sources:
        if "files" not in source:
            texts.append("endless random programs of the machine")
            continue
        kind = {"pairs": "pairs of files", "arrow": "tables"}.get(source["kind"], "files")
        count = source["documents"] if source["kind"] == "pairs" else source["files"]
        over = 0 if source["kind"] == "pairs" else source.get("over_context", 0)
        cut = f"; {over:,} are longer than the context and are read in windows, a new one in each epoch" if over else ""
        texts.append(f"{count:,} {kind}, {_size(source['bytes'])}{cut}")
    return " + ".join(texts)


def _skipped(sources: Sequence[Mapping[str, Any]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for source in sources:
        counts.update(source.get("skipped", {}))
    return counts


def _print_skipped(sources: Sequence[Mapping[str, Any]], options: Train) -> None:
    counts = _skipped(sources)
    print_skipped(counts, [name for source in sources for name in source.get("warnings", ())])
    longest = max((source.get("longest", 0) for source in sources if source.get("kind") == "pairs"), default=0)
    if counts.get("pair over the context"):
        print_text(f"  a longer context takes them too: the longest pair needs --model.patch-length {longest}")
    if counts:
        print_text(f"  {options.output / 'run.json'} has more names")


def _training_text(trainer: Trainer) -> str:
    config, device = trainer.config, trainer.device
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
    else:
        kind = f"threads: {torch.get_num_threads()}; {product_rates(trainer.model.config.hidden_size).text}"
    ranks = f", {trainer.ranks.world_size} ranks" if trainer.ranks.world_size > 1 else ""
    batch = getattr(trainer.source, "patches_per_batch", None)
    size = f", at most {batch:,} patches a batch" if batch else ""
    return f"{_budget(config)}, {config.optimizer}, {config.precision} on {device} ({kind}){ranks}{size}"


def _budget(config: TrainConfig) -> str:
    parts = [f"{config.steps:,} steps"] if config.steps else []
    parts += [f"{config.max_minutes:g} minutes"] if config.max_minutes else []
    return " or ".join(parts)


def _folder_text(options: Train, trainer: Trainer) -> str:
    state = f"resumes from step {trainer.step:,}" if trainer.resumed else "a new run"
    if trainer.resumed and trainer.stopped_by:
        state = (
            f"complete: {ENDED[trainer.stopped_by]}; nothing is trained again; give more --steps or --minutes to go on"
        )
    return f"{options.output}: {state}"


def _amount(count: float) -> str:
    power = min(max(len(str(int(count))) - 1, 0) // 3, 3)
    return f"{count / 1000**power:.3g}{('', ' k', ' M', ' G')[power]}"


def _size(count: int) -> str:
    return f"{_amount(count)}{'' if count >= 1000 else ' '}B"
