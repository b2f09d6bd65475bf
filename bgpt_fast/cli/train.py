"""`bgpt-fast train`: trains a model on files, or on the endless programs of the CPU-state machine."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from bgpt_fast.cli.common import as_json, console, read_options
from bgpt_fast.config import BGPTConfig
from bgpt_fast.data import FileSource, Source
from bgpt_fast.files import write_json
from bgpt_fast.model import BGPT
from bgpt_fast.tasks.cpu_states import CPUStateSource, StreamOptions, generate
from bgpt_fast.tasks.cpu_states.training import teacher_forced_evaluation
from bgpt_fast.training import TrainConfig, Trainer, TrainingInterrupted, likelihood_evaluation


@dataclass(frozen=True)
class Train:
    """Trains a model on files, or on the endless programs of the CPU-state machine.

    A run lives in one folder: options.json (give it to --config to run the same again), log.jsonl, checkpoints/. Run
    again with the same folder, it goes on where it stopped. SIGTERM and SIGINT save first.

    Args:
        data: files and folders to learn; none means programs of the CPU-state machine.
        output: the run's folder.
        config: a JSON file of options, such as another run's options.json; options on the command line win over it.
        init_from: start from this checkpoint's weights; its sizes replace --model.
        patches_per_batch: with files: patches of a batch, documents whole and end to end.
        eval_share: with files: share of the files that is held out for evaluation; 0: train on all, evaluate nothing.
        machine: without files: the machine and its programs.
        programs_per_batch: without files: programs of a batch.
        long_share: without files: share of a batch's programs that have the largest number of instructions, the rest
            being of any length. Long ones have more to learn from; short ones teach where in memory to look.
        eval_programs: without files: held-out programs of an evaluation.
        model: sizes and initial values.
        training: how long, how fast, how often.
    """

    data: tuple[Path, ...] = ()
    output: Path = Path("runs/train")
    config: Path | None = None
    init_from: Path | None = None
    patches_per_batch: int = 2048
    eval_share: float = 0.02
    machine: StreamOptions = field(
        default_factory=lambda: StreamOptions(num_registers=2, memory_size=64, min_program=1, max_program=15)
    )
    programs_per_batch: int = 64
    long_share: float = 0.3
    eval_programs: int = 400
    model: BGPTConfig = field(
        default_factory=lambda: BGPTConfig(
            patch_size=8,
            patch_length=32,
            hidden_size=128,
            patch_num_layers=4,
            byte_num_layers=1,
            num_heads=4,
            byte_num_heads=16,
            position_init_std=0.3,
            byte_init="numeric",
            byte_init_std=0.05,
        )
    )
    training: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=0,
            max_minutes=5.0,
            schedule_by="time",
            schedule="wsd",
            warmup_share=0.03,
            decay_share=0.97,
            optimizer="muon",
            muon_learning_rate=0.02,
            learning_rate=3e-3,
            weight_decay=0.0,
            eps=1e-10,
            precision="bf16",
            eval_every=200,
        )
    )


def options_from_json(path: Path) -> Train:
    """Options from a file that `bgpt-fast train` wrote, or a part of one; what it lacks keeps its default.

    Raises:
        ValueError: no JSON object, an unknown name, or a bad value; says which.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object of options, got {type(found).__name__}")
    defaults = as_json(Train())
    unknown = sorted(set(found) - set(defaults))
    if unknown:
        raise ValueError(f"{path}: unknown options {unknown}; known are {sorted(defaults)}")
    sections: dict[str, Any] = {"machine": StreamOptions, "model": BGPTConfig, "training": TrainConfig}
    values: dict[str, Any] = {}
    for name, value in found.items():
        if name in sections:
            known = set(defaults[name])
            if not isinstance(value, dict) or set(value) - known:
                raise ValueError(f"{path}: {name}: expected an object of {sorted(known)}, got {value!r}")
            values[name] = sections[name](**{**defaults[name], **value})
        elif name == "data":
            if not isinstance(value, list):
                raise ValueError(f"{path}: data: expected a list of paths, got {value!r}")
            values[name] = tuple(Path(item) for item in value)
        elif name in ("output", "config", "init_from"):
            values[name] = None if value is None else Path(value)
        elif not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(f"{path}: {name}: expected a number, got {value!r}")
        else:
            values[name] = value
    return Train(**values)


def run(words: Sequence[str]) -> int:
    warnings.showwarning = _show_warning
    path = _config_path(words)
    options = read_options(Train, "train", words, default=None if path is None else options_from_json(path))
    if options.init_from is not None:
        model = BGPT.from_pretrained(str(options.init_from), dtype=torch.float32).train()
    else:
        torch.manual_seed(options.training.seed)
        model = BGPT(options.model)
    source, evaluate = _data(options, model.config)
    trainer = Trainer(model, source, options.training, options.output, evaluate)
    # Only now: a run that may not go on with these options keeps its own.
    write_json(options.output / "options.json", as_json(options))
    if trainer.resumed:
        console.print(f"{options.output}: goes on from step {trainer.step}")
    try:
        result = trainer.train()
    except TrainingInterrupted as stop:
        print(f"bgpt-fast train: {stop}", file=sys.stderr)
        return stop.exit_code
    figures = " · ".join(f"{name} {value:.4f}" for name, value in result.evaluation.items())
    console.print(
        f"{result.steps} steps in {result.seconds:.0f} s ({result.patches_per_second:,.0f} patches/s), "
        f"loss {result.loss:.4f} nats; {figures}\ncheckpoint: {result.checkpoint_path}"
    )
    return 0


def _config_path(words: Sequence[str]) -> Path | None:
    """What --config says, before the other options are read: they take their defaults from there."""
    for index, word in enumerate(words):
        if word.startswith("--config="):
            return Path(word.removeprefix("--config="))
        if word == "--config" and index + 1 < len(words):
            return Path(words[index + 1])
    return None


def _data(options: Train, config: BGPTConfig) -> tuple[Source, Callable[[BGPT], dict[str, float]] | None]:
    if options.data:
        seed = options.training.seed
        source = FileSource(
            options.data, config, options.patches_per_batch, seed=seed, split="train", eval_share=options.eval_share
        )
        if options.eval_share == 0:
            return source, None
        held_out = FileSource(
            options.data, config, options.patches_per_batch, seed=seed, split="eval", eval_share=options.eval_share
        )
        return source, likelihood_evaluation(list(held_out.one_pass()))
    if options.eval_programs < 1:
        raise ValueError(f"--eval-programs: expected at least 1, got {options.eval_programs}")
    machine = asdict(options.machine)
    seed = options.training.seed
    programs = CPUStateSource(
        config,
        seed=seed,
        documents_per_batch=options.programs_per_batch,
        long_share=options.long_share,
        **machine,
    )
    held_out_programs = generate(options.eval_programs, seed=seed, stream="parallel", split="test", **machine)
    return programs, teacher_forced_evaluation(held_out_programs)


def _show_warning(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
    print(f"bgpt-fast train: {category.__name__}: {message}", file=sys.stderr)
