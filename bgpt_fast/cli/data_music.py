"""`bgpt-fast data music`: converts ABC collections to a data set of ABC and MIDI pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bgpt_fast.cli.common import counting_progress, percent, print_skipped, read_options, table
from bgpt_fast.tasks.music import irish_collections, make_pairs
from bgpt_fast.tasks.music.collections import Fields
from bgpt_fast.terminal import print_table, print_text


@dataclass(frozen=True)
class Music:
    """Converts ABC collections to pairs NAME.abc and NAME.mid: OUTPUT/train, OUTPUT/test and OUTPUT/report.json.

    Each tune is converted by abc2midi, whose notes are read. Unusable tunes are skipped and counted. All
    settings of one title are in the same split. A repeated run resumes an interrupted one. Train with
    bgpt-fast train --data OUTPUT/train --task conversion --conversion "abc&mid".

    Args:
        inputs: .abc files and folders of them; none means the Irish tunes of music21.
        output: the folder to write, new or of an earlier run with the same options.
        test_share: share of the titles in the test set.
        fields: "musical" removes titles, sources, lyrics and comments; "all" keeps everything.
        strict: skip tunes for which abc2midi reports an error, even if it writes a MIDI file.
        workers: number of abc2midi processes; 0 means one per core.
    """

    inputs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    output: Path = Path("music")
    test_share: float = 0.1
    fields: Fields = "musical"
    strict: bool = False
    workers: int = 0


OPTIONS = Music


def run(words: Sequence[str]) -> int:
    options = read_options(Music, "data music", words)
    with counting_progress("converting") as progress:
        report = make_pairs(
            [*map(str, options.inputs)] or irish_collections(),
            options.output,
            test_share=options.test_share,
            fields=options.fields,
            strict=options.strict,
            workers=options.workers,
            progress=progress,
        )
    rows = [
        ["collections", f"{report.collections:,}"],
        ["tunes", f"{report.tunes:,}"],
        *([f"  pairs in {side}", f"{count:,}"] for side, count in report.pairs.items()),
        ["  of which abc2midi reported an error", f"{report.complaints:,}"],
        ["mean bytes of ABC", f"{report.mean_abc_bytes:,.0f}"],
        ["mean bytes of MIDI", f"{report.mean_midi_bytes:,.0f}"],
        ["pairs within 512 patches of 16 bytes", percent(report.in_context, 1)],
    ]
    print_table(table("ABC and MIDI pairs", ["", "number"], rows))
    print_skipped(report.skipped, report.first_skipped)
    print_text(f"all of it is in {options.output}/; report.json has the figures, sources.jsonl every tune")
    return 0
