"""`bgpt-fast generate`: continue files, or make new ones from an extension alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from bgpt_fast.cli.common import as_json, console, generation_progress, load_model, new_folder, read_options
from bgpt_fast.documents import extension_of
from bgpt_fast.files import atomic_write, write_json
from bgpt_fast.generation import Generator, Prompt


@dataclass(frozen=True)
class Generate:
    """Continues files, or makes new ones from an extension alone.

    Writes OUTPUT/00000.EXT, …, each complete or absent, and OUTPUT/report.json; OUTPUT must be new or empty.

    Args:
        prompts: files to continue; none means new files.
        checkpoint: a folder of weights, a .safetensors or .pth file, or a hub id.
        ext: the new files' extension, without the dot; a prompt brings its own.
        count: how many files to make of each prompt (or in all, without prompts).
        output: the folder to write into.
        max_new_bytes: most bytes to add to a file; None means until the context is full.
        temperature: 0 takes the likeliest byte each time; 1 draws from the model's distribution.
        top_k: draw among the k likeliest bytes; 0 means off.
        top_p: draw among the likeliest bytes that make up this share; 1 means off.
        seed: of the draws; file i draws from stream i, whatever else is made with it.
        max_batch: files under way at once.
        device: "auto" means the GPU where there is one.
    """

    checkpoint: Path
    prompts: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    ext: str = "bin"
    count: int = 1
    output: Path = Path("generated")
    max_new_bytes: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    max_batch: int = 256
    device: str = "auto"


def run(words: Sequence[str]) -> int:
    options = read_options(Generate, "generate", words)
    if options.count < 1:
        raise ValueError(f"--count: expected at least 1, got {options.count}")
    if "/" in options.ext or "\0" in options.ext:
        raise ValueError(f"--ext: expected an extension such as txt, got {options.ext!r}")
    starts = [(extension_of(path), path.read_bytes()) for path in options.prompts] or [(options.ext, b"")]
    prompts = [Prompt(extension, data) for extension, data in starts for _ in range(options.count)]
    generator = Generator(load_model(options.checkpoint, options.device), max_batch=options.max_batch)
    new_folder(options.output, "the generated files")
    files: list[dict[str, Any]] = []
    began = time.perf_counter()
    with generation_progress("generating") as progress:
        finished_files = generator.generate_iter(
            prompts,
            max_new_bytes=options.max_new_bytes,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            seed=options.seed,
            progress=progress,
        )
        for place, generation in finished_files:
            extension = prompts[place].extension
            path = options.output / (f"{place:05d}.{extension}" if extension else f"{place:05d}")
            with atomic_write(path) as file:
                file.write(generation.data)
            files.append(
                {
                    "path": path.name,
                    "bytes": len(generation.data),
                    "new_bytes": len(generation.new_bytes),
                    "finished": generation.finished,
                }
            )
    seconds = time.perf_counter() - began
    new_bytes = sum(file["new_bytes"] for file in files)
    report = {
        "options": as_json(options),
        "seconds": seconds,
        "bytes_per_second": new_bytes / seconds,
        "files": sorted(files, key=lambda file: file["path"]),
    }
    write_json(options.output / "report.json", report)
    ended = sum(file["finished"] for file in files)
    console.print(
        f"{len(files)} files in {options.output}/, {ended} of them ended by the model; "
        f"{new_bytes:,} new bytes at {new_bytes / seconds:,.0f} B/s; see report.json"
    )
    return 0
