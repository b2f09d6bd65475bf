"""`bgpt-fast convert`: converts files to another format with a model that was trained on pairs of both formats."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from bgpt_fast.cli.common import HelpLayout, read_options
from bgpt_fast.cli.generation_options import BASIC_OPTIONS, GenerationOptions, check_extension, generate_folder
from bgpt_fast.cli.model_task import check_conversion
from bgpt_fast.cli.outputs import JOURNAL, REPORT, FileRequest
from bgpt_fast.config import BGPTConfig
from bgpt_fast.data.file_index import FileEntry, SkipReport, find_files
from bgpt_fast.documents import extension_of
from bgpt_fast.files import FileContentError, read_file
from bgpt_fast.generation import Prompt
from bgpt_fast.model import BGPT

LAYOUT = HelpLayout(basic=("sources", "to", "from_", "keep_cut", *BASIC_OPTIONS))


@dataclass(frozen=True, kw_only=True)
class Convert(GenerationOptions):
    """Converts files to another format with a model that was trained on pairs of both formats.

    `bgpt-fast train --data PAIRS --conversion "abc->mid"` trains such a model.

    Writes OUTPUT/NAME.TO for each source, where NAME is its path relative to the folder on the command line, and
    OUTPUT/report.json. A file is complete or absent: if the model did not end it, it is counted and not written.
    A repeated run, with any sources, generates only the missing files.

    Args:
        sources: files and folders; folders are searched.
        to: the extension to convert to, without the dot.
        from_: take only files with this extension from folders; None takes all but those with the extension `to`.
        keep_cut: also write files that were cut off by the context or max_new_bytes.
        too_long: what to do with sources that leave no space for a target in the context: "skip" counts them, "error"
            stops.
    """

    sources: Annotated[tuple[Path, ...], tyro.conf.Positional]
    to: str
    from_: Annotated[str | None, tyro.conf.arg(name="from")] = None
    output: Path = Path("converted")
    temperature: float = 0.0
    keep_cut: bool = False
    too_long: Literal["skip", "error"] = "skip"


OPTIONS = Convert


def run(words: Sequence[str]) -> int:
    options = read_options(Convert, "convert", words, layout=LAYOUT, renamed={"--overlong": "--too-long"})
    if not options.to:
        raise ValueError("--to: expected an extension such as mid, got none")
    check_extension("--to", options.to)
    generate_folder(
        options,
        lambda model: _requests(options, model),
        "the converted files",
        "converting",
        keep_cut=options.keep_cut,
        not_in_plan=("sources", "from_", "too_long"),
    )
    return 0


def _requests(options: Convert, model: BGPT) -> tuple[list[FileRequest], list[dict[str, str]]]:
    """Returns the files to generate, and the skipped sources with the reason."""
    model.config.check_bytes(f"convert: {options.checkpoint}")
    possible: Collection[str] = ()
    if not options.any_model:
        source_extensions = () if options.from_ is None else (options.from_,)
        possible = check_conversion(model.task, options.checkpoint, options.to, source_extensions)
    skips = SkipReport()
    named = {os.fspath(path) for path in options.sources}
    requests: dict[str, FileRequest] = {}
    skipped: list[dict[str, str]] = []
    for file in find_files([os.fspath(path) for path in options.sources], skips):
        extension = extension_of(file.path)
        matches = extension != options.to if options.from_ is None else extension == options.from_
        if not matches and file.path not in named:
            continue
        if possible and extension not in possible:
            skips.add(file.path, f"not .{' or .'.join(possible)}, which the model converts to .{options.to}")
            continue
        name = f"{os.path.splitext(os.fsdecode(file.relative))[0]}.{options.to}"
        if name in (JOURNAL, REPORT):
            raise ValueError(
                f"convert: {file.path!r} would become {name!r}, which the command writes itself; rename the source"
            )
        if name in requests:
            raise ValueError(
                f"convert: {requests[name].source!r} and {file.path!r} would both become {name!r}; convert them into "
                "different folders, or give --from"
            )
        reason = _context_error(file, model.config)
        if reason is None:
            try:
                content = read_file(file.path, file.size)
            except FileContentError:
                reason = "changed while read"
            except OSError as error:
                reason = f"unreadable: {error.strerror}"
        if reason is not None:
            if options.too_long == "error" and reason.startswith("over"):
                raise ValueError(f"{file.path}: {reason}; use a model with a longer context, or --too-long skip")
            skipped.append({"source": file.path, "reason": reason})
            continue
        # The random stream is derived from the name, so that adding sources does not change the other files.
        index = int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest())
        requests[name] = FileRequest(name, Prompt(options.to, b"", index, (extension, content)), file.path)
    skipped += [{"source": name, "reason": reason} for name, reason in skips.reasons.items()]
    if not requests:
        reasons = sorted({item["reason"] for item in skipped})
        raise ValueError(f"convert: expected at least one file to convert, got none; skipped: {reasons or 'none'}")
    return list(requests.values()), skipped


def _context_error(file: FileEntry, config: BGPTConfig) -> str | None:
    """Returns an error message if a source leaves no space for a target of one patch; otherwise None."""
    patches = 1 - -file.size // config.patch_size + 1
    if patches < config.patch_length:
        return None
    return (
        f"over the context: {patches} patches with the target's extension, and the context holds {config.patch_length}"
    )
