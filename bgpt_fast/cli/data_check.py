"""`bgpt-fast data check`: generated files against the real decoders, and against the truth."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from bgpt_fast.cli.common import as_json, console, read_options, table
from bgpt_fast.cli.data_shown import print_skipped
from bgpt_fast.documents import extension_of
from bgpt_fast.files import write_json
from bgpt_fast.tasks.conversion import ONSET_TOLERANCE, Conversion, evaluate_conversion
from bgpt_fast.tasks.media_check import OUR_REPORTS, Checked, check_files, summarise
from bgpt_fast.tasks.media_gallery import Exhibit, write_gallery


@dataclass(frozen=True)
class Check:
    """Whether files decode: images by Pillow, audio by soundfile, MIDI by mido, ABC by abc2midi, text as UTF-8.

    With --truth, files of equal relative paths are held against each other too: right to the last byte, and, where they
    are music, note by note. True files that are missing count as wrong.

    Args:
        files: files and folders, such as what bgpt-fast generate and bgpt-fast convert wrote.
        truth: a folder of the true files, for one folder of files.
        onset_tolerance: with --truth: seconds by which the onset of a right note may be off.
        gallery: an HTML page to write that shows the files, and the true ones beside them; None means none.
        shown: most files on that page.
        output: where to write the figures as JSON; None means nowhere.
        json: print JSON instead of tables.
    """

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    truth: Path | None = None
    onset_tolerance: float = ONSET_TOLERANCE
    gallery: Path | None = None
    shown: int = 200
    output: Path | None = None
    json: bool = False


def run(words: Sequence[str]) -> int:
    options = read_options(Check, "data check", words)
    checked = check_files(options.files)
    report = summarise(checked)
    result: dict[str, Any] = {"options": as_json(options), **report.to_dict()}
    tables = [
        table(
            "files that decode",
            ["", "files", "decode", "share"],
            [
                [name or "(no extension)", f"{files:,}", f"{decoding:,}", f"{100 * decoding / files:.1f} %"]
                for name, (files, decoding) in report.by_extension.items()
            ],
        )
    ]
    if options.truth is not None:
        conversions, alone = _pairs(options)
        converted = evaluate_conversion(conversions, onset_tolerance=options.onset_tolerance)
        result |= {"conversion": converted.to_dict(), **alone}
        rows = [*converted.rows(), *([name.replace("_", " "), f"{len(names):,}"] for name, names in alone.items())]
        tables.append(table("against the truth", ["", "value"], rows))
    if options.gallery is not None:
        write_gallery(options.gallery, f"{report.files} files", _exhibits(options, checked))
    if options.output is not None:
        write_json(options.output, result)
    if options.json:
        print(json.dumps(result, indent=2))
        return 0
    for one in tables:
        console.print(one)
    if report.unknown:
        console.print(f"{report.unknown} files have an extension that nothing here decodes")
    print_skipped(report.reasons, report.first_failing, "do not decode")
    if options.gallery is not None:
        console.print(f"the gallery is {options.gallery}")
    return 0


def _pairs(options: Check) -> tuple[list[Conversion], dict[str, list[str]]]:
    """Files beside the true ones, and the names that are in one folder alone.

    A true file without one counts as an empty file if any file has its extension: a conversion that did not end.
    """
    if len(options.files) != 1 or not options.files[0].is_dir() or not (options.truth and options.truth.is_dir()):
        raise ValueError("--truth: expected one folder of files and one of true files")
    made, true = _names(options.files[0]), _names(options.truth)
    kinds = set(map(extension_of, made))
    wanted = {name for name in true if extension_of(name) in kinds}
    conversions = [
        Conversion(
            str(options.files[0] / name),
            (options.files[0] / name).read_bytes() if name in made else b"",
            (options.truth / name).read_bytes(),
        )
        for name in sorted(wanted)
    ]
    if not conversions:
        raise ValueError(
            f"--truth: expected files in {options.truth} of the kinds that are in {options.files[0]}, got none"
        )
    return conversions, {"without_truth": sorted(made - wanted), "missing": sorted(wanted - made)}


def _names(folder: Path) -> set[str]:
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return names - set(OUR_REPORTS)


def _exhibits(options: Check, checked: Sequence[Checked]) -> Iterator[Exhibit]:
    for one in checked[: options.shown]:
        path = Path(one.name)
        if not path.is_file():
            continue
        truth = None
        if options.truth is not None and (other := options.truth / path.relative_to(options.files[0])).is_file():
            truth = other.read_bytes()
        yield Exhibit(one.name, path.read_bytes(), truth=truth)
