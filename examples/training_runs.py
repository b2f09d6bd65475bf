"""Shared by the training examples: settings for a CPU and for a GPU, the command line, and the results file.

The examples run as scripts, so each adds this folder to `sys.path` before it imports this module.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bgpt_fast.config import BGPTConfig
from bgpt_fast.environment import describe_environment
from bgpt_fast.files import write_json
from bgpt_fast.training import TrainConfig

PAPER = BGPTConfig()
"""The paper's model of 110 M parameters, for a GPU."""


def cpu_model(patch_length: int, width: int, *, layers: int, heads: int, byte_heads: int, **others: Any) -> BGPTConfig:
    """A model that trains on a CPU in minutes.

    Args:
        patch_length: patches of the context.
        width: hidden size of both decoders.
        layers, heads: layers and heads of the patch decoder.
        byte_heads: heads of the byte decoder, which has one layer.
        others: further arguments of `BGPTConfig`.
    """
    sizes = {"patch_num_layers": layers, "byte_num_layers": 1, "num_heads": heads, "byte_num_heads": byte_heads}
    return BGPTConfig(
        **{"patch_length": patch_length, "hidden_size": width, **sizes, "position_init_std": 0.3, **others}
    )


def cpu_training(**settings: Any) -> TrainConfig:
    """Training on one CPU thread with Muon; the arguments are those of `TrainConfig`."""
    defaults = {"learning_rate": 1e-2, "optimizer": "muon", "schedule": "wsd", "device": "cpu", "threads": 1}
    return TrainConfig(**{**defaults, "tensorboard": False, **settings})


def gpu_training(**settings: Any) -> TrainConfig:
    """Training on a GPU in bfloat16; the arguments are those of `TrainConfig`."""
    return TrainConfig(**{"learning_rate": 3e-4, "precision": "bf16", "tensorboard": False, **settings})


def limited_to(minutes: float) -> dict[str, Any]:
    """The settings of `TrainConfig` that end training after `minutes`."""
    return {"max_minutes": minutes, "steps": 0, "schedule_by": "time"}


def argument_parser(description: str | None, full: str = "the paper's model, for a GPU") -> argparse.ArgumentParser:
    """The options that all training examples have.

    Args:
        description: the script's docstring.
        full: the help text of --full.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help=full)
    parser.add_argument("--runs", type=Path, help="keep the runs in this folder and resume them there")
    parser.add_argument("--output", type=Path, help="the JSON file to write; by default beside the script")
    return parser


def size_of(options: argparse.Namespace) -> str:
    """The part of a file name that distinguishes --full runs from CPU runs."""
    return "full" if options.full else "cpu"


@contextlib.contextmanager
def runs_folder(options: argparse.Namespace) -> Iterator[Path]:
    """The folder of this size's runs: below --runs, or a temporary one."""
    with tempfile.TemporaryDirectory(prefix="training-") as temporary:
        yield (options.runs or Path(temporary)) / size_of(options)


def write_results(
    script: str, parser: argparse.ArgumentParser, options: argparse.Namespace, results: Mapping[str, Any]
) -> Path:
    """Writes results as JSON, with the command that made them and the environment.

    Args:
        script: the example's `__file__`.
        parser: from `argument_parser`; its defaults are omitted from the command.
        options: the parsed options.
        results: JSON-ready.

    Returns:
        The file: --output, or one beside the script.
    """
    path = Path(script).resolve()
    words = [f"python examples/{path.parent.name}/{path.name}"]
    for name, value in vars(options).items():
        if name not in ("runs", "output") and value != parser.get_default(name):
            values = value if isinstance(value, list) else [] if value is True else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    output = options.output or path.with_name(f"{path.stem}.{size_of(options)}.json")
    write_json(output, {"command": " ".join(words), "environment": describe_environment(), **results})
    return output


def print_claims(claims: Mapping[str, bool]) -> int:
    """Prints which claims hold; returns the exit code: 0 if all do, 1 otherwise."""
    for claim, holds in claims.items():
        print(f"{'as claimed' if holds else 'NOT as claimed'}: {claim}")
    return 0 if all(claims.values()) else 1
