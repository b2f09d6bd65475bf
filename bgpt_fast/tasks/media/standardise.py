"""Folders of media as a data set of standard files: train and test, labelled, without leakage."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bgpt_fast.data import DataError
from bgpt_fast.data.file_index import FileEntry, Paths, SkipReport, as_roots
from bgpt_fast.files import write_json
from bgpt_fast.tasks.media.names import Plan, Side, check_labels, digest_of
from bgpt_fast.tasks.media.output import OutputFolder, Record, find_outside
from bgpt_fast.tasks.media.pool import ordered_map
from bgpt_fast.tasks.media.source import Made, MediaOptions, read_and_make

Progress = Callable[[int, int], None]
REPORT = "report.json"


@dataclass(frozen=True)
class MediaReport:
    """What was made and what was not.

    Args:
        sources: files found.
        used: sources of which something was made.
        files: standard files by "side/kind", as "train/image".
        labels: standard files by label and side; {} where nothing has a label.
        skipped: sources, or clips and documents of them, that were left out, by reason.
        first_skipped: a few of them as "reason: path (detail)".
    """

    sources: int
    used: int
    files: dict[str, int]
    labels: dict[str, dict[str, int]]
    skipped: dict[str, int]
    first_skipped: list[str]

    def to_dict(self) -> dict[str, Any]:
        """All figures, JSON-ready."""
        return asdict(self)


def standardise(
    inputs: Paths,
    output: str | os.PathLike[str],
    options: MediaOptions | None = None,
    plan: Plan | None = None,
    *,
    test_inputs: Paths = (),
    workers: int = 0,
    progress: Progress | None = None,
) -> MediaReport:
    """Makes OUTPUT/train and OUTPUT/test of media files, with a folder a kind, and OUTPUT/report.json.

    No content is on both sides: a source's side is a matter of its content (or group), all its clips go there, a source
    with the content of an earlier one is skipped, and so is a clip, image or document that comes out with the same
    bytes as an earlier one. What cannot be used is skipped and told. Run again, it goes on where it was stopped, and
    takes up what is new.

    Args:
        inputs: files and folders.
        output: a new or empty folder, or one of an earlier run with the same options.
        options: what standard files look like; None means `MediaOptions()`.
        plan: labels and sides; None means `Plan()`.
        test_inputs: files and folders that are the test set; then nothing of `inputs` is held out. They come first, so
            that a file of both is in the test set alone.
        workers: processes; 0 means one a core.
        progress: called with sources done and sources in all.

    Raises:
        DataError: no such path, no file, or a source that an earlier run put on the other side.
        FileExistsError: the output holds something else, or was made with other options.
        ImportError: a decoder that is needed is missing.
        ValueError: two labels that become one.
    """
    options, plan = options or MediaOptions(), plan or Plan()
    skips = SkipReport()
    sources = _sources(inputs, test_inputs, Path(output), skips)
    files = [file for file, _ in sources]
    check_labels(plan, files)
    described = {**asdict(options), **asdict(plan), "test_inputs": bool(as_roots(test_inputs))}
    run = _Run(plan, skips)
    with OutputFolder(Path(output), "media", described) as folder:
        run.take_up(folder)
        done = {(record["path"], *record["stamp"]): digest for digest, record in folder.records.items()}
        known = [done.get((file.path, *_stamp(file.path))) for file in files]
        fresh = [file.path for file, digest in zip(files, known, strict=True) if digest is None]
        made = ordered_map(functools.partial(read_and_make, options=options), fresh, workers=workers, crashed=_crashed)
        for number, ((file, side), digest) in enumerate(zip(sources, known, strict=True), 1):
            run.add(folder, file, side, next(made) if digest is None else Made(digest, []))
            if progress is not None:
                progress(number, len(files))
        folder.save()
        report = run.report(len(files))
        write_json(Path(output) / REPORT, {"options": described, **report.to_dict()})
    return report


class _Run:
    """What is known of all sources so far."""

    def __init__(self, plan: Plan, skips: SkipReport) -> None:
        self._plan = plan
        self._skips = skips
        self._first_path: dict[str, str] = {}
        self._written: set[str] = set()
        self._records: list[Record] = []

    def take_up(self, folder: OutputFolder) -> None:
        self._written = {digest for record in folder.records.values() for digest in record["files"].values()}

    def add(self, folder: OutputFolder, file: FileEntry, forced: Side | None, made: Made) -> None:
        if not made.digest:
            self._skips.add(_told(file.path, made.detail), made.reason)
            return
        label = self._plan.label(file)
        if (first := self._first_path.setdefault(made.digest, file.path)) != file.path:
            other = folder.records[made.digest]["label"] != label
            self._skips.add(_told(file.path, f"of {first}"), "copy with another label" if other else "copy")
            return
        record = folder.records.get(made.digest)
        if record is None:
            record = self._write(folder, file, forced, label, made)
        elif record["files"] and record["forced"] != (forced or ""):
            raise DataError(
                f"{file.path!r}: expected a source that goes to {forced or 'the side of its content'}, got one that an "
                f"earlier run put into {record['forced'] or 'the side of its content'}; choose another output"
            )
        if record["reason"]:
            self._skips.add(_told(file.path, record["detail"]), record["reason"])
        for _ in range(record["equal"]):
            self._skips.count(file.path, "same bytes as an earlier output")
        self._records.append(record)

    def _write(self, folder: OutputFolder, file: FileEntry, forced: Side | None, label: str, made: Made) -> Record:
        side = forced or self._plan.side(file, made.digest)
        stem = self._plan.stem(file, made.digest)
        names: dict[str, str] = {}
        contents = []
        for output in made.outputs:
            digest = digest_of(output.content)
            if digest in self._written:
                continue
            self._written.add(digest)
            its_side = forced or self._plan.side(file, output.document) if output.document else side
            relative = f"{its_side}/{output.kind}/{stem}{output.suffix}.{output.extension}"
            names[relative] = digest
            contents.append((relative, output.content))
        record: Record = {
            "key": made.digest,
            "path": file.path,
            "stamp": _stamp(file.path),
            "forced": forced or "",
            "label": label,
            "files": names,
            "equal": len(made.outputs) - len(names),
            "reason": made.reason,
            "detail": made.detail,
        }
        folder.add(record, contents)
        return record

    def report(self, sources: int) -> MediaReport:
        files: Counter[str] = Counter()
        labels: dict[str, Counter[str]] = {}
        for record in self._records:
            for relative in record["files"]:
                files[relative.rpartition("/")[0]] += 1
                if record["label"]:
                    labels.setdefault(record["label"], Counter())[relative.partition("/")[0]] += 1
        return MediaReport(
            sources=sources,
            used=sum(bool(record["files"]) for record in self._records),
            files=dict(sorted(files.items())),
            labels={label: dict(sorted(counts.items())) for label, counts in sorted(labels.items())},
            skipped=dict(sorted(self._skips.by_reason.items())),
            first_skipped=self._skips.examples,
        )


def _sources(inputs: Paths, test_inputs: Paths, output: Path, skips: SkipReport) -> list[tuple[FileEntry, Side | None]]:
    """Files with the side that the user said, None for the plan's; what lies in the output is no source."""

    test: list[tuple[FileEntry, Side | None]] = [(file, "test") for file in find_outside(test_inputs, output, skips)]
    taken = {file.path for file, _ in test}
    rest: Side | None = "train" if test else None
    sources = test + [(file, rest) for file in find_outside(inputs, output, skips) if file.path not in taken]
    if not sources:
        raise DataError(f"{as_roots(inputs)}: expected files with something in them, got none")
    return sources


def _stamp(path: str) -> tuple[int, int]:
    """What changes with a file: a source with the stamp that an earlier run noted is not read again."""
    try:
        status = os.stat(path)
    except OSError:
        return (-1, -1)
    return (status.st_size, status.st_mtime_ns)


def _crashed(path: str) -> Made:
    return Made("", [], "crashed its decoder")


def _told(path: str, detail: str) -> str:
    return f"{path} ({detail})" if detail else path
