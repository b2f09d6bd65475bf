"""Folders of generated files: each file is complete or absent, and existing ones are not generated again."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bgpt_fast.cli.common import GenerationProgress, generation_progress, print_skipped, table
from bgpt_fast.files import atomic_write, naming, write_json
from bgpt_fast.folder_lock import LOCK, FolderLock
from bgpt_fast.generation import Generation, Generator, Prompt
from bgpt_fast.journal import Record, content_digest, has_digest, parse_journal, read_bytes
from bgpt_fast.model import BGPT
from bgpt_fast.terminal import print_table, print_text

JOURNAL = "made.jsonl"
REPORT = "report.json"
_LISTED = 20
_CHUNK = 4096
_FIELDS = {"path": str, "written": bool, "bytes": int, "new_bytes": int, "ended_by": str}


@dataclass(frozen=True)
class FileRequest:
    """A file to generate.

    Args:
        name: its path relative to the output folder.
        prompt: what the model continues.
        source: the file that the prompt comes from, for the report.
    """

    name: str
    prompt: Prompt
    source: str | None = None


class OutputFolder:
    """A folder of files that one command generates; a repeated command adds the missing ones.

    A journal in the folder has one line with the command's options and one line for each file.

    Args:
        path: new, empty, or of an earlier run with the same options.
        plan: the options that decide the files' content, JSON-ready.
        of: description of the files, for error messages.
        overwrite: accept a folder that is not empty, and replace its files.

    Raises:
        FileExistsError: the folder has other contents.
        FileContentError: a line of its journal is no record.
        FolderInUseError: another process uses it.
        OSError: it cannot be created or read.
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

    @staticmethod
    def plan_of(path: Path) -> Record | None:
        """The options of the run that an output folder is of; None without one.

        Raises:
            FileContentError: a line of its journal is no record.
        """
        journal = path / JOURNAL
        return parse_journal(read_bytes(journal), os.fspath(journal), _FIELDS)[0]

    def close(self) -> None:
        """Releases the folder for other processes."""
        self._lock.release()

    def _open(self, plan: Mapping[str, Any], of: str) -> None:
        path, overwrite = self.path, self._overwrite
        journal = path / JOURNAL
        content = b"" if overwrite else read_bytes(journal)
        plan = json.loads(json.dumps(plan))  # the form in which it is read back: tuples become lists
        first, records = parse_journal(content, os.fspath(journal), _FIELDS)
        if first == plan:
            self.records = {record["path"]: record for record in records}
            remove_leftovers(path)
        elif any(entry.name != LOCK for entry in path.iterdir()) and not overwrite:
            other = ", or that of an earlier run" if first is None else "; this one was made by other options"
            raise FileExistsError(
                f"{path}: expected a new or empty folder for {of}{other}; choose another --output, remove it, or pass "
                "--overwrite"
            )
        with atomic_write(journal) as file:
            for line in (plan, *self.records.values()):
                file.write(json.dumps(line).encode() + b"\n")

    def has(self, name: str, prompt: str) -> bool:
        """Whether the file of this prompt digest is there as it was recorded, or was cut off and not written.

        Raises:
            FileExistsError: the file was changed since.
        """
        record = self.records.get(name)
        if record is None or record.get("prompt") != prompt:
            return False
        if not record["written"] or self._is_as_recorded(name):
            return True
        if os.path.lexists(self.path / name) and not self._overwrite:
            raise FileExistsError(
                f"{self.path / name}: expected the file as it was generated, got one that was changed since; move or "
                "delete it, and it is generated again, or pass --overwrite"
            )
        return False

    def _is_as_recorded(self, name: str) -> bool:
        record = self.records.get(name)
        if record is None or not record["written"]:
            return False
        target = self.path / name
        # Journals of earlier versions have no digests.
        return has_digest(target, record.get("digest", "")) and target.stat().st_size == record["bytes"]

    def add(self, name: str, content: bytes, record: Record, *, write: bool) -> None:
        """Writes a file, then its record in the journal.

        Raises:
            FileExistsError: the path is another file, which is not replaced.
            OSError: the file cannot be written; no part of it is left.
        """
        target = self.path / name
        if not write and self._is_as_recorded(name):
            target.unlink(missing_ok=True)  # it was generated from an earlier prompt
        if write:
            # The file is this command's if it has equal bytes (a run was killed before it wrote the journal), or if the
            # journal records it for another prompt (the source has changed since).
            is_own = _holds(target, content) or self._is_as_recorded(name)
            if os.path.lexists(target) and not self._overwrite and not is_own:
                raise FileExistsError(
                    f"{target}: the path holds another file; move it, choose another --output, or pass --overwrite"
                )
            with atomic_write(target) as file:
                file.write(content)
        self.records[name] = {"path": name, "written": write, "digest": content_digest(content), **record}
        with naming(self.path / JOURNAL), open(self.path / JOURNAL, "ab") as journal:
            journal.write(json.dumps(self.records[name]).encode() + b"\n")


def generate_files(
    generator: Generator,
    requests: Sequence[FileRequest],
    folder: OutputFolder,
    progress: str,
    sampling: Mapping[str, Any],
    *,
    max_new_bytes: int | None,
    keep_cut: bool = True,
    drafter: BGPT | None = None,
) -> tuple[list[str], float]:
    """Generates the files that the folder does not have yet.

    Args:
        generator: the engine.
        requests: the files; their prompts must fit the context.
        folder: where to write them.
        progress: label of the progress bar.
        sampling: as `Generator.generate` takes it.
        max_new_bytes: maximum number of bytes to add to each prompt.
        keep_cut: also write files that the model did not end.
        drafter: as `Generator.generate` takes it.

    Returns:
        The names of the new files, and the elapsed seconds.
    """
    missing = [request for request in requests if not folder.has(request.name, digest(request.prompt))]
    names: list[str] = []
    start = time.perf_counter()
    with generation_progress(progress) as update:
        arguments = {**sampling, "max_new_bytes": max_new_bytes, "drafter": drafter}
        for request, generation in _generations(generator, missing, arguments, update):
            record = {
                "bytes": len(generation.data),
                "new_bytes": len(generation.new_bytes),
                "finished": generation.finished,
                "ended_by": _ended_by(generation, max_new_bytes),
                "prompt": digest(request.prompt),
            }
            if drafter is not None:
                record |= {"drafted": generation.drafted, "accepted": generation.accepted}
            if request.source is not None:
                record["source"] = request.source
            folder.add(request.name, generation.data, record, write=keep_cut or generation.finished)
            names.append(request.name)
    return names, time.perf_counter() - start


def _generations(
    generator: Generator,
    requests: Sequence[FileRequest],
    arguments: Mapping[str, Any],
    progress: GenerationProgress,
) -> Iterator[tuple[FileRequest, Generation]]:
    """Yields files as they end; works in chunks, so that the prompts of 100,000 files are not in memory at once."""
    done = new_bytes = 0
    for start in range(0, len(requests), _CHUNK):
        chunk = requests[start : start + _CHUNK]

        def update(chunk_done: int, _: int, chunk_bytes: int, done: int = done, new_bytes: int = new_bytes) -> None:
            progress(done + chunk_done, len(requests), new_bytes + chunk_bytes)

        prompts = [request.prompt for request in chunk]
        for place, generation in generator.generate_iter(prompts, progress=update, **arguments):
            new_bytes += len(generation.new_bytes)
            yield chunk[place], generation
        done += len(chunk)


def finish(
    folder: OutputFolder,
    requests: Sequence[FileRequest],
    new_names: Iterable[str],
    seconds: float,
    report: Mapping[str, Any],
    skipped: Sequence[Mapping[str, str]] = (),
) -> None:
    """Writes report.json, releases the folder, and prints a summary.

    Args:
        folder: must have a record for each request.
        requests: all files of this command.
        new_names: the files that were generated now.
        seconds: elapsed time.
        report: further entries of report.json.
        skipped: sources without a file, with the reason.
    """
    new = set(new_names)
    files = [folder.records[request.name] | {"made_now": request.name in new} for request in requests]
    new_bytes = sum(file["new_bytes"] for file in files if file["made_now"])
    ended_by = Counter(file["ended_by"] for file in files)
    figures = {
        "seconds": seconds,
        "new_bytes": new_bytes,
        "bytes_per_second": new_bytes / seconds,
        "made_now": sum(file["written"] and file["made_now"] for file in files),
        "there_already": sum(file["written"] and not file["made_now"] for file in files),
        "left_out": sum(not file["written"] for file in files),
        "ended_by": dict(ended_by),
        "skipped": list(skipped),
        "files": sorted(files, key=lambda file: file["path"]),
    }
    write_json(folder.path / REPORT, {**report, **figures})
    folder.close()
    rows = [
        [file["path"], f"{file['bytes']:,}", f"{file['new_bytes']:,}", file["ended_by"], _state(file)]
        for file in figures["files"][:_LISTED]
    ]
    title = f"{len(files)} files" + (f", the first {_LISTED}" if len(files) > len(rows) else "")
    print_table(table(title, ["file", "bytes", "new", "ended by", ""], rows))
    reasons = Counter(item["reason"] for item in skipped)
    print_skipped(reasons, [f"{item['reason']}: {item['source']!r}" for item in skipped], "sources skipped")
    drafted, accepted = (
        sum(file.get(name, 0) for file in files if file["made_now"]) for name in ("drafted", "accepted")
    )
    existing = figures["there_already"]
    notes = f"; {existing} existed already and were not generated again" if existing else ""
    notes += f"; {figures['left_out']} cut ones left out" if figures["left_out"] else ""
    notes += f"; {len(skipped)} sources skipped" if skipped else ""
    notes += f"; the drafter guessed {drafted:,} bytes, {accepted:,} of them right" if drafted else ""
    state = "" if new else "complete: "
    print_text(
        f"{state}{figures['made_now']} files generated in {folder.path}/; the model ended {ended_by['model']} of "
        f"{len(files)}{notes}; {new_bytes:,} new bytes at {new_bytes / seconds:,.0f} B/s; see report.json"
    )


def digest(prompt: Prompt) -> str:
    """Returns a digest of a prompt."""
    result = hashlib.blake2b(digest_size=16)
    for part in (prompt.extension, prompt.data, *(prompt.source or ())):
        content = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        result.update(len(content).to_bytes(8, "little") + content)
    return result.hexdigest()


def fingerprint(model: BGPT) -> str:
    """Returns a digest of a model's sizes and weights."""
    result = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        result.update(f"{name} {tensor.dtype}".encode())
        result.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return result.hexdigest()


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files of a command that was killed while writing."""
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
    return "new" if file["made_now"] else "existed"


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content
