"""Scores a model on held-out programs of the paper's machine: PYTHONPATH=. python …/evaluate.py [--model FOLDER].

The programs come from the released generator's own stream, from a seed of which training saw nothing; of them, those
count whose program is of the parallel stream's test split, so that none was ever trained on. Writes scores.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bgpt_fast import BGPT
from bgpt_fast.files import write_json
from bgpt_fast.generation import Generator
from bgpt_fast.tasks.cpu_states import (
    CPUStateReport,
    ReleasedStream,
    StreamOptions,
    Traces,
    evaluate,
    evaluate_bytes,
    simulate,
    split_of,
    teacher_forced,
)

HERE = Path(__file__).resolve().parent
HELD_OUT_SEED = 20240301
LENGTHS = ((1, 15), (16, 63), (64, 127), (128, 191), (192, 255))
PUBLISHED = "more than 99.99 % of state bytes (arXiv 2402.19155)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=HERE, help="a folder of save_pretrained")
    parser.add_argument("--programs", type=int, default=1000, help="held-out programs")
    parser.add_argument("--free-running", type=int, default=0, help="how many of them are run freely too")
    parser.add_argument(
        "--output", type=Path, help="where to write the scores; default: scores.json in the model's folder"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = BGPT.from_pretrained(options.model, dtype=torch.float32)
    scores = all_scores(model, held_out(options.programs), options.free_running)
    write_json(options.output or options.model / "scores.json", scores)
    print(scores["summary"])
    return 0


def held_out(count: int) -> Traces:
    """Programs of the released stream that are of the test split, the first `count` of them."""
    stream = ReleasedStream(StreamOptions(), seed=HELD_OUT_SEED)
    chosen: list[Any] = []
    while len(chosen) < count:
        chosen += [trace for trace in stream.take(4096) if split_of(trace.program_bytes) == "eval"]
    return Traces.from_list(chosen[:count])


def all_scores(model: BGPT, programs: Traces, free_running: int) -> dict[str, Any]:
    """Teacher-forced scores in all, by instruction, by operand size and by length, and free-running ones."""
    predicted = teacher_forced(model, programs, batch_size=16)
    truth = [trace.states for trace in programs]
    report = evaluate_bytes(predicted, truth)
    scores: dict[str, Any] = {
        "programs": len(programs),
        "held_out_seed": HELD_OUT_SEED,
        "published": PUBLISHED,
        "summary": report.summary(),
        "teacher_forced": _fields(report),
        "by_length": by_length(predicted, truth),
    }
    if free_running:
        some = programs[:free_running]
        free = evaluate(simulate(Generator(model, max_batch=64), some, draft=True), some)
        scores["free_running"] = _fields(free)
        scores["summary"] += "\nfree running:\n" + free.summary()
    return scores


def by_length(predicted: list[NDArray[np.int16]], truth: list[NDArray[np.uint8]]) -> dict[str, Any]:
    """Shares of right bytes of the programs of each range of lengths (instructions, HLT among them)."""
    scores = {}
    for least, most in LENGTHS:
        which = [i for i, states in enumerate(truth) if least <= len(states) - 1 <= most]
        if which:
            report = evaluate_bytes([predicted[i] for i in which], [truth[i] for i in which])
            scores[f"{least}…{most}"] = {
                "programs": len(which),
                "accuracy": report.accuracy,
                "changed_accuracy": report.changed_accuracy,
                "programs_right": report.exact_programs,
            }
    return scores


def _fields(report: CPUStateReport) -> dict[str, Any]:
    left_out = ("wrong", "states", "first_divergence")
    return {name: value for name, value in report.to_dict().items() if name not in left_out}


if __name__ == "__main__":
    sys.exit(main())
