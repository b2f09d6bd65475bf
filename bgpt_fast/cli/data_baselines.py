"""`bgpt-fast data baselines`: compressors, and classifiers on byte counts, as baselines for a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from bgpt_fast.cli.common import (
    as_json,
    counting_progress,
    decimal,
    print_report,
    print_skipped,
    read_options,
    share,
    table,
)
from bgpt_fast.data.file_index import SkipReport, as_roots, find_files, read_content
from bgpt_fast.data.labelled import label_of
from bgpt_fast.tasks.baselines import ByteClassifier, classify_by_bytes, compression_scores, entropy_of_bytes
from bgpt_fast.tasks.cnn_baseline import classify_by_cnn


@dataclass(frozen=True)
class Baselines:
    """Bits per byte of gzip, xz and zstd, and the accuracy of classifiers that count bytes, on the same files as a
    model.

    Args:
        files: files and folders of the test set. Files named LABEL_anything.ext are classified too, if there is a
            training set.
        train: files and folders of the training set.
        cnn: also train a small convolutional network, which takes about a minute; needs labelled files in both sets.
        output: a JSON file for the figures; None writes no file.
        json: print JSON instead of tables.
    """

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    train: tuple[Path, ...] = ()
    cnn: bool = False
    output: Path | None = None
    json: bool = False


OPTIONS = Baselines


def run(words: Sequence[str]) -> int:
    options = read_options(Baselines, "data baselines", words)
    skips = SkipReport()
    files, train = _read(options.files, skips), _read(options.train, skips)
    labelled, learned = _labelled(files), _labelled(train)
    classes = {label for label, _ in learned}
    labelled = [(label, content) for label, content in labelled if label in classes]
    if options.cnn and not (labelled and len(classes) > 1):
        raise ValueError(
            "--cnn: expected files named LABEL_anything.ext of two or more classes in --train, and some of these "
            f"classes to classify, got {len(classes)} classes and {len(labelled)} files"
        )
    contents = [content for _, content in files]
    with counting_progress("compressing") as progress:
        scores = compression_scores(contents, [content for _, content in train], progress=progress)
    entropy = entropy_of_bytes(contents)
    result: dict[str, Any] = {
        "options": as_json(options),
        "files": len(files),
        "entropy_of_bytes": entropy,
        "compressors": [one.to_dict() for one in scores],
        "classifiers": {},
        "skipped": skips.by_reason,
    }
    rows = [[one.compressor, *map(decimal, (one.alone, one.together, one.after_training))] for one in scores]
    rows.append(["counting bytes (order 0)", "–", decimal(entropy), "–"])
    headings = ["bits per byte", "each file alone", "all together", "after the training files"]
    tables = [table(f"{len(files)} files, {sum(map(len, contents)):,} bytes", headings, rows)]
    if labelled and len(classes) > 1:
        reports = {f"{method}, byte counts": classify_by_bytes(learned, labelled, method) for method in _methods()}
        if options.cnn:
            reports["CNN"] = classify_by_cnn(learned, labelled)
        accuracies = []
        for name, report in reports.items():
            low, high = report.interval
            accuracies.append([name, share(report.correct, report.documents), f"{100 * low:.1f} … {100 * high:.1f} %"])
        result["classifiers"] = {name.partition(",")[0]: report.to_dict() for name, report in reports.items()}
        tables.append(table(f"{len(labelled)} files classified", ["by", "accuracy", "95 %"], accuracies))
    if print_report(options, result, tables):
        print_skipped(skips.by_reason, skips.examples)
    return 0


def _read(paths: tuple[Path, ...], skips: SkipReport) -> list[tuple[str, bytes]]:
    contents = []
    for file in find_files(as_roots(paths), skips):
        content = read_content(file, skips)
        if content is not None:
            contents.append((file.path, content))
    return contents


def _labelled(files: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    named = [(label_of(path), content) for path, content in files]
    return [(label, content) for label, content in named if label is not None]


def _methods() -> list[ByteClassifier]:
    import importlib.util

    boosted: list[ByteClassifier] = ["gradient-boosting"] if importlib.util.find_spec("sklearn") else []
    return ["nearest-centroid", *boosted]
