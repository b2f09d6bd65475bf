"""The paper's 110 M model on the paper's machine (10 registers, 1 KiB of memory), from scratch, in sessions.

    PYTHONPATH=. python examples/cpu_states/train_paper.py --output runs/paper --session-minutes 9

Each call trains for one session, saves, and exits with 143; the next one resumes, until `--steps` are done or
`--target` is reached. `result.json` has the held-out scores over time, the machine and the versions. Does not need the
packages of the command line.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from bgpt_fast import BGPT, BGPTConfig
from bgpt_fast.files import write_json
from bgpt_fast.tasks.cpu_states import CPUStateSource, generate
from bgpt_fast.tasks.cpu_states.training import teacher_forced_evaluation
from bgpt_fast.training import TrainConfig, Trainer, TrainingInterrupted

PAPER = BGPTConfig(byte_init="numeric", byte_init_std=0.05, position_init_std=0.1)
MACHINE = {"num_registers": 10, "memory_size": 1024, "min_program": 1, "max_program": 255}
TRAINING = TrainConfig(
    schedule="wsd",
    warmup_share=0.02,
    decay_share=0.5,
    optimizer="muon",
    muon_learning_rate=0.02,
    learning_rate=1e-3,
    eps=1e-10,
    weight_decay=0.0,
    precision="bf16",
    tensorboard=False,
)
TINY = BGPTConfig(
    patch_size=16, patch_length=16, hidden_size=32, patch_num_layers=1, byte_num_layers=1, num_heads=2, byte_num_heads=2
)
TINY_MACHINE = {"num_registers": 10, "memory_size": 64, "min_program": 1, "max_program": 9}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/paper"), help="the run's folder")
    parser.add_argument("--session-minutes", type=float, default=9.0, help="save and exit after so long; 0: never")
    parser.add_argument("--steps", type=int, default=20_000, help="steps of the whole run, which the schedule spans")
    parser.add_argument("--programs", type=int, default=128, help="programs of a batch")
    parser.add_argument("--held-out", type=int, default=400, help="held-out programs of an evaluation")
    parser.add_argument("--eval-every", type=int, default=500, help="steps between evaluations")
    parser.add_argument("--target", type=float, default=0.9999, help="stop at this share of state bytes")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and machine, to try the script")
    options = parser.parse_args()

    config, machine = (TINY, TINY_MACHINE) if options.tiny else (PAPER, MACHINE)
    torch.manual_seed(0)
    model = BGPT(config)
    source = CPUStateSource(config, seed=0, documents_per_batch=options.programs, long_share=0.3, **machine)
    held_out = generate(options.held_out, seed=20240229, stream="philox", split="eval", **machine)
    training = dataclasses.replace(
        TRAINING,
        steps=options.steps,
        eval_every=options.eval_every,
        save_every=options.eval_every,
        best_metric="state_byte_accuracy",
        best_is="highest",
        stop_at=options.target,
    )
    trainer = Trainer(model, source, training, options.output, teacher_forced_evaluation(held_out))
    session = threading.Timer(60 * options.session_minutes, os.kill, (os.getpid(), signal.SIGTERM))
    session.daemon = True
    if options.session_minutes:
        session.start()
    code = 0
    try:
        result = trainer.train()
        print(f"ended by {result.stopped_by} after {result.steps} steps: {result.evaluation}")
    except TrainingInterrupted as stop:
        code = stop.exit_code
        print(stop, file=sys.stderr)
    finally:
        session.cancel()
    write_json(options.output / "result.json", summary(options.output, config, machine, trainer.step))
    return code


def summary(run: Path, config: BGPTConfig, machine: dict[str, int], steps: int) -> dict[str, Any]:
    """Returns the run's settings, device, versions and evaluations."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "command": " ".join(sys.argv),
        "device": device,
        "torch": torch.__version__,
        "model": dataclasses.asdict(config),
        "machine": machine,
        "steps": steps,
        "evaluations": [line for line in lines if line["kind"] == "eval"],
        "last_step": next((line for line in reversed(lines) if line["kind"] == "train"), None),
    }


if __name__ == "__main__":
    sys.exit(main())
