"""`make whole-tunes`: trains a small bGPT to convert whole Irish tunes, ABC to MIDI and back, by recipe.json.

Stopped at any moment and run again, it goes on where it was (`bgpt_fast.training.Trainer`). The run's folder has real
pairs, the cache of generated ones, and `run/` with checkpoints and log.jsonl. `evaluate.py` scores its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from tune_source import TuneSource

from bgpt_fast import BGPT, BGPTConfig
from bgpt_fast.tasks.conversion_likelihood import evaluate_pairs
from bgpt_fast.tasks.music import irish_collections, make_pairs
from bgpt_fast.training import TrainConfig, Trainer, TrainingInterrupted

HERE = Path(__file__).resolve().parent
TEST_SHARE = 0.1
"""Of the titles; the pairs of the others are for training."""
RUN = Path("runs/whole-tunes")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=HERE / "recipe.json", help="the configuration file")
    parser.add_argument("--run", type=Path, default=RUN, help="the run's folder")
    parser.add_argument("--full", action="store_true", help="the 110 M model, on a GPU")
    parser.add_argument("--minutes", type=float, help="training time, all sessions together; default: the recipe's")
    options = parser.parse_args()
    recipe = read_recipe(options.recipe, full=options.full)
    if options.minutes:
        recipe["training"]["max_minutes"] = options.minutes
    try:
        result = trainer_of(recipe, options.run).train()
        print(f"ended by {result.stopped_by} after {result.steps} steps: {result.evaluation}")
    except TrainingInterrupted as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code
    return 0


def read_recipe(path: Path, *, full: bool) -> dict[str, Any]:
    """The configuration file's fields; with `full`, those under "full" in the place of the others'."""
    recipe: dict[str, Any] = json.loads(path.read_text())
    large = recipe.pop("full")
    return {**recipe, **large} if full else recipe


def trainer_of(recipe: dict[str, Any], run: Path) -> Trainer:
    """A new run, or the one in the folder."""
    make_pairs(irish_collections(), run / "real", test_share=TEST_SHARE)
    config = BGPTConfig(**recipe["model"])
    torch.manual_seed(recipe["seed"])
    model = BGPT(config)
    source = TuneSource(
        config, recipe["patches_per_batch"], recipe["stages"], run / "real/train", run / "cache", recipe["seed"]
    )
    watched = sorted((run / "real/test").iterdir())[: 2 * recipe["watched_pairs"]]

    def evaluate(model: BGPT) -> dict[str, float]:
        """Bits per byte and accuracy of some held-out real tunes."""
        figures = {}
        for name, report in evaluate_pairs(model, watched, "abc&mid", baselines=False).items():
            figures[f"{name}_bits_per_byte"] = report.total.per_byte
            figures[f"{name}_accuracy"] = report.total.accuracy
        return figures

    return Trainer(model, source, TrainConfig(**recipe["training"]), run / "run", evaluate)


if __name__ == "__main__":
    sys.exit(main())
