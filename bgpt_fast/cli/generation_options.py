"""The options that `bgpt-fast generate` and `bgpt-fast convert` share, and the code that applies them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bgpt_fast.cli.common import as_json, load_model
from bgpt_fast.cli.model_task import check_drafter
from bgpt_fast.cli.outputs import FileRequest, OutputFolder, fingerprint, finish, generate_files
from bgpt_fast.cli.precision import choose_precision, in_plan
from bgpt_fast.generation import Generator
from bgpt_fast.generation.precision import Precision
from bgpt_fast.model import BGPT
from bgpt_fast.models.notagen import MOST_BYTES, RELEASED_SAMPLING, TuneGenerator, is_notagen
from bgpt_fast.terminal import print_text

_NOT_IN_PLAN = (
    "output",
    "max_batch",
    "max_memory_mb",
    "batch_invariant",
    "device",
    "overwrite",
    "any_model",
    "precision",
    "drafter",
)
_OF_BYTES: Mapping[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
_OF_NOTAGEN: Mapping[str, Any] = {**RELEASED_SAMPLING, "max_new_bytes": MOST_BYTES}
"""What options are that are None."""
Skipped = Sequence[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Options of a command that generates a folder of files.

    Args:
        checkpoint: a training run's folder, a folder of weights, a .safetensors or .pth file, or a hub id.
        output: the folder to write; new, empty, or of an earlier run of the same command.
        max_new_bytes: maximum number of new bytes of a file; None means until the context is full, or of a NotaGen,
            whose context moves on, 65,536.
        temperature: 0 always takes the most likely byte; 1 samples from the model's distribution. None means 1, of a
            NotaGen 1.2.
        top_k: sample among the k most likely bytes; 0 means off. None means off, of a NotaGen 9.
        top_p: sample among the most likely bytes with this total probability; 1 means off. None means off, of a
            NotaGen 0.9.
        seed: seed of the sampling; each file has its own random stream.
        overwrite: generate all files again, and replace existing ones.
        precision: precision of the linear layers. "auto" measures whether bfloat16 is faster than float32 here, and
            says so; the same command on the same folder stays with its choice.
        max_batch: number of files generated at once; None means as many as max_memory_mb allows.
        max_memory_mb: maximum memory for the files generated at once, in MB (10⁶ bytes); None means half of the free
            memory, and at most 4,096 files.
        any_model: use the model, and the drafter, even if it was trained for something else.
        drafter: a small model of `bgpt-fast train --drafter-for`, whose guesses the model verifies, many in one pass:
            the same bytes, in less time if few files are generated at once. On the CPU.
        batch_invariant: make each file independent of the rest of the batch on a GPU too; slower. Always so on CPUs.
        device: "auto" uses the GPU if there is one.
    """

    checkpoint: Path
    output: Path = Path("generated")
    max_new_bytes: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    overwrite: bool = False
    any_model: bool = False
    drafter: Path | None = None
    precision: Precision = "auto"
    max_batch: int | None = None
    max_memory_mb: int | None = None
    batch_invariant: bool = False
    device: str = "auto"


BASIC_OPTIONS = ("checkpoint", "output", "max_new_bytes", "temperature", "top_p", "seed", "device")
"""The options of these that --help shows."""


def generate_folder(
    options: GenerationOptions,
    plan_requests: Callable[[BGPT], tuple[Sequence[FileRequest], Skipped]],
    of: str,
    progress: str,
    *,
    keep_cut: bool = True,
    not_in_plan: Collection[str] = (),
) -> None:
    """Generates the files that are missing from an output folder, and writes its report.

    Args:
        options: options of the command.
        plan_requests: returns the files to generate with a model, and the skipped sources with the reason; raises if
            it is a model for something else.
        of: description of the files, for error messages.
        progress: label of the progress bar.
        keep_cut: also write files that the model did not end.
        not_in_plan: more options that do not change the files' content.
    """
    max_memory = None if options.max_memory_mb is None else options.max_memory_mb * 10**6
    model = load_model(options.checkpoint, options.device)
    kind, defaults = (TuneGenerator, _OF_NOTAGEN) if is_notagen(model.config) else (Generator, _OF_BYTES)
    generator = kind(model, max_batch=options.max_batch, max_memory=max_memory, batch_invariant=options.batch_invariant)
    missing = {name: value for name, value in defaults.items() if getattr(options, name) is None}
    options = dataclasses.replace(options, **missing)
    requests, skipped = plan_requests(model)
    digest = fingerprint(model)
    drafter = None
    if options.drafter is not None:
        model.config.check_bytes(f"--drafter: {options.checkpoint}")
        drafter = load_model(options.drafter, options.device)
    if drafter is not None and not options.any_model:
        check_drafter(drafter.task, options.drafter, options.checkpoint, digest)
    earlier = None if options.overwrite else OutputFolder.plan_of(options.output)
    choice = choose_precision(options.precision, earlier, model, min(len(requests), generator.max_batch))
    generator.precision = choice.precision
    values = as_json(options)
    plan: dict[str, Any] = {name: value for name, value in values.items() if name not in (*_NOT_IN_PLAN, *not_in_plan)}
    plan |= {"model": digest, **in_plan(choice)}
    sampling = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p", "seed")}
    # An empty list of prompts only checks the options, before the folder is created.
    generator.generate([], max_new_bytes=options.max_new_bytes, drafter=drafter, **sampling)
    with closing(OutputFolder(options.output, plan, of, overwrite=options.overwrite)) as folder:
        names, seconds = generate_files(
            generator,
            requests,
            folder,
            progress,
            sampling,
            max_new_bytes=options.max_new_bytes,
            keep_cut=keep_cut,
            drafter=drafter,
        )
        finish(folder, requests, names, seconds, {"options": values, "precision": choice.precision}, skipped)
        print_text(choice.text)


def check_extension(option: str, extension: str) -> None:
    """Raises ValueError unless the extension is valid in a file name."""
    if "/" in extension or "\0" in extension:
        raise ValueError(f"{option}: expected an extension such as txt, got {extension!r}")
