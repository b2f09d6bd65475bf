"""Trains a model to simulate a real processor, the MOS 6502, on traces of random programs from the emulator py65.

Trainer, packing, simulation and generator are those of the toy machine; source and scores are specific to the 6502.
The results on held-out programs go to mos6502.cpu.json beside this script.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from mos6502_scores import evaluate
from mos6502_source import Mos6502Source
from mos6502_traces import ProgramOptions, generate

sys.path.append(str(Path(__file__).resolve().parents[1]))
import training_runs as runs

from bgpt_fast import BGPT, BGPTConfig
from bgpt_fast.training import TrainConfig, Trainer

PROGRAMS = ProgramOptions(memory_size=32, min_program=1, max_program=8)
SMALL = runs.cpu_model(13, 128, layers=4, heads=4, byte_heads=8, byte_init="numeric", byte_init_std=0.05)
FULL_PROGRAMS = ProgramOptions(memory_size=256, min_program=1, max_program=120)


def settings(full: bool, minutes: float) -> tuple[BGPTConfig, ProgramOptions, TrainConfig]:
    """Model, programs and training: of CPU size, or the paper's model for a GPU."""
    if full:
        return runs.PAPER, FULL_PROGRAMS, runs.gpu_training(**runs.limited_to(minutes))
    return SMALL, PROGRAMS, runs.cpu_training(**runs.limited_to(minutes), decay_share=0.95)


def main() -> int:
    parser = runs.argument_parser(__doc__)
    parser.add_argument("--minutes", type=float, help="of training; by default 15, and 240 for --full")
    parser.add_argument("--held-out", type=int, default=500, help="programs for the scores")
    options = parser.parse_args()
    minutes = options.minutes or (240.0 if options.full else 15.0)
    config, programs, training = settings(options.full, minutes)
    torch.manual_seed(0)
    model = BGPT(config)
    with runs.runs_folder(options) as folder:
        source = Mos6502Source(config, documents_per_batch=64, options=programs)
        result = Trainer(model, source, training, folder).train()
    reports = evaluate(model, generate(options.held_out, seed=1, split="eval", options=programs))
    for name, report in reports.items():
        print(
            f"{name}: {report.accuracy:.4%} of the state bytes, {report.changed_accuracy:.4%} of the changed ones, "
            f"{report.exact_programs:.2%} of the programs (copying: {report.copy_baseline:.4%} of the state bytes)"
        )
    options.output = options.output or Path(__file__).with_name(f"mos6502.{runs.size_of(options)}.json")
    runs.write_results(
        __file__,
        parser,
        options,
        {
            "programs": programs.to_dict(),
            "parameters": model.num_parameters(),
            "minutes": minutes,
            "steps": result.steps,
            "last_loss": result.loss,
            **{name: report.to_dict() for name, report in reports.items()},
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
