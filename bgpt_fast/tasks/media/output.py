"""The output folder of a data set, which is written source by source, resumed after a stop, and repaired."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from bgpt_fast.data import DataError
from bgpt_fast.data.file_index import FileEntry, Paths, SkipReport, as_roots, find_files
from bgpt_fast.files import fsync_folder, naming
from bgpt_fast.journal import Fields, Record, has_digest, parse_journal

JOURNAL = "sources.jsonl"
_PARTS = ".parts"
_SECONDS_BETWEEN_SAVES = 5.0

_FIELDS: Fields = {"key": str, "files": (dict, list), "reason": str, "detail": str}


def find_outside(paths: Paths, output: Path, skips: SkipReport) -> list[FileEntry]:
    """As `find_files`, without the files of the output folder, which may be inside an input folder.

    Raises:
        DataError: no such path, or a path inside the output folder.
    """
    below = os.path.join(os.path.realpath(output), "")
    for root in as_roots(paths):
        if os.path.join(os.path.realpath(root), "").startswith(below):
            raise DataError(f"{root!r}: expected inputs outside of the output folder {output}; choose another output")
    files = find_files(as_roots(paths), skips)
    return [file for file in files if not os.path.realpath(file.path).startswith(below)]


class OutputFolder:
    """A folder with a journal: one JSON line for each source, with its outputs or the reason why it has none.

    A source is added to the journal only after its files are durable, so a run that was stopped at any time resumes
    with the missing sources. A source whose files were deleted counts as missing. Files that are not in the journal,
    or were changed since, are never replaced. Use it as a context manager.

    Args:
        path: a new or empty folder, or that of an earlier run.
        kind: kind of data set, for errors and the journal.
        options: all options that affect a source's outputs, JSON-ready.
        fields: further fields of a record with their types; each has "key", "reason", "detail", and "files", the
            digests of its files (`content_digest`) by name.

    Attributes:
        records: the journal's records by their "key", from earlier runs and this one.
        incomplete: the records of earlier runs of which a file is missing, by their "key"; not in `records`.

    Raises:
        FileExistsError: the folder has other contents, data of other options, or a file that was changed since.
        FileContentError: a line of its journal is no record.
        BlockingIOError: another process writes to it.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, kind: str, options: Mapping[str, Any], fields: Fields) -> None:
        self.path = path
        self.records: dict[str, Record] = {}
        self.incomplete: dict[str, Record] = {}
        self._unsaved: list[Record] = []
        self._saved_at = time.monotonic()
        journal = path / JOURNAL
        path.mkdir(parents=True, exist_ok=True)
        if not journal.exists() and any(entry.name != _PARTS for entry in path.iterdir()):
            raise FileExistsError(f"{path}: expected a new or empty folder, or one of an earlier run; choose another")
        self._journal = open(journal, "a+b")  # noqa: SIM115 (closed by __exit__)
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read({"kind": kind, "options": dict(options)}, {**_FIELDS, **fields})
            self._check_files()
        except BlockingIOError as error:
            self._journal.close()
            raise BlockingIOError(f"{path}: another run writes there; wait until it ends") from error
        except BaseException:
            self._journal.close()
            raise
        shutil.rmtree(path / _PARTS, ignore_errors=True)
        (path / _PARTS).mkdir()

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.save()
        finally:
            self._journal.close()
            shutil.rmtree(self.path / _PARTS, ignore_errors=True)

    def add(self, record: Record, files: Sequence[tuple[str, bytes]]) -> None:
        """Writes a source's files and its record; both are durable after `save`.

        Args:
            record: JSON-ready, with a "key".
            files: relative path and content of each.

        Raises:
            FileExistsError: a file of that name has different content.
        """
        for relative, content in files:
            self._place(relative, content)
        self.records[record["key"]] = record
        self._unsaved.append(record)
        if time.monotonic() - self._saved_at > _SECONDS_BETWEEN_SAVES:
            self.save()

    def save(self) -> None:
        """Makes all files and records durable."""
        if self._unsaved:
            os.sync()  # once for many files: an fsync of each would take longer than decoding it
            # ASCII, which preserves names that are not UTF-8.
            lines = "".join(json.dumps(record) + "\n" for record in self._unsaved)
            with naming(self.path / JOURNAL):
                self._journal.write(lines.encode())
                self._journal.flush()
                os.fsync(self._journal.fileno())
            self._unsaved.clear()
        self._saved_at = time.monotonic()

    def _place(self, relative: str, content: bytes) -> None:
        target = self.path / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        # After a crash of the machine, a file that was not durable yet can be empty.
        if target.exists() and target.stat().st_size and target.read_bytes() != content:
            raise FileExistsError(f"{target}: the path holds a file that no run here wrote; move it")
        part = self.path / _PARTS / "file"
        with naming(target):
            part.write_bytes(content)
        os.replace(part, target)

    def _read(self, head: Record, fields: Fields) -> None:
        self._journal.seek(0)
        content = self._journal.read()
        complete = content.rfind(b"\n") + 1
        if complete < len(content):  # by a crash during the last write
            self._journal.truncate(complete)
        first, records = parse_journal(content[:complete], os.fspath(self.path / JOURNAL), fields)
        if first is None:
            self._journal.write((json.dumps(head) + "\n").encode())
            self._journal.flush()
            fsync_folder(self.path)
        elif first != json.loads(json.dumps(head)):
            raise FileExistsError(
                f"{self.path}: expected an empty folder or a run with the same options, got one made with "
                f"{first!s:.400}; choose another --output"
            )
        for record in records:
            if isinstance(record["files"], list):  # earlier versions of `data music` wrote no digests
                record["files"] = dict.fromkeys(record["files"], "")
            self.records[record["key"]] = record

    def _check_files(self) -> None:
        for key, record in list(self.records.items()):
            for name, digest in record["files"].items():
                target = self.path / name
                if has_digest(target, digest):
                    continue
                if os.path.lexists(target):
                    raise FileExistsError(
                        f"{target}: expected the file as an earlier run wrote it, got one that was changed since; move "
                        "or delete it, and it is made again"
                    )
                self.incomplete[key] = record
        for key in self.incomplete:
            del self.records[key]
