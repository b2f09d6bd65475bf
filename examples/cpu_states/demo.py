"""`make demo`: simulates a CPU with the shipped model, then with a small one that is trained from scratch.

The output folder demo/ gets results.json, plots as PNG, and predicted traces as .bin files. A second run skips
completed steps; `rm -r demo` starts over.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bgpt_fast import BGPT
from bgpt_fast.cli.assessment_tables import print_assessment
from bgpt_fast.cli.common import generation_progress
from bgpt_fast.cli.main import main as bgpt_fast
from bgpt_fast.cli.model_task import machine_of
from bgpt_fast.files import atomic_write, write_json
from bgpt_fast.report.plots import accuracy_bars, difference_map, training_curve
from bgpt_fast.tasks.cpu_states import Traces, column_names, format_difference, generate
from bgpt_fast.tasks.cpu_states.assessment import Assessment, assess
from bgpt_fast.terminal import accept_all_text, new_console, print_text

HERE = Path(__file__).resolve().parent
CHECKPOINT = HERE / "checkpoint"
PAPER_MACHINE = HERE / "paper_machine"
RECIPE = HERE / "demo.json"
HELD_OUT_SEED = 20240229  # seed of programs that were used neither for training nor for the choice of a recipe


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="where everything goes")
    parser.add_argument("--programs", type=int, help="held-out programs to simulate; default: 500, or 20")
    parser.add_argument(
        "--paper-machine",
        action="store_true",
        help="simulate the paper's own machine in the first part: 10 registers, 1,024 bytes of memory, 20 programs",
    )
    options = parser.parse_args()
    accept_all_text()
    started = time.perf_counter()

    new_console().rule("1. Simulate with the shipped model")
    checkpoint, count = (PAPER_MACHINE, 20) if options.paper_machine else (CHECKPOINT, 500)
    shipped = simulate("shipped", checkpoint, options.output, options.programs or count)

    new_console().rule("2. Train one from scratch, and simulate with it")
    run = options.output / "training"
    code = train(run)
    if code:
        return code
    latest = run / "checkpoints" / json.loads((run / "trained.json").read_text())["checkpoint"]
    trained = simulate("trained", latest, options.output, options.programs or 500)
    training_curve(run / "log.jsonl", options.output / "training_curve.png", "Training from scratch")

    new_console().rule("3. Side by side")
    compare(shipped, trained, run, options.output)
    print_text(f"Everything is in {options.output}/, in {time.perf_counter() - started:.0f} s this time.")
    return 0


def simulate(name: str, checkpoint: Path, output: Path, programs: int) -> dict[str, Any]:
    """Scores a checkpoint on held-out programs of its machine, unless its report exists; returns its figures."""
    folder = output / name
    machine = machine_of(checkpoint).to_dict()
    weights = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    question = {"weights": weights, "machine": machine, "programs": programs, "seed": HELD_OUT_SEED}
    report = folder / "report.json"
    if report.exists():
        figures = json.loads(report.read_text())
        if figures["question"] == question:
            print_text(f"{name}: done already, {percent(figures['teacher_forced']['accuracy'])} of state bytes right")
            return figures
        shutil.rmtree(folder)
    held_out = generate(programs, seed=HELD_OUT_SEED, stream="philox", split="eval", **machine)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = BGPT.from_pretrained(checkpoint, device=device, dtype=torch.float32)
    print_text(
        f"{name}: {model.num_parameters():,} parameters, {checkpoint}; {programs} held-out programs of "
        f"{machine['min_program']}…{machine['max_program']} instructions on a machine of "
        f"{machine['num_registers']} registers and {machine['memory_size']} bytes of memory"
    )
    with generation_progress("free running") as progress:
        assessment = assess(model, held_out, progress=progress)
    print_assessment(assessment)
    show_one(assessment, held_out, folder)
    for index, (trace, predicted) in enumerate(zip(held_out, assessment.predicted, strict=True)):
        with atomic_write(folder / "predicted" / f"{index:05d}-{trace.name}") as file:
            file.write(predicted.to_bytes())
    figures = {"question": question, "parameters": model.num_parameters(), **assessment.to_dict()}
    write_json(report, figures)
    return json.loads(report.read_text())


def show_one(assessment: Assessment, held_out: Traces, folder: Path) -> None:
    """Prints the longest wrong prediction (or the longest of all) next to the true trace, and plots its errors."""
    wrong = [i for i, trace in enumerate(held_out) if assessment.predicted[i].to_bytes() != trace.to_bytes()]
    index = max(wrong or range(len(held_out)), key=lambda i: len(held_out[i].states))
    truth, predicted = held_out[index], assessment.predicted[index]
    text = format_difference(predicted, truth)
    print_text(f"\nProgram {index}, free running; {len(wrong)} of {len(held_out)} programs have a wrong byte:")
    print_text(text)
    with atomic_write(folder / "trace.txt") as file:
        file.write((text + "\n").encode())
    difference_map(
        predicted.states[1:],
        truth.states[1:],
        column_names(truth.num_registers),
        folder / "difference_map.png",
        f"Program {index}: predicted state bytes, wrong ones in red",
    )


def train(run: Path) -> int:
    """Trains from scratch with the options of demo.json, unless that is done; returns an exit code."""
    done = run / "trained.json"
    if done.exists():
        print_text("trained already")
        return 0
    code = bgpt_fast(["train", "--config", str(RECIPE), "--output", str(run)])
    if code == 0:
        steps = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
        write_json(done, {"checkpoint": steps[-1]})
    return code


def compare(shipped: dict[str, Any], trained: dict[str, Any], run: Path, output: Path) -> None:
    """Writes results.json and accuracy_by_instruction.png, and prints both models in one table."""
    models = {"shipped": shipped, "trained here": trained}
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    last = [line for line in log if line["kind"] == "train"][-1]
    training = {"steps": last["step"], "seconds": last["seconds"], "loss": last["loss"]}
    write_json(output / "results.json", {"shipped": shipped, "trained": trained, "training": training})
    accuracy_bars(
        {
            f"{name} ({mode.replace('_', ' ')})": {
                instruction: score["changed_accuracy"]
                for instruction, score in figures[mode]["by_instruction"].items()
                if score["changed_accuracy"] is not None
            }
            for name, figures in models.items()
            for mode in ("teacher_forced", "free_running")
        },
        output / "accuracy_by_instruction.png",
        "Bytes that an instruction changed, right",
    )
    rows = (
        ("state bytes right, teacher-forced", ("teacher_forced", "accuracy")),
        ("… copying alone would score", ("teacher_forced", "copy_baseline")),
        ("changed bytes right, teacher-forced", ("teacher_forced", "changed_accuracy")),
        ("state bytes right, free running", ("free_running", "accuracy")),
        ("programs right to the last byte", ("free_running", "exact_programs")),
    )
    width = max(len(label) for label, _ in rows)
    print_text(" " * width + "".join(f"{name:>14}" for name in models))
    for label, (mode, figure) in rows:
        print_text(
            f"{label:<{width}}" + "".join(f"{percent(figures[mode][figure]):>14}" for figures in models.values())
        )
    for label, figure in (("registers", "num_registers"), ("bytes of memory", "memory_size")):
        print_text(
            f"{label:<{width}}"
            + "".join(f"{figures['question']['machine'][figure]:>14}" for figures in models.values())
        )
    print_text(
        f"{'states a second':<{width}}"
        + "".join(f"{figures['states_per_second']:>14,.0f}" for figures in models.values())
    )


def percent(share: float) -> str:
    return f"{100 * share:.3f} %"


if __name__ == "__main__":
    sys.exit(main())
