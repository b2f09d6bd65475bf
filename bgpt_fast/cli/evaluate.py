"""`bgpt-fast evaluate`: bits per byte on files, or accuracy on CPU states."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from bgpt_fast.cli.common import as_json, console, generation_progress, load_model, read_options, table
from bgpt_fast.cli.simulate import print_assessment
from bgpt_fast.data import FileSource
from bgpt_fast.files import write_json
from bgpt_fast.model import BGPT
from bgpt_fast.tasks.cpu_states import StreamOptions, generate
from bgpt_fast.tasks.cpu_states.assessment import assess
from bgpt_fast.training import likelihood_evaluation


@dataclass(frozen=True)
class Evaluate:
    """Bits per byte on files; without files, accuracy on random held-out programs of the CPU-state machine.

    Args:
        data: files and folders.
        checkpoint: a folder of weights, a .safetensors or .pth file, or a hub id.
        patches_per_batch: with files: most patches of a batch.
        programs: without files: how many held-out programs.
        seed: without files: of the programs.
        machine: without files: the machine that the model was trained on.
        output: where to write the figures as JSON; None means nowhere.
        json: print JSON instead of a table.
        device: "auto" means the GPU where there is one.
    """

    checkpoint: Path
    data: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    patches_per_batch: int = 2048
    programs: int = 200
    seed: int = 1
    machine: StreamOptions = field(
        default_factory=lambda: StreamOptions(num_registers=2, memory_size=64, min_program=1, max_program=15)
    )
    output: Path | None = None
    json: bool = False
    device: str = "auto"


def run(words: Sequence[str]) -> int:
    options = read_options(Evaluate, "evaluate", words)
    model = load_model(options.checkpoint, options.device)
    if options.data:
        figures = _files(options, model)
        shown = table("on files", ["", "value"], [[name, f"{value:,.6g}"] for name, value in figures.items()])
    else:
        if options.programs < 1:
            raise ValueError(f"--programs: expected at least 1, got {options.programs}")
        programs = generate(
            options.programs, seed=options.seed, stream="parallel", split="test", **asdict(options.machine)
        )
        with generation_progress("free running") as progress:
            assessment = assess(model, programs, progress=progress)
        figures = assessment.to_dict()
        shown = None
    result = {"options": as_json(options), **figures}
    if options.output is not None:
        write_json(options.output, result)
    if options.json:
        print(json.dumps(result, indent=2))
    elif shown is not None:
        console.print(shown)
    else:
        print_assessment(assessment)
    return 0


def _files(options: Evaluate, model: BGPT) -> dict[str, Any]:
    batch = max(options.patches_per_batch, model.config.patch_length)
    source = FileSource(options.data, model.config, batch, split="eval", eval_share=1.0)
    with torch.no_grad():
        figures = likelihood_evaluation(list(source.one_pass()))(model)
    return {"files": len(source), "cut_to_fit": source.truncated, **figures}
