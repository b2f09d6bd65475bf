"""`bgpt-fast data media`: converts media files to a data set of small files in standard formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from bgpt_fast.cli.common import HelpLayout, counting_progress, print_skipped, read_options, table
from bgpt_fast.tasks.media import MediaOptions, Plan, standardise
from bgpt_fast.terminal import print_table, print_text

_LABELS_SHOWN = 40
LAYOUT = HelpLayout(
    basic=(
        "inputs",
        "output",
        "test_inputs",
        "media.kinds",
        "media.image_size",
        "media.audio",
        "plan.labels",
        "plan.test_share",
        "plan.stratify",
    )
)


@dataclass(frozen=True)
class Media:
    """Converts images, audio and text to small standard files: OUTPUT/train, OUTPUT/test and OUTPUT/report.json.

    Images become 24-bit BMP, audio 8-bit mono WAV clips, text UTF-8. Unusable files are skipped and
    counted. All files from one source, and from copies of it, are in the same split. Run again, it resumes where it was
    stopped, and adds new inputs.

    Args:
        inputs: files and folders.
        output: the folder to write, new or of an earlier run with the same options.
        test_inputs: files and folders of the test set; if empty, a share of the inputs is held out.
        media: format of the standard files.
        plan: labels and splits.
        workers: number of processes; 0 means one per core.
    """

    inputs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    output: Path = Path("media")
    test_inputs: tuple[Path, ...] = ()
    media: Annotated[MediaOptions, tyro.conf.arg(name="")] = field(default_factory=MediaOptions)
    plan: Annotated[Plan, tyro.conf.arg(name="")] = field(default_factory=Plan)
    workers: int = 0


OPTIONS = Media


def run(words: Sequence[str]) -> int:
    options = read_options(Media, "data media", words, layout=LAYOUT)
    with counting_progress("standardising") as progress:
        report = standardise(
            options.inputs,
            options.output,
            options.media,
            options.plan,
            test_inputs=options.test_inputs,
            workers=options.workers,
            progress=progress,
        )
    rows = [["sources", f"{report.sources:,}"], ["  used", f"{report.used:,}"]]
    rows += [[name, f"{count:,}"] for name, count in report.files.items()]
    print_table(table("standard files", ["", "number"], rows))
    if report.labels:
        labels = [
            [label, f"{counts.get('train', 0):,}", f"{counts.get('test', 0):,}"]
            for label, counts in list(report.labels.items())[:_LABELS_SHOWN]
        ]
        labels += [["…", "", ""]] * (len(report.labels) > _LABELS_SHOWN)
        print_table(table(f"{len(report.labels)} labels", ["", "train", "test"], labels))
    _print_without("test", report.without_test if options.plan.test_share or options.test_inputs else [])
    _print_without("training", report.without_train if options.plan.test_share < 1 else [])
    print_skipped(report.skipped, report.first_skipped)
    print_text(f"all of it is in {options.output}/; report.json has the figures, sources.jsonl every source")
    return 0


def _print_without(split: str, classes: Sequence[str]) -> None:
    if classes:
        names = ", ".join(classes[:_LABELS_SHOWN]) + ", …" * (len(classes) > _LABELS_SHOWN)
        print_text(
            f"{len(classes)} classes without {split} files: {names}; --stratify gives each of two sources or more both"
        )
