"""`make paper-machine`: trains a small bGPT on the paper's own machine by recipe.json.

Stopped at any moment and run again, it goes on where it was: its state is saved every few minutes, and at SIGTERM and
SIGINT after the step under way. The run's folder gets `state.pt` (all that the run is) and `curve.jsonl` (a line every
few steps, and one an evaluation on held-out programs). `export.py` writes its model, `evaluate.py` scores that.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from initial_weights import copy_and_fetch
from paper_learner import Learner, new_model

from bgpt_fast import BGPTConfig
from bgpt_fast.tasks.cpu_states import Traces, generate
from bgpt_fast.tasks.cpu_states.training import teacher_forced_evaluation
from bgpt_fast.training.allocator import reused_memory

HERE = Path(__file__).resolve().parent
WATCHED_SEED = 20250101
"""Of the held-out programs that are scored along the way; the final scores are of others."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=HERE / "recipe.json", help="the configuration file")
    parser.add_argument("--run", type=Path, default=Path("runs/paper-machine"), help="the run's folder")
    parser.add_argument("--full", action="store_true", help="the 110 M model, on a GPU")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="save and end after so long")
    parser.add_argument("--init-from", type=Path, help="begin from this folder of export.py")
    parser.add_argument("--stage", type=int, help="begin with this stage of the recipe, counted from 0")
    parser.add_argument("--threads", type=int, default=1, help="threads on a CPU")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    recipe = read_recipe(options.recipe, full=options.full)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    learner = start(recipe, options, device)
    run(learner, recipe, options.run, options.minutes)
    return 0


def read_recipe(path: Path, *, full: bool) -> dict[str, Any]:
    """The configuration file's fields; with `full`, those under "full" in the place of the others'."""
    recipe = json.loads(path.read_text())
    large = recipe.pop("full")
    return {**recipe, **large} if full else recipe


def start(recipe: dict[str, Any], options: argparse.Namespace, device: torch.device) -> Learner:
    """A new run, or the one in the folder."""
    config = BGPTConfig.from_dict(recipe["model"])
    model = new_model(config, recipe["seed"])
    copy_and_fetch(model, recipe["seed"], **recipe["initial_weights"])
    learner = Learner(recipe, model, device)
    state = options.run / "state.pt"
    if state.exists():
        learner.load(state)
        print(f"goes on from step {learner.place.step}", flush=True)
    elif options.init_from:
        learner.load_model(options.init_from)
        earlier, curve = options.init_from / "curve.jsonl", options.run / "curve.jsonl"
        if earlier.exists() and not curve.exists():
            curve.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(earlier, curve)
    if options.stage is not None:
        learner.go_to(options.stage)
    return learner


def run(learner: Learner, recipe: dict[str, Any], folder: Path, minutes: float) -> None:
    """Steps until the recipe or the time is over, or a signal comes."""
    folder.mkdir(parents=True, exist_ok=True)
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stopped.append(number))
    held_out = generate(recipe["watched_programs"], seed=WATCHED_SEED, stream="philox", split="eval", threads=1)
    began = saved = watched = time.monotonic()
    smooth: dict[str, float] = {}
    with open(folder / "curve.jsonl", "a") as curve, reused_memory():
        while learner.stage is not None and not stopped and time.monotonic() - began < 60 * minutes:
            name = learner.stage["name"]
            width = learner.place.width
            figures = learner.step()
            place = learner.place
            smooth = {key: 0.9 * smooth.get(key, value) + 0.1 * value for key, value in figures.items()}
            if place.step % recipe["log_every"] == 0 or learner.stage is None:
                line = {"step": place.step, "stage": name, "width": width}
                write_line(curve, line | smooth | spent(learner))
            now = time.monotonic()
            if now - saved > 60 * recipe["save_minutes"]:
                learner.save(folder / "state.pt")
                saved = now
            if now - watched > 60 * recipe["watch_minutes"]:
                write_line(curve, {"step": place.step, "stage": name} | scores(learner, held_out) | spent(learner))
                watched = time.monotonic()
        learner.save(folder / "state.pt")
        write_line(curve, {"step": learner.place.step, "stage": "end"} | scores(learner, held_out) | spent(learner))


def scores(learner: Learner, held_out: Traces) -> dict[str, float]:
    """Scores of the weights and of the averaged weights on held-out programs."""
    evaluate = teacher_forced_evaluation(held_out, batch_size=8)
    with learner.autocast():
        now, averaged = evaluate(learner.model), evaluate(learner.averaged_model())
    return now | {f"averaged_{name}": value for name, value in averaged.items()}


def spent(learner: Learner) -> dict[str, Any]:
    """What the run has cost so far."""
    place = learner.place
    return {"targets": place.targets, "core_hours": place.core_seconds / 3600, "hours": place.seconds / 3600}


def write_line(curve: Any, line: dict[str, Any]) -> None:
    """Adds a line to the curve, and prints it."""
    text = json.dumps({name: round(value, 6) if isinstance(value, float) else value for name, value in line.items()})
    curve.write(text + "\n")
    curve.flush()
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
