"""`bgpt-fast data check`: checks whether generated files decode, and compares them with the true files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from bgpt_fast.cli.common import (
    as_json,
    check_ranges,
    counted,
    counting_progress,
    percent,
    print_report,
    print_skipped,
    read_options,
    table,
)
from bgpt_fast.data.file_index import MAX_CONTENT_BYTES
from bgpt_fast.documents import extension_of
from bgpt_fast.files import read_file
from bgpt_fast.tasks.conversion import ONSET_TOLERANCE, Conversion, evaluate_conversion
from bgpt_fast.tasks.media_check import OUR_REPORTS, Checked, check_files, summarise
from bgpt_fast.tasks.media_gallery import Exhibit, write_gallery
from bgpt_fast.terminal import print_text


@dataclass(frozen=True)
class Check:
    """Checks whether files decode: images by Pillow, audio by soundfile, MIDI, ABC by abc2midi, text as UTF-8.

    With --truth, files with the same relative path are also compared: whether all bytes are equal, and for music note
    by note. Missing files count as wrong.

    Args:
        files: files and folders, such as the output of bgpt-fast generate or bgpt-fast convert.
        truth: a folder of the true files; FILES must then be one folder.
        onset_tolerance: with --truth, the tolerance of a note's onset, in seconds.
        gallery: an HTML page to write that shows the files next to the true ones; None writes no page.
        gallery_files: maximum number of files on that page.
        output: a JSON file for the figures; None writes no file.
        json: print JSON instead of tables.
    """

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    truth: Path | None = None
    onset_tolerance: float = ONSET_TOLERANCE
    gallery: Path | None = None
    gallery_files: int = 200
    output: Path | None = None
    json: bool = False


OPTIONS = Check


def run(words: Sequence[str]) -> int:
    options = read_options(Check, "data check", words, renamed={"--shown": "--gallery-files"})
    check_ranges(options, onset_tolerance=(0, None), gallery_files=(0, None))
    with counting_progress("checking") as progress:
        checked = check_files(options.files, progress)
    report = summarise(checked)
    result: dict[str, Any] = {"options": as_json(options), **report.to_dict()}
    tables = [
        table(
            "files that decode",
            ["", "files", "decode", "share"],
            [
                [name or "(no extension)", f"{files:,}", f"{decoding:,}", percent(decoding / files, 1)]
                for name, (files, decoding) in report.by_extension.items()
            ],
        )
    ]
    if options.truth is not None:
        conversions, alone = _pairs(options)
        converted = evaluate_conversion(
            counted(conversions, len(conversions), "comparing"), onset_tolerance=options.onset_tolerance
        )
        result |= {"conversion": converted.to_dict(), **alone}
        rows = [*converted.rows(), *([name.replace("_", " "), f"{len(names):,}"] for name, names in alone.items())]
        tables.append(table("against the truth", ["", "value"], rows))
    if options.gallery is not None:
        write_gallery(options.gallery, f"{report.files} files", _exhibits(options, checked))
    if not print_report(options, result, tables):
        return 0
    if report.unknown:
        print_text(f"{report.unknown} files have an extension without a decoder")
    print_skipped(report.reasons, report.first_failing, "do not decode")
    if options.gallery is not None:
        print_text(f"the gallery is {options.gallery}")
    return 0


def _pairs(options: Check) -> tuple[list[Conversion], dict[str, list[str]]]:
    """Returns the pairs of files and true files, and the names that are in only one of the folders.

    A missing file counts as empty if other files have its extension, since an unfinished conversion is not written.
    """
    if len(options.files) != 1 or not options.files[0].is_dir() or not (options.truth and options.truth.is_dir()):
        raise ValueError("--truth: expected one folder of files and one of true files")
    names, true_names = _names(options.files[0]), _names(options.truth)
    kinds = set(map(extension_of, names))
    expected = {name for name in true_names if extension_of(name) in kinds}
    conversions = [
        Conversion(
            str(options.files[0] / name),
            read_file(options.files[0] / name, MAX_CONTENT_BYTES) if name in names else b"",
            read_file(options.truth / name, MAX_CONTENT_BYTES),
        )
        for name in sorted(expected)
    ]
    if not conversions:
        raise ValueError(
            f"--truth: expected files in {options.truth} of the kinds that are in {options.files[0]}, got none"
        )
    return conversions, {"without_truth": sorted(names - expected), "missing": sorted(expected - names)}


def _names(folder: Path) -> set[str]:
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return names - set(OUR_REPORTS)


def _exhibits(options: Check, checked: Sequence[Checked]) -> Iterator[Exhibit]:
    for one in checked[: options.gallery_files]:
        path = Path(one.name)
        if not path.is_file() or path.stat().st_size > MAX_CONTENT_BYTES:
            continue
        truth = None
        if options.truth is not None and (other := options.truth / path.relative_to(options.files[0])).is_file():
            truth = read_file(other, MAX_CONTENT_BYTES)
        yield Exhibit(one.name, read_file(path, MAX_CONTENT_BYTES), truth=truth)
