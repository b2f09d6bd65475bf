"""The options that `bgpt-fast generate` and `bgpt-fast convert` share, and what they do with them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bgpt_fast.cli.common import as_json, load_model
from bgpt_fast.cli.outputs import FileRequest, OutputFolder, fingerprint, finish, generate_files
from bgpt_fast.config import BGPTConfig
from bgpt_fast.generation import Generator

_NOT_IN_PLAN = ("output", "max_batch", "max_memory_mb", "batch_invariant", "device", "overwrite")
Skipped = Sequence[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Options of a command that generates a folder of files.

    Args:
        checkpoint: a training run's folder, one of weights, a .safetensors or .pth file, or a hub id.
        output: the folder to write; new, empty, or of an earlier run of the same command.
        max_new_bytes: most new bytes of a file; None means until the context is full.
        temperature: 0 takes the most likely byte each time; 1 samples from the model's distribution.
        top_k: sample among the k most likely bytes; 0 means off.
        top_p: sample among the most likely bytes that make up this share; 1 means off.
        seed: of the sampling; each file has a random stream of its own.
        overwrite: generate all files again, and replace existing ones.
        max_batch: files generated at once; None means 256, or as many as max_memory_mb allows.
        max_memory_mb: most memory for the files generated at once, in MB of 10⁶ bytes; None means no limit.
        batch_invariant: on a GPU, too, a file does not depend on the rest of the batch; slower. Always so on CPUs.
        device: "auto" means the GPU where there is one.
    """

    checkpoint: Path
    output: Path = Path("generated")
    max_new_bytes: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    overwrite: bool = False
    max_batch: int | None = None
    max_memory_mb: int | None = None
    batch_invariant: bool = False
    device: str = "auto"


BASIC_OPTIONS = ("checkpoint", "output", "max_new_bytes", "temperature", "top_p", "seed", "device")
"""What --help shows of them."""


def generate_folder(
    options: GenerationOptions,
    plan_requests: Callable[[BGPTConfig], tuple[Sequence[FileRequest], Skipped]],
    of: str,
    progress: str,
    *,
    keep_cut: bool = True,
    not_in_plan: Collection[str] = (),
) -> None:
    """Generates the files of an output folder that it does not have yet, and its report.

    Args:
        options: of the command.
        plan_requests: by the model's sizes, the files to generate, and skipped sources with the reason.
        of: what the files are, for errors.
        progress: for the progress bar.
        keep_cut: also write files that the model did not end.
        not_in_plan: more options that do not change the files' content.
    """
    max_memory = None if options.max_memory_mb is None else options.max_memory_mb * 10**6
    model = load_model(options.checkpoint, options.device)
    generator = Generator(
        model, max_batch=options.max_batch, max_memory=max_memory, batch_invariant=options.batch_invariant
    )
    requests, skipped = plan_requests(generator.model.config)
    values = as_json(options)
    plan: dict[str, Any] = {name: value for name, value in values.items() if name not in (*_NOT_IN_PLAN, *not_in_plan)}
    plan["model"] = fingerprint(model)
    sampling = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p", "seed")}
    # Without prompts this only checks the options, before the folder is made.
    generator.generate([], max_new_bytes=options.max_new_bytes, **sampling)
    with closing(OutputFolder(options.output, plan, of, overwrite=options.overwrite)) as folder:
        names, seconds = generate_files(
            generator, requests, folder, progress, sampling, max_new_bytes=options.max_new_bytes, keep_cut=keep_cut
        )
        finish(folder, requests, names, seconds, {"options": values}, skipped)


def check_extension(option: str, extension: str) -> None:
    """Raises ValueError unless a file's name can have the extension."""
    if "/" in extension or "\0" in extension:
        raise ValueError(f"{option}: expected an extension such as txt, got {extension!r}")
