"""`bgpt-fast generate`: continue files, or make new ones from an extension alone."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bgpt_fast.cli.common import as_json, load_model, read_options
from bgpt_fast.cli.outputs import OutputFolder, Wanted, check_extension, fingerprint, make_files, tell
from bgpt_fast.documents import extension_of
from bgpt_fast.generation import Generator, Prompt
from bgpt_fast.generation.scoring import context_bytes


@dataclass(frozen=True)
class Generate:
    """Continues files, or makes new ones from an extension alone.

    Writes OUTPUT/00000.EXT, …, each complete or absent, and OUTPUT/report.json, which says of each why it ended. Run
    again with the same options it makes only what is missing.

    Args:
        prompts: files to continue; none means new files.
        checkpoint: a training run's folder, one of weights, a .safetensors or .pth file, or a hub id.
        prompt: one more file to continue, as an option.
        ext: the new files' extension, without the dot; None means that of the prompt, and bin without prompts.
        count: how many files to make of each prompt (or in all, without prompts).
        output: the folder to write into; new, empty, or begun by the same command.
        max_new_bytes: most bytes to add to a file; None means until the context is full.
        temperature: 0 takes the likeliest byte each time; 1 draws from the model's distribution.
        top_k: draw among the k likeliest bytes; 0 means off.
        top_p: draw among the likeliest bytes that make up this share; 1 means off.
        seed: of the draws; file i draws from stream i, whatever else is made with it.
        overwrite: make all files, and replace those that are there.
        max_batch: files under way at once; None means 256, or as many as max_memory_mb allows.
        max_memory_mb: most memory for the files under way, in MB of 10⁶ bytes; None means whatever max_batch takes.
        batch_invariant: on a GPU, too, write each file as if it were alone, to the last bit; slower. CPUs always do.
        device: "auto" means the GPU where there is one.
    """

    checkpoint: Path
    prompts: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    prompt: Path | None = None
    ext: str | None = None
    count: int = 1
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


def run(words: Sequence[str]) -> int:
    options = read_options(Generate, "generate", words)
    if options.count < 1:
        raise ValueError(f"--count: expected at least 1, got {options.count}")
    check_extension("--ext", options.ext or "")
    max_memory = None if options.max_memory_mb is None else options.max_memory_mb * 10**6
    model = load_model(options.checkpoint, options.device)
    generator = Generator(
        model, max_batch=options.max_batch, max_memory=max_memory, batch_invariant=options.batch_invariant
    )
    wanted = _wanted(options, context_bytes(generator.model.config))
    told = as_json(options)
    plan = {
        name: value
        for name, value in told.items()
        if name not in ("output", "max_batch", "max_memory_mb", "batch_invariant", "device", "overwrite")
    }
    plan["model"] = fingerprint(model)
    sampling = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p", "seed")}
    generator.generate([], max_new_bytes=options.max_new_bytes, **sampling)  # names wrong options before any folder is
    folder = OutputFolder(options.output, plan, "the generated files", overwrite=options.overwrite)
    with contextlib.closing(folder):
        made, seconds = make_files(
            generator, wanted, folder, "generating", sampling, max_new_bytes=options.max_new_bytes
        )
        tell(folder, wanted, made, seconds, {"options": told})
    return 0


def _wanted(options: Generate, room: int) -> list[Wanted]:
    paths: list[Path | None] = [*options.prompts, *([options.prompt] if options.prompt else [])]
    wanted: list[Wanted] = []
    for path in paths or [None]:
        data = b""
        if path is not None:
            with open(path, "rb") as file:
                data = file.read(room)
            if len(data) == room:
                raise ValueError(
                    f"{path}: expected a prompt of fewer than {room} bytes, the context of the model, got "
                    f"{path.stat().st_size}; cut the file, or use a model with a longer context"
                )
        extension = options.ext if options.ext is not None else "bin" if path is None else extension_of(path)
        for _ in range(options.count):
            index = len(wanted)
            name = f"{index:05d}.{extension}" if extension else f"{index:05d}"
            wanted.append(Wanted(name, Prompt(extension, data, index), None if path is None else str(path)))
    return wanted
