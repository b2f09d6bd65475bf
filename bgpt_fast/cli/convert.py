"""`bgpt-fast convert`: files of one kind to another, by a model that was trained on pairs of both."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from bgpt_fast.cli.common import as_json, load_model, read_options
from bgpt_fast.cli.outputs import JOURNAL, REPORT, OutputFolder, Wanted, check_extension, fingerprint, make_files, tell
from bgpt_fast.config import BGPTConfig
from bgpt_fast.data.file_index import FileEntry, SkipReport, find_files
from bgpt_fast.documents import extension_of
from bgpt_fast.generation import Generator, Prompt


@dataclass(frozen=True)
class Convert:
    """Converts files to another kind, by a model that was trained on pairs of both kinds.

    Such a model comes from `bgpt-fast train --data PAIRS --conversion "abc->mid"`.

    Writes OUTPUT/NAME.TO for each source, NAME being its path below the folder that was given, and OUTPUT/report.json.
    A file is complete or absent: one that the model did not end is left out and counted. Run again, with more sources
    or fewer, it makes only what is missing.

    Args:
        sources: files and folders; folders are walked.
        to: the extension to convert to, without the dot.
        checkpoint: a training run's folder, one of weights, a .safetensors or .pth file, or a hub id.
        from_: of folders, only files with this extension; None means all but those with the extension `to`.
        output: the folder to write into; new, empty, or begun by a command with the same options.
        max_new_bytes: most bytes of a converted file; None means until the context is full.
        temperature: 0 takes the likeliest byte each time; 1 draws from the model's distribution.
        top_k: draw among the k likeliest bytes; 0 means off.
        top_p: draw among the likeliest bytes that make up this share; 1 means off.
        seed: of the draws; each file's are its own, by its name.
        keep_cut: write files that the context or max_new_bytes cut, too.
        overlong: whether sources that leave no room in the context are skipped and counted, or an error.
        overwrite: make all files, and replace those that are there.
        max_batch: files under way at once; None means 256, or as many as max_memory_mb allows.
        max_memory_mb: most memory for the files under way, in MB of 10⁶ bytes; None means whatever max_batch takes.
        batch_invariant: on a GPU, too, write each file as if it were alone, to the last bit; slower. CPUs always do.
        device: "auto" means the GPU where there is one.
    """

    sources: Annotated[tuple[Path, ...], tyro.conf.Positional]
    to: str
    checkpoint: Path
    from_: Annotated[str | None, tyro.conf.arg(name="from")] = None
    output: Path = Path("converted")
    max_new_bytes: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    keep_cut: bool = False
    overlong: Literal["skip", "error"] = "skip"
    overwrite: bool = False
    max_batch: int | None = None
    max_memory_mb: int | None = None
    batch_invariant: bool = False
    device: str = "auto"


def run(words: Sequence[str]) -> int:
    options = read_options(Convert, "convert", words)
    if not options.to:
        raise ValueError("--to: expected an extension such as mid, got none")
    check_extension("--to", options.to)
    max_memory = None if options.max_memory_mb is None else options.max_memory_mb * 10**6
    model = load_model(options.checkpoint, options.device)
    generator = Generator(
        model, max_batch=options.max_batch, max_memory=max_memory, batch_invariant=options.batch_invariant
    )
    wanted, skipped = _wanted(options, generator.model.config)
    told = as_json(options)
    free = (
        "sources",
        "from_",
        "overlong",
        "output",
        "max_batch",
        "max_memory_mb",
        "batch_invariant",
        "device",
        "overwrite",
    )
    plan = {name: value for name, value in told.items() if name not in free}
    plan["model"] = fingerprint(model)
    sampling = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p", "seed")}
    generator.generate([], max_new_bytes=options.max_new_bytes, **sampling)  # names wrong options before any folder is
    folder = OutputFolder(options.output, plan, "the converted files", overwrite=options.overwrite)
    with contextlib.closing(folder):
        made, seconds = make_files(
            generator,
            wanted,
            folder,
            "converting",
            sampling,
            max_new_bytes=options.max_new_bytes,
            keep_cut=options.keep_cut,
        )
        tell(folder, wanted, made, seconds, {"options": told}, skipped)
    return 0


def _wanted(options: Convert, config: BGPTConfig) -> tuple[list[Wanted], list[dict[str, str]]]:
    """The files to make, and the sources that make none, with the reason."""
    skips = SkipReport()
    named = {os.fspath(path) for path in options.sources}
    wanted: dict[str, Wanted] = {}
    skipped: list[dict[str, str]] = []
    for file in find_files([os.fspath(path) for path in options.sources], skips):
        extension = extension_of(file.path)
        right = extension != options.to if options.from_ is None else extension == options.from_
        if not right and file.path not in named:
            continue
        name = f"{os.path.splitext(os.fsdecode(file.relative))[0]}.{options.to}"
        if name in (JOURNAL, REPORT):
            raise ValueError(
                f"convert: {file.path!r} would become {name!r}, which the command writes itself; rename the source"
            )
        if name in wanted:
            raise ValueError(
                f"convert: {wanted[name].source!r} and {file.path!r} would both become {name!r}; convert them into "
                "different folders, or give --from"
            )
        reason = _overlong(file, config)
        if reason is None:
            try:
                content = Path(file.path).read_bytes()
            except OSError as error:
                reason = f"unreadable: {error.strerror}"
        if reason is not None:
            if options.overlong == "error" and reason.startswith("over"):
                raise ValueError(f"{file.path}: {reason}; use a model with a longer context, or --overlong skip")
            skipped.append({"source": file.path, "reason": reason})
            continue
        # By its name, not its place in the list: more sources beside it change nothing.
        index = int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest())
        wanted[name] = Wanted(name, Prompt(options.to, b"", index, (extension, content)), file.path)
    skipped += [{"source": name, "reason": reason} for name, reason in skips.reasons.items()]
    if not wanted:
        reasons = sorted({item["reason"] for item in skipped})
        raise ValueError(f"convert: expected at least one file to convert, got none; skipped: {reasons or 'none'}")
    return list(wanted.values()), skipped


def _overlong(file: FileEntry, config: BGPTConfig) -> str | None:
    """Why a source leaves no room for a target of one patch, or None."""
    patches = 1 - -file.size // config.patch_size + 1
    if patches < config.patch_length:
        return None
    return (
        f"over the context: {patches} patches with the target's extension, and the context holds {config.patch_length}"
    )
