"""Conversion of media folders to a data set of standard files: train and test, labelled, with no leakage."""

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
from bgpt_fast.data.labelled import label_of
from bgpt_fast.files import open_regular, write_json
from bgpt_fast.journal import Record, content_digest, file_digest
from bgpt_fast.tasks.media.names import Plan, Side, check_labels
from bgpt_fast.tasks.media.output import OutputFolder, find_outside
from bgpt_fast.tasks.media.pool import check_main_guard, ordered_map
from bgpt_fast.tasks.media.source import MediaOptions, Standardised, read_and_standardise

Progress = Callable[[int, int], None]
REPORT = "report.json"
_FIELDS = {"path": str, "stamp": list, "forced": str, "label": str, "equal": int}


@dataclass(frozen=True)
class MediaReport:
    """Counts of a data set of standard files.

    Args:
        sources: number of input files.
        used: number of sources with at least one output.
        files: number of standard files by "split/kind", such as "train/image".
        labels: number of standard files by label and split; {} without labels.
        without_test, without_train: classes, as "LABEL.ext", of which all files are in the other split.
        skipped: number of skipped sources, clips and documents, by reason.
        first_skipped: a few of them as "reason: path (detail)".
    """

    sources: int
    used: int
    files: dict[str, int]
    labels: dict[str, dict[str, int]]
    without_test: list[str]
    without_train: list[str]
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
    """Writes OUTPUT/train and OUTPUT/test from media files, with a folder for each kind, and OUTPUT/report.json.

    No content is in both splits: a source's split depends on its content (or group) and applies to all its clips;
    copies of an earlier source, and outputs equal to an earlier output, are skipped. Unusable files are
    skipped and counted. A repeated run resumes an interrupted one, adds new inputs, and makes deleted files again.

    Args:
        inputs: files and folders.
        output: a new or empty folder, or that of an earlier run with the same options.
        options: format of the standard files; None means `MediaOptions()`.
        plan: labels and splits; None means `Plan()`.
        test_inputs: files and folders of the test set; then none of `inputs` is held out. They are read first, so that
            a file in both is only in the test set.
        workers: number of processes; 0 means one per core.
        progress: called with (sources done, all sources).

    Raises:
        DataError: no such path, no file, or a source that an earlier run assigned to the other split.
        FileExistsError: the output folder has other contents, other options, or a file that was changed since.
        FileContentError: a line of the output folder's journal is no record.
        ImportError: a decoder's package is missing.
        ValueError: two labels become equal in file names, or `plan.stratify` beside `test_inputs` or documents of one
            file, which decide the split themselves.
        WorkerStartError: the calling script has no main guard, with several processes and 256 or more sources.
    """
    check_main_guard()
    options, plan = options or MediaOptions(), plan or Plan()
    if plan.stratify and (as_roots(test_inputs) or options.text_separator):
        other = "test_inputs" if as_roots(test_inputs) else "text_separator"
        raise ValueError(f"stratify: expected no {other} beside it, which decides the split itself")
    skips = SkipReport()
    sources = _sources(inputs, test_inputs, Path(output), skips)
    files = [file for file, _ in sources]
    check_labels(plan, files)
    described = {**asdict(options), **asdict(plan), "test_inputs": bool(as_roots(test_inputs))}
    if not plan.stratify:
        del described["stratify"]  # folders of earlier versions do not have it
    with OutputFolder(Path(output), "media", described, _FIELDS) as folder:
        done = {(record["path"], *record["stamp"]): digest for digest, record in folder.records.items()}
        known = [done.get((file.path, *_stamp(file))) for file in files]
        test_counts = None
        if plan.stratify:
            sources, known, test_counts = _stratified(sources, known, plan, folder)
            files = [file for file, _ in sources]
        data_set = _DataSet(plan, skips, folder, test_counts)
        fresh = [file.path for file, digest in zip(files, known, strict=True) if digest is None]
        results = ordered_map(
            functools.partial(read_and_standardise, options=options), fresh, workers=workers, crashed=_crashed
        )
        for number, ((file, side), digest) in enumerate(zip(sources, known, strict=True), 1):
            data_set.add(file, side, next(results) if digest is None else Standardised(digest, []))
            if progress is not None:
                progress(number, len(files))
        folder.save()
        report = data_set.report(len(files))
        write_json(Path(output) / REPORT, {"options": described, **report.to_dict()})
    return report


class _DataSet:
    """The sources processed so far."""

    def __init__(self, plan: Plan, skips: SkipReport, folder: OutputFolder, missing_tests: Counter[str] | None) -> None:
        self._plan = plan
        self._skips = skips
        self._folder = folder
        self._missing_tests = missing_tests
        self._first_path: dict[str, str] = {}
        self._digests: set[str] = set()
        self._records: list[Record] = []
        for record in (*folder.records.values(), *folder.incomplete.values()):
            self._digests.update(record["files"].values())

    def add(self, file: FileEntry, forced: Side | None, result: Standardised) -> None:
        if not result.digest:
            self._skips.add(_with_detail(file.path, result.detail), result.reason)
            return
        label = self._plan.label(file)
        if (first := self._first_path.setdefault(result.digest, file.path)) != file.path:
            other = self._folder.records[result.digest]["label"] != label
            self._skips.add(_with_detail(file.path, f"of {first}"), "copy with another label" if other else "copy")
            return
        record = self._folder.records.get(result.digest)
        if record is None:
            record = self._write(file, forced, label, result)
        elif record["files"] and record["forced"] != (forced or ""):
            raise DataError(
                f"{file.path!r}: expected a source of {forced or 'the split of its content'}, got one that an "
                f"earlier run put into {record['forced'] or 'the split of its content'}; choose another output"
            )
        elif record["path"] == file.path and record["stamp"] != _stamp(file):
            record = {**record, "stamp": _stamp(file)}
            self._folder.add(record, [])
        if record["reason"]:
            self._skips.add(_with_detail(file.path, record["detail"]), record["reason"])
        for _ in range(record["equal"]):
            self._skips.count(file.path, "same bytes as an earlier output")
        self._records.append(record)

    def _write(self, file: FileEntry, forced: Side | None, label: str, result: Standardised) -> Record:
        incomplete = self._folder.incomplete.get(result.digest)
        side = forced or self._side(file, label, result.digest, incomplete)
        stem = self._plan.stem(file, result.digest)
        names: dict[str, str] = {}
        contents = []
        if incomplete is not None:  # its own digests, whose files are written again
            self._digests -= set(incomplete["files"].values())
        for output in result.outputs:
            digest = content_digest(output.content)
            if digest in self._digests:
                continue
            self._digests.add(digest)
            its_side = forced or self._plan.side(file, output.document) if output.document else side
            relative = f"{its_side}/{output.kind}/{stem}{output.suffix}.{output.extension}"
            names[relative] = digest
            contents.append((relative, output.content))
        record: Record = {
            "key": result.digest,
            "path": file.path,
            "stamp": _stamp(file),
            "forced": forced or "",
            "label": label,
            "files": names,
            "equal": len(result.outputs) - len(names),
            "reason": result.reason,
            "detail": result.detail,
        }
        if self._missing_tests is not None and incomplete is None:
            self._missing_tests[label] -= _is_test(record)
        self._folder.add(record, contents)
        return record

    def _side(self, file: FileEntry, label: str, digest: str, incomplete: Record | None) -> Side:
        if self._missing_tests is None:
            return self._plan.side(file, digest)
        if incomplete is not None:
            return "test" if _is_test(incomplete) else "train"
        return "test" if self._missing_tests[label] > 0 else "train"

    def report(self, sources: int) -> MediaReport:
        files: Counter[str] = Counter()
        labels: dict[str, Counter[str]] = {}
        classes: dict[str, set[str]] = {"train": set(), "test": set()}
        for record in self._records:
            for relative in record["files"]:
                files[relative.rpartition("/")[0]] += 1
                if record["label"]:
                    classes[relative.partition("/")[0]].add(str(label_of(relative)))
                    labels.setdefault(record["label"], Counter())[relative.partition("/")[0]] += 1
        return MediaReport(
            sources=sources,
            used=sum(bool(record["files"]) for record in self._records),
            files=dict(sorted(files.items())),
            labels={label: dict(sorted(counts.items())) for label, counts in sorted(labels.items())},
            without_test=sorted(classes["train"] - classes["test"]),
            without_train=sorted(classes["test"] - classes["train"]),
            skipped=dict(sorted(self._skips.by_reason.items())),
            first_skipped=self._skips.examples,
        )


def _sources(inputs: Paths, test_inputs: Paths, output: Path, skips: SkipReport) -> list[tuple[FileEntry, Side | None]]:
    """Returns the source files with their fixed split; None leaves it to the plan."""

    test: list[tuple[FileEntry, Side | None]] = [(file, "test") for file in find_outside(test_inputs, output, skips)]
    test_paths = {file.path for file, _ in test}
    rest: Side | None = "train" if test else None
    sources = test + [(file, rest) for file in find_outside(inputs, output, skips) if file.path not in test_paths]
    if not sources:
        raise DataError(f"{as_roots(inputs)}: expected files with something in them, got none")
    return sources


def _stratified(
    sources: list[tuple[FileEntry, Side | None]], known: list[str | None], plan: Plan, folder: OutputFolder
) -> tuple[list[tuple[FileEntry, Side | None]], list[str | None], Counter[str]]:
    """Orders the sources, so that the first usable ones of each label can be its test set.

    Returns:
        The sources by digest, their digests if an earlier run recorded them, and the number of sources that the test
        set of each label lacks.
    """
    digests = [recorded or _digest(file.path) for (file, _), recorded in zip(sources, known, strict=True)]
    order = sorted(range(len(sources)), key=digests.__getitem__)  # stable: copies stay in the order of their paths
    label_of_digest: dict[str, str] = {}
    for index in order:
        label_of_digest.setdefault(digests[index], plan.label(sources[index][0]))
    label_of_digest.pop("", None)
    missing: Counter[str] = Counter()
    for label, count in Counter(label_of_digest.values()).items():
        share = round(plan.test_share * count)
        missing[label] = min(max(share, 1), count - 1) if 0 < plan.test_share < 1 else share
    for record in (*folder.records.values(), *folder.incomplete.values()):
        missing[record["label"]] -= _is_test(record)
    return [sources[index] for index in order], [known[index] for index in order], missing


def _digest(path: str) -> str:
    """The digest of a file's content; "" if it cannot be read, which is reported when it is converted."""
    try:
        with open_regular(path) as file:
            return file_digest(file)
    except OSError:
        return ""


def _is_test(record: Record) -> bool:
    return any(name.startswith("test/") for name in record["files"])


def _stamp(file: FileEntry) -> list[int | str]:
    """Size and time of the last change, when the file was listed; a source of equal ones is not read again."""
    return [file.size, file.modified]


def _crashed(path: str) -> Standardised:
    return Standardised("", [], "crashed its decoder")


def _with_detail(path: str, detail: str) -> str:
    return f"{path} ({detail})" if detail else path
