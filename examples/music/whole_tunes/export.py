"""Makes a snapshot of a run of train.py: PYTHONPATH=. python …/export.py [--run FOLDER] [--snapshot FOLDER].

The snapshot gets the weights of the newest checkpoint in float16 (config.json, model.safetensors) and the curve: the
evaluations along the run, and every tenth of the logged steps.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from train import RUN

from bgpt_fast import BGPT
from bgpt_fast.files import atomic_write, write_json

HERE = Path(__file__).resolve().parent
FIELDS = ("kind", "step", "seconds", "loss", "bits_per_byte", "learning_rate", "patches_per_second")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=RUN, help="the run's folder")
    parser.add_argument("--snapshot", type=Path, default=HERE / "snapshot", help="the folder to write")
    options = parser.parse_args()
    export(options.run / "run", options.snapshot)
    return 0


def export(run: Path, snapshot: Path) -> None:
    """Writes the newest checkpoint of a run as a snapshot."""
    checkpoints = run / "checkpoints"
    name = (checkpoints / "latest").read_text().strip()
    BGPT.from_pretrained(checkpoints / name).save_pretrained(snapshot, dtype=torch.float16)
    state = json.loads((checkpoints / name / "state.json").read_text())
    write_json(snapshot / "place.json", {"checkpoint": name, "source": state["source"]})
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    curve = [line for line in lines if line["kind"] == "eval" or line in steps[::10]]
    with atomic_write(snapshot / "curve.jsonl") as file:
        for line in curve:
            short = {name: line[name] for name in FIELDS if name in line} if line["kind"] == "train" else line
            file.write((json.dumps(short) + "\n").encode())
    print(f"{name} → {snapshot}")


if __name__ == "__main__":
    sys.exit(main())
