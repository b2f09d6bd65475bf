"""Every command of `bgpt-fast` on tiny inputs, in a folder whose name is markup, a format, a formula and a pattern."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from bgpt_fast import BGPT, BGPTForClassification
from bgpt_fast.tasks import cpu_states
from support.cli import CONFIG, MACHINE

NAME = "[red] [plot] :warning: {0} $x_$ *.[a-z]* %s é→\udcff"
"""A file name: of rich's markup and emoji, str.format, matplotlib's formulas, glob, printf, and not UTF-8."""
FOLDER = f"{NAME} ["
"""A folder's name; with that of a folder in it, the path has rich's closing tag "[/x]"."""
_MODEL = ["--model.hidden-size", "16", "--model.patch-num-layers", "1", "--model.num-heads", "2"]
_TRAINING = ["--training.steps", "2", "--training.max-minutes", "0", "--training.schedule-by", "steps"]
_TINY = [*_MODEL, "--model.byte-num-layers", "1", "--model.byte-num-heads", "2", *_TRAINING, "--training.device", "cpu"]
_FILES = ["--model.patch-length", "16", "--patches-per-batch", "32", "--eval-share", "0.3"]


def write_inputs(folder: Path) -> None:
    """Writes models, files, pairs, labelled files, programs and options below a folder."""
    torch.manual_seed(0)
    BGPT(CONFIG).save_pretrained(folder / "model")
    BGPTForClassification(CONFIG, {f"{NAME}.txt": 0, "b.txt": 1}).save_pretrained(folder / "classifier")
    for index in range(20):
        _write(folder / f"x]files/{NAME}{index}.txt", b"hello world " * 3)
        for extension in ("in", "out"):
            _write(folder / f"x]pairs/{NAME}{index}.{extension}", b"abc" * (index % 3 + 1))
        _write(folder / f"x]labelled/{NAME}_{index}.txt", b"hello" * (index % 5 + 1))
        _write(folder / f"x]labelled/b_{index}.txt", b"world" * (index % 5 + 1))
    _write(folder / f"x]tunes/{NAME}.abc", b"X:1\nT:One\nM:4/4\nL:1/8\nK:C\nCDEF GABc|\n")
    _write(folder / f"x]programs/{NAME}.asm", b"LOADI 7\nHLT\n")
    cpu_states.write_folder(cpu_states.generate(3, num_registers=2, memory_size=16, max_program=4), folder / "traces")
    _write(folder / "config.py", b"PATCH_SIZE = 16\nTRAIN_FOLDERS = ['a']\nUNKNOWN = 1\n")
    _write(folder / "options.json", b'{"programs_per_batch": 4}')


def command_lines(folder: Path, output: Path) -> dict[str, list[str]]:
    """The words of each command line by a name; `folder` is that of `write_inputs`."""
    model, out = ["--checkpoint", str(folder / "model")], ["--output", str(output)]
    files, pairs, labelled = (str(folder / name) for name in ("x]files", "x]pairs", "x]labelled"))
    programs = ["--programs-per-batch", "4", "--eval-programs", "5", "--model.patch-length", "16", *MACHINE]
    plots = ["--plots", str(output / NAME)]
    json = ["--output", str(output / "figures.json"), "--device", "cpu"]
    return {
        "train": ["train", "--config", str(folder / "options.json"), *out, *programs, *_TINY],
        "train-files": ["train", "--data", files, *out, *_FILES, *_TINY],
        "train-pairs": ["train", "--data", pairs, "--conversion", "in->out", *out, *_FILES, *_TINY],
        "train-classes": ["train", "--data", labelled, "--task", "classification", *out, *_FILES, *_TINY],
        "generate": ["generate", *model, str(folder / f"x]files/{NAME}0.txt"), *out, "--device", "cpu"],
        "convert": ["convert", *model, pairs, "--from", "in", "--to", "out", "--keep-cut", *out, "--device", "cpu"],
        "simulate": ["simulate", *model, str(folder / f"x]programs/{NAME}.asm"), *out, *MACHINE, "--device", "cpu"],
        "simulate-traces": ["simulate", *model, str(folder / "traces"), *out, *MACHINE, "--device", "cpu"],
        "evaluate": ["evaluate", *model, files, *plots, *json],
        "evaluate-pairs": ["evaluate", *model, pairs, "--conversion", "in->out", *json],
        "evaluate-generated": ["evaluate", "--generated", files, *json],
        "evaluate-programs": ["evaluate", *model, "--programs", "3", *MACHINE, *json],
        "classify": ["classify", str(folder / "classifier"), labelled, *plots, *json],
        "export": ["export", str(folder / "classifier"), "--hf", *out],
        "data media": ["data", "media", files, *out, "--workers", "1"],
        "data music": ["data", "music", str(folder / "x]tunes"), *out, "--workers", "1"],
        "data cpu-states": ["data", "cpu-states", "--train", "5", "--test", "3", *out, *MACHINE],
        "data check": ["data", "check", files, "--output", str(output / "figures.json")],
        "data gallery": ["data", "check", files, "--truth", files, "--gallery", str(output / "page.html")],
        "data baselines": ["data", "baselines", labelled, "--train", labelled, *json[:2]],
        "migrate-config": ["migrate-config", str(folder / "config.py"), "--output", str(output / "options.yaml")],
        "env": ["env"],
    }


def _write(path: Path, content: bytes) -> None:
    os.makedirs(path.parent, exist_ok=True)
    path.write_bytes(content)
