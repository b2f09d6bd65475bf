"""`bgpt-fast classify`: predicts the class of each file, and the accuracy if the file names state their class."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro

from bgpt_fast.classifier import BGPTForClassification
from bgpt_fast.cli.common import (
    as_json,
    check_output_file,
    drawing,
    generation_progress,
    percent,
    plots_folder,
    print_report,
    read_options,
    table,
)
from bgpt_fast.cli.model_task import check_files
from bgpt_fast.data import DataError, label_of
from bgpt_fast.data.file_index import FileEntry, SkipReport, find_files, read_document
from bgpt_fast.device import resolve_device
from bgpt_fast.documents import extension_of
from bgpt_fast.files import FileContentError
from bgpt_fast.generation.precision import ScoringPrecision, scoring_in, scoring_precision
from bgpt_fast.parsing import read_json
from bgpt_fast.patches import PackedPatches
from bgpt_fast.report.classification_plots import classification_plots
from bgpt_fast.tasks.classification import ClassificationReport, Prediction, predict_iter, score
from bgpt_fast.terminal import print_error, print_table, print_text

_SHOWN_FILES = 200
_SHOWN_CLASSES = 12


@dataclass(frozen=True)
class Classify:
    """Predicts the class of each file with a trained classifier.

    Files named LABEL_anything.ext, where LABEL.ext is a class of the model, are also scored: accuracy, scores of each
    class, confusion matrix. Files longer than the context are truncated. Empty and unreadable files are counted and
    reported, not classified; duplicate paths count once.

    Args:
        data: files and folders; folders are searched.
        checkpoint: a training run's folder, a folder of weights, a .safetensors or .pth file, or a hub id. As the first
            of the files, its place in earlier versions, it still works, with a warning.
        labels: a JSON file {"class name": index, …} for weights without a label map, such as the released .pth files.
        patches_per_batch: maximum number of patches in a batch.
        any_model: use the model even if it was trained for something else.
        plots: a new or empty folder for plots of the confusion matrix and of each class; None means no plots.
        output: a JSON file for predictions and scores; None writes no file.
        json: print JSON instead of tables.
        precision: precision of the linear layers. "auto" measures whether bfloat16 is faster than float32 here, and
            says so.
        device: "auto" uses the GPU if there is one.
    """

    data: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILES_OR_FOLDERS")] = ()
    checkpoint: Path | None = None
    labels: Path | None = None
    patches_per_batch: int = 2048
    any_model: bool = False
    plots: Path | None = None
    output: Path | None = None
    json: bool = False
    precision: ScoringPrecision = "auto"
    device: str = "auto"


OPTIONS = Classify


def run(words: Sequence[str]) -> int:
    options = _with_checkpoint(read_options(Classify, "classify", words))
    check_output_file(options.output)
    if not options.data:
        raise DataError("expected files or folders to classify, got none; name them after the options")
    if options.plots is not None:
        plots_folder(options.plots)
    skips = SkipReport()
    files = find_files([str(path) for path in options.data], skips)
    model = BGPTForClassification.from_pretrained(
        str(options.checkpoint),
        labels=None if options.labels is None else _read_labels(options.labels),
        device=resolve_device(options.device),
        dtype=torch.float32,
    )
    if not options.any_model:
        check_files(model.task, options.checkpoint, (extension_of(file.path) for file in files))
    device = model.classifier.weight.device
    choice = scoring_precision(options.precision, model.config, device)
    with scoring_in(choice.precision, device):
        predictions = _classify(model, files, options.patches_per_batch, skips)
    if skips.by_reason:
        print_error(f"bgpt-fast classify: {_skips_text(skips)}")
    if not predictions:
        raise DataError(f"expected at least one file with something in it, got none; {_skips_text(skips)}")
    report = _scored(model.labels, predictions)
    if options.plots is not None and report is not None:
        with drawing("classify", f"the plots in {options.plots}"):
            classification_plots(report.to_dict(), options.plots)
    elif options.plots is not None:
        print_error(
            "bgpt-fast classify: --plots: nothing to draw: no file is named LABEL_anything.ext of one of the classes "
            f"{list(model.labels)}"
        )
    result = {
        "options": as_json(options),
        "precision": choice.precision,
        "labels": list(model.labels),
        "cut_to_fit": sum(prediction.is_cut for _, prediction in predictions),
        "skipped": skips.by_reason,
        "first_skipped": skips.examples,
        "report": None if report is None else report.to_dict(),
        "files": [
            {"path": file.path, "true_label": _true_label(file, model.labels), **asdict(one)}
            for file, one in predictions
        ],
    }
    if print_report(options, result, []):
        _show(predictions, report)
        print_text(choice.text)
    return 0


def _with_checkpoint(options: Classify) -> Classify:
    """Returns the options with a checkpoint: that of --checkpoint, or the first of several paths, with a warning."""
    if options.checkpoint is not None:
        return options
    if len(options.data) < 2:
        raise ValueError("--checkpoint: expected a trained classifier, got none; give its run folder or weights")
    warnings.warn(
        f"the checkpoint {options.data[0]} before the files: give it as --checkpoint; the old form will be removed",
        DeprecationWarning,
        stacklevel=1,
    )
    return replace(options, checkpoint=options.data[0], data=options.data[1:])


def _classify(
    model: BGPTForClassification, files: Sequence[FileEntry], patches_per_batch: int, skips: SkipReport
) -> list[tuple[FileEntry, Prediction]]:
    """Returns the predictions of the readable files; the others go to `skips`."""
    readable: list[FileEntry] = []

    def documents() -> Iterator[PackedPatches]:
        for file in files:
            document = read_document(file, model.config, skips)
            if document is not None:
                readable.append(file)
                yield document

    predictions: list[tuple[FileEntry, Prediction]] = []
    size = 0
    with generation_progress("classifying") as progress:
        for prediction in predict_iter(model, documents(), patches_per_batch=patches_per_batch):
            file = readable[len(predictions)]
            predictions.append((file, prediction))
            size += file.size
            progress(len(predictions), len(files), size)
    return predictions


def _read_labels(path: Path) -> dict[str, int]:
    try:
        labels = read_json(path)
    except FileContentError as error:
        raise ValueError(f'--labels: expected JSON like {{"cat.bmp": 0, "dog.bmp": 1}}: {error}') from error
    if not isinstance(labels, dict):
        raise ValueError(f"--labels: {path}: expected a JSON object, got {type(labels).__name__}")
    return labels


def _true_label(file: FileEntry, labels: Mapping[str, int]) -> str | None:
    """Returns the class in the file's name; None if the model does not have it."""
    label = label_of(file.path)
    return label if label in labels else None


def _scored(
    labels: Mapping[str, int], predictions: Sequence[tuple[FileEntry, Prediction]]
) -> ClassificationReport | None:
    truth, predicted = [], []
    for file, prediction in predictions:
        label = _true_label(file, labels)
        if label is not None:
            truth.append(labels[label])
            predicted.append(labels[prediction.label])
    return score(labels, truth, predicted) if truth else None


def _skips_text(skips: SkipReport) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in skips.by_reason.items())
    return f"left out: {reasons or 'none'}" + "".join(f"\n  {name}" for name in skips.examples)


def _show(predictions: Sequence[tuple[FileEntry, Prediction]], report: ClassificationReport | None) -> None:
    rows = [
        [file.path, one.label, f"{one.probability:.2%}", "head only" if one.is_cut else ""]
        for file, one in predictions[:_SHOWN_FILES]
    ]
    file_table = table(f"{len(predictions)} files", ["file", "class", "probability", ""], rows)
    file_table.columns[0].overflow = "fold"
    if len(predictions) > _SHOWN_FILES:
        file_table.caption = f"the first {_SHOWN_FILES}; --output and --json have all"
    print_table(file_table)
    cut = sum(one.is_cut for _, one in predictions)
    if cut:
        print_text(f"{cut:,} of {len(predictions):,} files are longer than the context: their heads are classified")
    if report is None:
        return
    low, high = report.interval
    # The bootstrap interval is meaningless if all predictions are right, or all wrong.
    spread = f" (95 % interval {low:.2%} to {high:.2%})" if low < high else ""
    print_text(
        f"accuracy {report.accuracy:.2%}{spread}: {report.correct} of "
        f"{report.documents} files named after a class of the model; macro F1 {report.macro_f1:.4f}"
    )
    by_class = [
        [label, percent(one.precision), percent(one.recall), percent(one.f1), str(one.support)]
        for label, one in report.by_class.items()
    ]
    print_table(table("by class", ["class", "precision", "recall", "F1", "files"], by_class))
    if len(report.labels) <= _SHOWN_CLASSES:
        counts = [[label, *map(str, row)] for label, row in zip(report.labels, report.confusion.tolist(), strict=True)]
        print_table(table("files by true class (rows) and predicted class (columns)", ["", *report.labels], counts))
    else:
        print_text(f"the confusion matrix of {len(report.labels)} classes is in --output and --json")
