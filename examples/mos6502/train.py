"""A real processor: a model learns to be a MOS 6502 from traces of random programs, made by py65.

The path is the toy machine's: the same trainer, packing, simulation and generator; the source and the scores are the
6502's own. The results on held-out programs go to mos6502.json beside this script.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from bgpt_fast import BGPT, BGPTConfig
from bgpt_fast.environment import describe_environment
from bgpt_fast.files import write_json
from bgpt_fast.tasks.mos6502 import Mos6502Source, ProgramOptions, evaluate, generate
from bgpt_fast.training import TrainConfig, Trainer

HERE = Path(__file__).resolve().parent
PROGRAMS = ProgramOptions(memory_size=32, min_program=1, max_program=8)
SMALL = BGPTConfig(
    patch_size=16,
    patch_length=13,
    hidden_size=128,
    patch_num_layers=4,
    byte_num_layers=1,
    num_heads=4,
    byte_num_heads=8,
    position_init_std=0.3,
    byte_init="numeric",
    byte_init_std=0.05,
)
FULL_PROGRAMS = ProgramOptions(memory_size=256, min_program=1, max_program=120)


def settings(full: bool, minutes: float) -> tuple[BGPTConfig, ProgramOptions, TrainConfig]:
    """Sizes, programs and training: of CPU size, or of the paper's model for a GPU."""
    fields: dict[str, Any] = {"max_minutes": minutes, "steps": 0, "schedule_by": "time", "tensorboard": False}
    if full:
        return BGPTConfig(), FULL_PROGRAMS, TrainConfig(**fields, learning_rate=3e-4, precision="bf16")
    training = TrainConfig(
        **fields, learning_rate=1e-2, optimizer="muon", schedule="wsd", decay_share=0.95, device="cpu", threads=1
    )
    return SMALL, PROGRAMS, training


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the paper's model, for a GPU, instead of CPU size")
    parser.add_argument("--minutes", type=float, help="of training; by default 15, and 240 for --full")
    parser.add_argument("--held-out", type=int, default=500, help="programs for the scores")
    parser.add_argument("--run", type=Path, help="the run's folder, where it goes on; by default nowhere")
    parser.add_argument("--output", type=Path, help="the JSON to write; by default beside the script")
    options = parser.parse_args()
    minutes = options.minutes or (240.0 if options.full else 15.0)
    config, programs, training = settings(options.full, minutes)
    torch.manual_seed(0)
    model = BGPT(config)
    with tempfile.TemporaryDirectory(prefix="mos6502-") as temporary:
        source = Mos6502Source(config, documents_per_batch=64, options=programs)
        done = Trainer(model, source, training, options.run or Path(temporary)).train()
    reports = evaluate(model, generate(options.held_out, seed=1, split="test", options=programs))
    for name, report in reports.items():
        print(
            f"{name}: {report.accuracy:.4%} of the state bytes, {report.changed_accuracy:.4%} of the changed ones, "
            f"{report.exact_programs:.2%} of the programs (copying: {report.copy_baseline:.4%} of the state bytes)"
        )
    write_json(
        options.output or HERE / f"mos6502.{'full' if options.full else 'cpu'}.json",
        {
            "command": "python examples/mos6502/train.py" + (" --full" if options.full else ""),
            "environment": describe_environment(),
            "programs": programs.to_dict(),
            "parameters": model.num_parameters(),
            "minutes": minutes,
            "steps": done.steps,
            "last_loss": done.loss,
            **{name: report.to_dict() for name, report in reports.items()},
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
