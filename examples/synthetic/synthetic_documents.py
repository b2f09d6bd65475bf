"""Shared by the synthetic examples: an endless source of generated documents, and the excess over their entropy.

The probability of a generated document is known, so no code can be shorter on average than its `bits`, the floor. A
model's excess over the floor is what it has not learned; on held-out documents it is below 0 only by chance.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))
import training_runs as runs

from bgpt_fast import BGPT, BGPTConfig, PackedPatches
from bgpt_fast.files import atomic_write
from bgpt_fast.metrics import bootstrap_interval
from bgpt_fast.tasks.evaluation import FileReport, evaluate_files
from bgpt_fast.training import TrainConfig, Trainer

SMALL = runs.cpu_model(33, 64, layers=2, heads=2, byte_heads=4, patch_size=8, byte_init_std=0.1)
"""The model of the CPU-size runs, 0.3 M parameters: learns the recipes' rules in a minute or two on one core."""


@dataclass(frozen=True)
class Rule:
    """A random process that generates documents.

    Args:
        make: generates a document from a random stream: its extension, which determines its size, so that the end of
            the file has no entropy, and its content.
        bits: −log₂ of the probability of a content under the rule, given the extension.
    """

    make: Callable[[random.Random], tuple[str, bytes]]
    bits: Callable[[bytes], float]

    def document(self, seed: int, number: int) -> tuple[str, bytes]:
        """Returns the extension and content of document `number` of a seed; always the same."""
        return self.make(random.Random(f"{seed} {number}"))


@dataclass(frozen=True)
class Experiment:
    """A model that learns a rule, and the claims about its result.

    Args:
        rule: generates the documents.
        model: sizes.
        documents: documents in a batch.
        training: see `TrainConfig`.
        most_excess: claimed upper bound of the bits per byte over the floor on held-out documents.
        held_out: number of held-out documents.
        measure: computes further figures from the report.
        least: claimed lower bounds of these figures.
    """

    rule: Rule
    model: BGPTConfig
    documents: int
    training: TrainConfig
    most_excess: float
    held_out: int = 200
    measure: Callable[[FileReport], dict[str, float]] = lambda report: {}
    least: Mapping[str, float] = field(default_factory=dict)


class SyntheticDocuments:
    """An endless `Source` of a rule's documents.

    Args:
        rule: generates the documents.
        config: patch size and context.
        documents: documents in a batch.
        seed: 0 for training; held-out files have 1.
    """

    def __init__(self, rule: Rule, config: BGPTConfig, documents: int, seed: int = 0) -> None:
        self.rule, self.config, self.documents, self.seed = rule, config, documents, seed
        self.position = 0

    def next_batch(self) -> PackedPatches:
        """Returns the next batch."""
        numbers = range(self.position, self.position + self.documents)
        self.position += self.documents
        documents = [self.rule.document(self.seed, number) for number in numbers]
        return PackedPatches.from_bytes(documents, self.config, truncation="error")

    def state_dict(self) -> dict[str, Any]:
        """Returns the position in the stream, JSON-ready."""
        return {"seed": self.seed, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues at a position of `state_dict`."""
        self.seed, self.position = state["seed"], state["position"]

    def describe(self) -> dict[str, Any]:
        """Returns what defines the stream, JSON-ready."""
        return {"kind": "synthetic documents", **self.state_dict()}


def write_held_out(rule: Rule, count: int, folder: Path) -> None:
    """Writes the documents 0 … `count` − 1 of seed 1 as files."""
    for number in range(count):
        extension, content = rule.document(1, number)
        with atomic_write(folder / f"{number:05}.{extension}") as file:
            file.write(content)


def run(experiment: Experiment, folder: Path) -> dict[str, Any]:
    """Trains on an endless stream of documents and scores held-out ones against the floor.

    Args:
        experiment: rule, model and claims.
        folder: folder of the run (a stopped run is resumed) and of the held-out files.

    Returns:
        Figures, JSON-ready. "holds" is true if the excess is at most `most_excess`, its interval is not below 0, and
        the further figures are at least those of `least`.
    """
    torch.manual_seed(experiment.training.seed)
    model = BGPT(experiment.model)
    source = SyntheticDocuments(experiment.rule, experiment.model, experiment.documents)
    started = time.monotonic()
    result = Trainer(model, source, experiment.training, folder / "run").train()
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
        "steps": result.steps,
        "documents_a_step": experiment.documents,
        "training_seconds": round(seconds, 1),
    }


def main(script: str, description: str, small: Mapping[str, Experiment], full: Mapping[str, Experiment]) -> int:
    """The command line of a recipe; returns 1 if a claim does not hold.

    Args:
        script: the recipe's `__file__`; results of all experiments are written next to it, as JSON.
        description: for --help.
        small: experiments by name, of CPU size, the smallest one first.
        full: the same with the paper's model, and some that the small model does not learn.
    """
    parser = runs.argument_parser(description)
    parser.add_argument("--only", nargs="+", choices=list(full), metavar="NAME", help=f"some of {', '.join(full)}")
    options = parser.parse_args()
    experiments = full if options.full else small
    names = options.only or list(experiments)
    if missing := set(names) - set(experiments):
        parser.error(f"--only: expected some of {', '.join(experiments)}, got {', '.join(missing)}, which take --full")
    results: dict[str, Any] = {}
    with runs.runs_folder(options) as folder:
        for name in names:
            print(f"{name}:", flush=True)
            results[name] = figures = run(experiments[name], folder / name)
            print(
                f"  {figures['bits_per_byte']:.4f} bits per byte, floor {figures['floor_bits_per_byte']:.4f}, "
                f"excess {figures['excess_bits_per_byte']:.4f}: "
                f"{'as claimed' if figures['holds'] else 'NOT as claimed: ' + figures['claim']}",
                flush=True,
            )
    if options.output is not None or set(names) == set(experiments):
        runs.write_results(script, parser, options, {"experiments": results})
    return 0 if all(figures["holds"] for figures in results.values()) else 1
