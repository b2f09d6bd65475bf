"""Folders of generated files: each file complete or absent, what is there already not made again, all of it told."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bgpt_fast.cli.common import console, generation_progress, shown_name, table
from bgpt_fast.files import atomic_write, write_json
from bgpt_fast.folder_lock import LOCK, FolderLock
from bgpt_fast.generation import Generation, Generator, Prompt
from bgpt_fast.model import BGPT

JOURNAL = "made.jsonl"
REPORT = "report.json"
_SHOWN = 20
_PIECE = 4096
Record = dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """A file to make: its path below the output folder, how it begins, and what it is made from, for the report."""

    name: str
    prompt: Prompt
    source: str | None = None


class OutputFolder:
    """A folder that one command fills, and goes on filling when it is run again.

    A journal beside the files says what each came to, a line a file, the command's options first.

    Args:
        path: new, empty, or begun by a command with the same options.
        plan: the options that decide the files' content, JSON-ready.
        of: what the files are, for errors.
        overwrite: whether a folder that holds anything else may be used, and files in the way be replaced.

    Raises:
        FileExistsError: the folder holds something else.
        FolderInUseError: another process works in it.
        OSError: it cannot be made or read.
    """

    def __init__(self, path: Path, plan: Mapping[str, Any], of: str, *, overwrite: bool = False) -> None:
        self.path, self._overwrite = path, overwrite
        self.records: dict[str, Record] = {}
        self._lock = FolderLock(path, of)
        try:
            self._open(plan, of)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets others into the folder."""
        self._lock.release()

    def _open(self, plan: Mapping[str, Any], of: str) -> None:
        path, overwrite = self.path, self._overwrite
        journal = path / JOURNAL
        lines = _whole_lines(journal) if journal.is_file() and not overwrite else []
        # What JSON keeps of the plan: tuples come back as lists.
        told = json.loads(json.dumps(plan))
        if lines and lines[0] == told:
            self.records = {line["path"]: line for line in lines[1:]}
            remove_leftovers(path)
        elif any(entry.name != LOCK for entry in path.iterdir()) and not overwrite:
            begun = ", or the one that the same command began" if not lines else "; this one was made by other options"
            raise FileExistsError(
                f"{path}: expected a new or empty folder for {of}{begun}; choose another --output, remove it, or pass "
                "--overwrite"
            )
        with atomic_write(journal) as file:
            for line in (told, *self.records.values()):
                file.write(json.dumps(line).encode() + b"\n")

    def has(self, name: str, prompt: str) -> bool:
        """Whether a file was made of this prompt (its digest), is there, and has the size it was made with; or was
        found to be cut and left out."""
        record = self.records.get(name)
        if record is None or record.get("prompt") != prompt:
            return False
        if not record["written"]:
            return True
        try:
            return (self.path / name).stat().st_size == record["bytes"]
        except FileNotFoundError:
            return False

    def _made(self, name: str) -> bool:
        record = self.records.get(name)
        return record is not None and self.has(name, record.get("prompt", ""))

    def add(self, name: str, content: bytes, record: Record, *, write: bool) -> None:
        """Writes a file, then its line of the journal.

        Raises:
            FileExistsError: another file is there and may not be replaced.
            OSError: the file could not be written; nothing of it is there.
        """
        target = self.path / name
        if not write and self._made(name):
            target.unlink(missing_ok=True)  # of another prompt, and no longer what this one gives
        if write:
            # A run that was killed between file and journal has left the very same bytes; and one of another prompt,
            # as when a source has changed since, is this command's own.
            is_own = _holds(target, content) or self._made(name)
            if os.path.lexists(target) and not self._overwrite and not is_own:
                raise FileExistsError(
                    f"{target}: another file is there; move it, choose another --output, or pass --overwrite"
                )
            with atomic_write(target) as file:
                file.write(content)
        self.records[name] = {"path": name, "written": write, **record}
        with open(self.path / JOURNAL, "ab") as journal:
            journal.write(json.dumps(self.records[name]).encode() + b"\n")


def make_files(
    generator: Generator,
    wanted: Sequence[Wanted],
    folder: OutputFolder,
    what: str,
    sampling: Mapping[str, Any],
    *,
    max_new_bytes: int | None,
    keep_cut: bool = True,
) -> tuple[list[str], float]:
    """Generates the files that are not there yet.

    Args:
        generator: the engine.
        wanted: the files; their prompts fit the context.
        folder: where they go.
        what: for the progress bar.
        sampling: as `Generator.generate` takes it.
        max_new_bytes: most bytes to add to each prompt.
        keep_cut: whether files that the model did not end are written too.

    Returns:
        The names of the files that were made now, and the seconds it took.
    """
    missing = [file for file in wanted if not folder.has(file.name, digest(file.prompt))]
    made: list[str] = []
    began = time.perf_counter()
    with generation_progress(what) as progress:
        for file, generation in _generations(generator, missing, sampling, max_new_bytes, progress):
            record = {
                "bytes": len(generation.data),
                "new_bytes": len(generation.new_bytes),
                "finished": generation.finished,
                "ended_by": _ended_by(generation, max_new_bytes),
                "prompt": digest(file.prompt),
            }
            if file.source is not None:
                record["source"] = file.source
            folder.add(file.name, generation.data, record, write=keep_cut or generation.finished)
            made.append(file.name)
    return made, time.perf_counter() - began


def _generations(
    generator: Generator,
    files: Sequence[Wanted],
    sampling: Mapping[str, Any],
    max_new_bytes: int | None,
    progress: Callable[[int, int, int], None],
) -> Iterator[tuple[Wanted, Generation]]:
    """Files as they end, in pieces, so that prompts and patches of a hundred thousand are not in memory at once."""
    done = new_bytes = 0
    for start in range(0, len(files), _PIECE):
        part = files[start : start + _PIECE]

        def told(part_done: int, _: int, part_bytes: int, done: int = done, new_bytes: int = new_bytes) -> None:
            progress(done + part_done, len(files), new_bytes + part_bytes)

        prompts = [file.prompt for file in part]
        for place, generation in generator.generate_iter(
            prompts, max_new_bytes=max_new_bytes, progress=told, **sampling
        ):
            new_bytes += len(generation.new_bytes)
            yield part[place], generation
        done += len(part)


def tell(
    folder: OutputFolder,
    wanted: Sequence[Wanted],
    made: Iterable[str],
    seconds: float,
    report: Mapping[str, Any],
    skipped: Sequence[Mapping[str, str]] = (),
) -> None:
    """Writes report.json, lets others into the folder, and prints what the report says: a line a file (the first
    few), then the counts."""
    now = set(made)
    files = [folder.records[file.name] | {"made_now": file.name in now} for file in wanted]
    new_bytes = sum(file["new_bytes"] for file in files if file["made_now"])
    ended: dict[str, int] = {}
    for file in files:
        ended[file["ended_by"]] = ended.get(file["ended_by"], 0) + 1
    figures = {
        "seconds": seconds,
        "new_bytes": new_bytes,
        "bytes_per_second": new_bytes / seconds,
        "made_now": sum(file["written"] and file["made_now"] for file in files),
        "there_already": sum(file["written"] and not file["made_now"] for file in files),
        "left_out": sum(not file["written"] for file in files),
        "ended_by": ended,
        "skipped": list(skipped),
        "files": sorted(files, key=lambda file: file["path"]),
    }
    write_json(folder.path / REPORT, {**report, **figures})
    folder.close()
    rows = [
        [shown_name(file["path"]), f"{file['bytes']:,}", f"{file['new_bytes']:,}", file["ended_by"], _state(file)]
        for file in figures["files"][:_SHOWN]
    ]
    rows += [[shown_name(item["source"]), "–", "–", item["reason"], "skipped"] for item in skipped[:_SHOWN]]
    rest = len(files) + len(skipped) - len(rows)
    title = f"{len(files)} files" + (f", the first {_SHOWN}" if rest > 0 else "")
    console.print(table(title, ["file", "bytes", "new", "ended by", ""], rows))
    old = figures["there_already"]
    there = f"; {old} were there already and were not made again" if old else ""
    left = f"; {figures['left_out']} cut ones left out" if figures["left_out"] else ""
    skips = f"; {len(skipped)} sources skipped" if skipped else ""
    console.print(
        f"{figures['made_now']} files made in {folder.path}/; the model ended {ended.get('model', 0)} of {len(files)}"
        f"{there}{left}{skips}; {new_bytes:,} new bytes at {new_bytes / seconds:,.0f} B/s; see report.json",
        markup=False,
        soft_wrap=True,
    )


def check_extension(option: str, extension: str) -> None:
    """Raises ValueError unless a file's name may end so."""
    if "/" in extension or "\0" in extension:
        raise ValueError(f"{option}: expected an extension such as txt, got {extension!r}")


def digest(prompt: Prompt) -> str:
    """What tells one prompt from another."""
    found = hashlib.blake2b(digest_size=16)
    for part in (prompt.extension, prompt.data, *(prompt.source or ())):
        content = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        found.update(len(content).to_bytes(8, "little") + content)
    return found.hexdigest()


def fingerprint(model: BGPT) -> str:
    """What tells one model from another: a digest of its sizes and weights."""
    found = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return found.hexdigest()


def remove_leftovers(folder: Path) -> None:
    """Removes what a command that was killed while it wrote has left of its files."""
    for leftover in folder.rglob(".*.part"):
        if re.search(r"\.[0-9a-f]{16}\.part$", leftover.name):
            leftover.unlink(missing_ok=True)


def _ended_by(generation: Generation, max_new_bytes: int | None) -> str:
    if generation.finished:
        return "model"
    return "max_new_bytes" if len(generation.new_bytes) == max_new_bytes else "context"


def _state(file: Record) -> str:
    if not file["written"]:
        return "cut, left out"
    return "made" if file["made_now"] else "was there"


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content


def _whole_lines(journal: Path) -> list[Record]:
    """The journal's lines; the last one may have been cut by a crash and is then left out."""
    lines = []
    for line in journal.read_bytes().splitlines(keepends=True):
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
