"""`make checkpoint`: trains the shipped model of `make demo` with the options of checkpoint.json; writes checkpoint/.

A stopped training is resumed. The checkpoint folder contains the weights in float16, the training options, and
training.json: the command, the time, the machine, the versions, and scores on held-out programs.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from bgpt_fast import BGPT
from bgpt_fast.cli.assessment_tables import print_assessment
from bgpt_fast.cli.main import main as bgpt_fast
from bgpt_fast.cli.train_options import options_from_file
from bgpt_fast.environment import describe_environment
from bgpt_fast.files import write_json
from bgpt_fast.tasks.cpu_states import generate
from bgpt_fast.tasks.cpu_states.assessment import assess

HERE = Path(__file__).resolve().parent
HELD_OUT_SEED = 20240301  # differs from the seeds of the demo and of training


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/checkpoint"), help="the training run's folder")
    parser.add_argument("--programs", type=int, default=5000, help="held-out programs for the final scores")
    options = parser.parse_args()
    recipe, folder = HERE / "checkpoint.json", HERE / "checkpoint"
    code = bgpt_fast(["train", "--config", str(recipe), "--output", str(options.run)])
    if code:
        return code
    latest = max((options.run / "checkpoints").glob("step-*"))
    BGPT.from_pretrained(latest).save_pretrained(folder, dtype=torch.float16)
    shutil.copyfile(recipe, folder / "options.json")

    machine = options_from_file(recipe).machine
    held_out = generate(options.programs, seed=HELD_OUT_SEED, stream="philox", split="eval", **asdict(machine))
    assessment = assess(BGPT.from_pretrained(folder, dtype=torch.float32), held_out)
    print_assessment(assessment)
    log = [json.loads(line) for line in (options.run / "log.jsonl").read_text().splitlines()]
    last = [line for line in log if line["kind"] == "train"][-1]
    scores = {
        mode: {key: value for key, value in report.to_dict().items() if key not in ("wrong", "states")}
        for mode, report in (("teacher_forced", assessment.teacher_forced), ("free_running", assessment.free_running))
    }
    write_json(
        folder / "training.json",
        {
            "command": "make checkpoint",
            "data": "programs of the Philox stream's training split, made as they are needed; seed in options.json",
            "steps": last["step"],
            "seconds": last["seconds"],
            "final_loss": last["loss"],
            "processor": platform.processor() or platform.machine(),
            "environment": describe_environment(),
            "held_out_programs": options.programs,
            "held_out_seed": HELD_OUT_SEED,
            **scores,
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
