"""`bgpt-fast generate`: continues files, or generates new ones given only an extension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bgpt_fast.cli.common import HelpLayout, check_ranges, read_options
from bgpt_fast.cli.generation_options import BASIC_OPTIONS, GenerationOptions, check_extension, generate_folder
from bgpt_fast.cli.model_task import check_generation
from bgpt_fast.cli.outputs import FileRequest
from bgpt_fast.documents import extension_of
from bgpt_fast.files import open_regular
from bgpt_fast.generation import Prompt
from bgpt_fast.generation.scoring import context_bytes
from bgpt_fast.model import BGPT
from bgpt_fast.models.notagen import is_notagen, prompt_context

_MOST_FILES = 1_000_000
LAYOUT = HelpLayout(basic=("prompts", "ext", "count", *BASIC_OPTIONS))


@dataclass(frozen=True, kw_only=True)
class Generate(GenerationOptions):
    """Continues files, or generates new ones given only an extension.

    Writes OUTPUT/00000.EXT, …, each complete or absent, and OUTPUT/report.json with the reason why each file ended. A
    repeated run with the same options generates only the missing files.

    Args:
        prompts: files to continue; if empty, generates new files.
        prompt: one more file to continue, as an option.
        ext: extension of the new files, without the dot; None means the prompt's extension, or without prompts that of
            the model's training files if they have only one, abc of a NotaGen, else bin.
        count: how many files to generate from each prompt (or in total, without prompts).
    """

    prompts: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    prompt: Path | None = None
    ext: str | None = None
    count: int = 1


OPTIONS = Generate


def run(words: Sequence[str]) -> int:
    options = read_options(Generate, "generate", words, layout=LAYOUT)
    check_ranges(options, count=(1, _MOST_FILES))
    check_extension("--ext", options.ext or "")
    generate_folder(options, lambda model: (_requests(options, model), ()), "the generated files", "generating")
    return 0


def _requests(options: Generate, model: BGPT) -> list[FileRequest]:
    capacity = context_bytes(model.config)
    extensions = () if model.task is None else model.task.extensions
    tunes = is_notagen(model.config)
    default = extensions[0] if len(extensions) == 1 else "abc" if tunes else "bin"
    paths: list[Path | None] = [*options.prompts, *([options.prompt] if options.prompt else [])]
    requests: list[FileRequest] = []
    for path in paths or [None]:
        data = b""
        if path is not None and path.is_dir():
            raise IsADirectoryError(
                f"{path}: expected a file to continue, got a folder; name its files, or give --ext alone"
            )
        if path is not None:
            with open_regular(path) as file:
                data = file.read(capacity)
            if len(data) == capacity:
                raise ValueError(
                    f"{path}: expected a prompt of fewer than {capacity} bytes, the context of the model, got "
                    f"{path.stat().st_size}; cut the file, or use a model with a longer context"
                )
            if tunes:
                prompt_context(str(path), data.decode("latin-1"), model.config)
        extension = options.ext if options.ext is not None else default if path is None else extension_of(path)
        for _ in range(options.count):
            index = len(requests)
            name = f"{index:05d}.{extension}" if extension else f"{index:05d}"
            requests.append(FileRequest(name, Prompt(extension, data, index), None if path is None else str(path)))
    if not options.any_model:
        check_generation(model.task, options.checkpoint, {request.prompt.extension for request in requests})
    return requests
