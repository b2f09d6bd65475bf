"""Extracts single bars of the Irish tunes as an ABC collection, for pairs that a small model can learn on a CPU.

A bar is extracted if it has plain notes only (accidentals, octaves, lengths and broken rhythm; no chords, grace notes,
triplets, ties or signs), so that it does not depend on earlier bars. Each has the metre, unit length, key and
title of its tune; the title decides the split.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bgpt_fast.files import atomic_write
from bgpt_fast.tasks.media import MediaError
from bgpt_fast.tasks.music import split_collection
from bgpt_fast.tasks.music.collections import Tune

NOTE = r"[_^=]?[A-Ga-g][,']*(?:\d+/\d+|\d+|/\d*)?[<>]?"
PLAIN = re.compile(rf"(?:{NOTE})+(?<![<>])")
KEY = re.compile(r"[A-G][#b]?(?:m|maj|min|ion|dor|phr|lyd|mix|aeo|loc)?", re.IGNORECASE)
FIELD = re.compile(r"([A-Za-z]):(.*)")
BETWEEN_BARS = re.compile(r"[|:\[\]]+\d?")
"""Bar lines, repeats and endings; brackets would also split chords, which `whole_bars` removes first."""


def plain_bars(tune: Tune, fewest: int, most: int) -> Iterator[str]:
    """Yields the plain bars of a tune as ABC tunes, each once.

    Yields nothing from a tune that changes its key, metre or unit length.

    Args:
        tune: tune of a collection.
        fewest, most: range of the number of notes in a bar.
    """
    fields: dict[str, str] = {}
    music: list[str] = []
    for line in tune.text.splitlines():
        line = line.partition("%")[0].strip()
        field = FIELD.fullmatch(line)
        if field is None:
            music.append(line.removesuffix("\\"))
        elif field[1] in "KLM" and field[1] in fields:
            return
        else:
            fields.setdefault(field[1], field[2].strip())
    if not {"K", "L", "M"} <= fields.keys() or not KEY.fullmatch(fields["K"]):
        return
    header = f"X:1\nT:{tune.title}\nM:{fields['M']}\nL:{fields['L']}\nK:{fields['K']}\n"
    for bar in dict.fromkeys(whole_bars(" ".join(music))):
        if PLAIN.fullmatch(bar) and fewest <= len(re.findall("[A-Ga-g]", bar)) <= most:
            yield f"{header}{bar}|\n"


def whole_bars(music: str) -> Iterator[str]:
    """Yields the text between bar lines, without spaces; chords and fields become "&", which plain bars do not have."""
    music = re.sub(r"\[(?=[^|\d])[^\]]*\]", "&", music)
    for bar in BETWEEN_BARS.split(music):
        if bar := re.sub(r"\s", "", bar):
            yield bar


def write_excerpts(collections: Sequence[str | Path], path: Path, *, fewest: int, most: int) -> int:
    """Writes the plain bars of all tunes of some collections as one collection; returns their number.

    Args:
        collections: .abc files, and folders of them.
        path: the file to write.
        fewest, most: range of the number of notes in a bar.
    """
    bars = 0
    with atomic_write(path) as file:
        for collection in _files(collections):
            try:
                tunes = split_collection(collection.read_bytes())
            except MediaError as error:
                print(f"skipped {collection}: {error}", file=sys.stderr)
                continue
            for tune in tunes:
                for bar in plain_bars(tune, fewest, most):
                    file.write(bar.encode() + b"\n")
                    bars += 1
    return bars


def _files(collections: Iterable[str | Path]) -> Iterator[Path]:
    for path in map(Path, collections):
        yield from sorted(path.rglob("*.abc")) if path.is_dir() else [path]
