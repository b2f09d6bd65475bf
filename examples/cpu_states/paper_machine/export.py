"""Exports the model of a run of train.py: PYTHONPATH=. python …/export.py --run FOLDER [--output FOLDER].

The output folder gets the averaged weights in float16 (config.json, model.safetensors), the run's place (place.json)
and its curve. `train.py --init-from` goes on from it on another machine: the optimisers' state, which is three times as
large as the weights, begins anew.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch

from bgpt_fast import BGPT, BGPTConfig
from bgpt_fast.checkpoint import ModelTask
from bgpt_fast.files import write_json
from bgpt_fast.tasks.cpu_states import StreamOptions


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/paper-machine"), help="the run's folder")
    parser.add_argument("--output", type=Path, help="the folder to write; default: model in the run's folder")
    options = parser.parse_args()
    export(options.run, options.output or options.run / "model")
    return 0


def export(run: Path, output: Path) -> None:
    """Writes the newest state of a run as a checkpoint."""
    state = torch.load(run / "state.pt", map_location="cpu", weights_only=True)
    model = BGPT(BGPTConfig.from_dict(state["config"]))
    model.load_state_dict(state["average"])
    machine = StreamOptions()
    model.task = ModelTask.of("cpu-states", extensions=["bin"], machine=(machine.num_registers, machine.memory_size))
    model.save_pretrained(output, dtype=torch.float16)
    write_json(output / "place.json", {**state["place"], "errors": [round(e, 4) for e in state["errors"].tolist()]})
    shutil.copyfile(run / "curve.jsonl", output / "curve.jsonl")
    last = json.loads((run / "curve.jsonl").read_text().splitlines()[-1])
    print(f"step {state['place']['step']} → {output}; the curve's last line: {last}")


if __name__ == "__main__":
    sys.exit(main())
