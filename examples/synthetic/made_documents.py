"""What the synthetic recipes share: an endless source of made documents, a run, and how far above the best it ends.

Of a made document the probability is known, so that no code can be shorter on average than its `bits`: the floor. A
model's excess over it is what it has not learned; on held-out documents it is never below 0 but by chance.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bgpt_fast import BGPT, BGPTConfig, PackedPatches
from bgpt_fast.environment import describe_environment
from bgpt_fast.files import atomic_write, write_json
from bgpt_fast.metrics import bootstrap_interval
from bgpt_fast.tasks.evaluation import FileReport, evaluate_files
from bgpt_fast.training import TrainConfig, Trainer

SMALL = BGPTConfig(
    patch_size=8,
    patch_length=33,
    hidden_size=64,
    patch_num_layers=2,
    byte_num_layers=1,
    num_heads=2,
    byte_num_heads=4,
    position_init_std=0.3,
    byte_init_std=0.1,
)
"""The model of the CPU-size runs, 0.3 M parameters: learns the recipes' rules in a minute or two on one core."""
PAPER = BGPTConfig()
"""The paper's sizes, 110 M parameters: for a GPU."""


@dataclass(frozen=True)
class Rule:
    """How documents are made.

    Args:
        make: makes a document from a random stream: its extension, which tells its size, so that where a file ends
            costs nothing, and its content.
        bits: −log₂ of a content's probability, given the rule and the extension.
    """

    make: Callable[[random.Random], tuple[str, bytes]]
    bits: Callable[[bytes], float]

    def document(self, seed: int, number: int) -> tuple[str, bytes]:
        """Document `number` of a seed, always the same: extension and content."""
        return self.make(random.Random(f"{seed} {number}"))


@dataclass(frozen=True)
class Experiment:
    """A model that learns a rule, and what is claimed of it.

    Args:
        rule: of the documents.
        model: sizes.
        documents: of a batch.
        training: see `TrainConfig`.
        most_excess: the claim: bits per byte over the floor on held-out documents, at most.
        held_out: how many held-out documents.
        measure: further figures from the report.
        least: the claim's other part: what these figures come to, at least.
    """

    rule: Rule
    model: BGPTConfig
    documents: int
    training: TrainConfig
    most_excess: float
    held_out: int = 200
    measure: Callable[[FileReport], dict[str, float]] = lambda report: {}
    least: Mapping[str, float] = field(default_factory=dict)


class MadeDocuments:
    """An endless `Source` of a rule's documents.

    Args:
        rule: of the documents.
        config: patch size and context.
        documents: of a batch.
        seed: 0 is training's, 1 that of the held-out files.
    """

    def __init__(self, rule: Rule, config: BGPTConfig, documents: int, seed: int = 0) -> None:
        self.rule, self.config, self.documents, self.seed = rule, config, documents, seed
        self.position = 0

    def next_batch(self) -> PackedPatches:
        """The next documents."""
        numbers = range(self.position, self.position + self.documents)
        self.position += self.documents
        made = [self.rule.document(self.seed, number) for number in numbers]
        return PackedPatches.from_bytes(made, self.config, truncation="error")

    def state_dict(self) -> dict[str, Any]:
        """The position."""
        return {"seed": self.seed, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position."""
        self.seed, self.position = state["seed"], state["position"]

    def describe(self) -> dict[str, Any]:
        """What there is."""
        return {"kind": "made documents", **self.state_dict()}


def write_held_out(rule: Rule, count: int, folder: Path) -> None:
    """Writes the documents 0 … `count` − 1 of seed 1 as files."""
    for number in range(count):
        extension, content = rule.document(1, number)
        with atomic_write(folder / f"{number:05}.{extension}") as file:
            file.write(content)


def run(experiment: Experiment, folder: Path) -> dict[str, Any]:
    """Trains on endless documents, scores held-out ones, and holds them against the floor.

    Args:
        experiment: what to do.
        folder: of the run, which goes on there if it was stopped, and of the held-out files.

    Returns:
        Figures, JSON-ready; "holds" says whether the claim does: the excess is at most `most_excess`, its interval does
        not lie below 0, and the figures of `least` are that high.
    """
    torch.manual_seed(experiment.training.seed)
    model = BGPT(experiment.model)
    source = MadeDocuments(experiment.rule, experiment.model, experiment.documents)
    started = time.monotonic()
    done = Trainer(model, source, experiment.training, folder / "run").train()
    seconds = time.monotonic() - started
    write_held_out(experiment.rule, experiment.held_out, folder / "held_out")
    report = evaluate_files(model, folder / "held_out")
    floors = np.array([experiment.rule.bits(Path(file.path).read_bytes()) for file in report.files])
    bits = np.array([file.scores.nats / math.log(2) for file in report.files])
    sizes = np.array([file.scores.bytes for file in report.files], np.float64)
    interval = bootstrap_interval(bits - floors, sizes)
    assert interval is not None
    excess = float((bits - floors).sum() / sizes.sum())
    measured = experiment.measure(report)
    others = "".join(f", {name} at least {limit}" for name, limit in experiment.least.items())
    return {
        "holds": excess <= experiment.most_excess
        and interval.high >= 0.0
        and all(measured[name] >= limit for name, limit in experiment.least.items()),
        "claim": f"on held-out files at most {experiment.most_excess} bits per byte over the floor, not below{others}",
        "bits_per_byte": report.total.per_byte,
        "floor_bits_per_byte": float(floors.sum() / sizes.sum()),
        "excess_bits_per_byte": excess,
        "excess_interval_95": list(interval),
        "bits_per_position": report.total.per_position,
        "accuracy": report.total.accuracy,
        **measured,
        "baselines_bits_per_byte": report.baselines,
        "decoders": report.decoders.to_dict(),
        "held_out_files": experiment.held_out,
        "parameters": model.num_parameters(),
        "steps": done.steps,
        "documents_a_step": experiment.documents,
        "training_seconds": round(seconds, 1),
    }


def main(script: str, description: str, small: Mapping[str, Experiment], full: Mapping[str, Experiment]) -> int:
    """The command line of a recipe; returns 1 where a claim does not hold.

    Args:
        script: the recipe's `__file__`; results of all experiments go beside it, as JSON.
        description: for --help.
        small: experiments by name, of CPU size, the smallest one first.
        full: the same, and some that the small model does not learn, with the paper's model.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--full", action="store_true", help="the paper's model, for a GPU, instead of CPU size")
    parser.add_argument("--only", nargs="+", choices=list(full), metavar="NAME", help=f"some of {', '.join(full)}")
    parser.add_argument(
        "--output", type=Path, help="the JSON to write; by default beside the script, if of all of them"
    )
    parser.add_argument("--runs", type=Path, help="where runs are kept, and gone on with; by default nowhere")
    options = parser.parse_args()
    size, experiments = ("full", full) if options.full else ("cpu", small)
    chosen = options.only or list(experiments)
    if missing := set(chosen) - set(experiments):
        parser.error(f"--only: expected some of {', '.join(experiments)}, got {', '.join(missing)}, which take --full")
    output = options.output
    if output is None and set(chosen) == set(experiments):
        output = Path(script).with_name(f"{Path(script).stem}.{size}.json")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="synthetic-") as temporary:
        for name in chosen:
            print(f"{name}:", flush=True)
            found[name] = run(experiments[name], (options.runs or Path(temporary)) / size / name)
            figures = found[name]
            print(
                f"  {figures['bits_per_byte']:.4f} bits per byte, floor {figures['floor_bits_per_byte']:.4f}, "
                f"excess {figures['excess_bits_per_byte']:.4f}: "
                f"{'as claimed' if figures['holds'] else 'NOT as claimed: ' + figures['claim']}",
                flush=True,
            )
    command = f"python examples/synthetic/{Path(script).name}" + (" --full" if options.full else "")
    if output is not None:
        write_json(output, {"command": command, "environment": describe_environment(), "experiments": found})
    return 0 if all(figures["holds"] for figures in found.values()) else 1


def training(steps: int, learning_rate: float = 1e-2) -> TrainConfig:
    """Training of CPU size: Muon, on one thread."""
    return TrainConfig(
        steps=steps,
        learning_rate=learning_rate,
        optimizer="muon",
        schedule="wsd",
        device="cpu",
        threads=1,
        tensorboard=False,
    )


def full_training(steps: int) -> TrainConfig:
    """Training of the paper's model, on a GPU in bfloat16."""
    return TrainConfig(steps=steps, learning_rate=3e-4, precision="bf16", tensorboard=False)
