"""Splits ABC collections, files of many tunes, into normalised tunes."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path
from typing import Literal, NamedTuple

from bgpt_fast.tasks.media.errors import MediaError, optional
from bgpt_fast.tasks.music.macros import Macros

Fields = Literal["musical", "all"]
IRISH = ("oneills1850", "ryansMammoth", "airdsAirs")
"""music21's collections of Irish, Scottish and American fiddle tunes."""

# In "A:|" and "A::", the A is a note.
_FIELD = re.compile(r"^([A-Za-z+]):(?![:|])(.*)$")
_MUSICAL = frozenset("XLMQKPVU")
_OF_ALL_TUNES = frozenset("LMUm")
_AUDIBLE = re.compile(r"^(?:%%|I: *)(?:MIDI|propagate-accidentals|temperament)")
_COMMENT = re.compile(r"(?<!\\)%.*$")
_NEW_TUNE = re.compile(r"^X:", re.MULTILINE)


class Tune(NamedTuple):
    """A tune of a collection: its number and title ("" without one), and its text."""

    number: str
    title: str
    text: str


def split_collection(content: bytes) -> list[Tune]:
    """Splits an ABC file into tunes: each from its X: line to the next empty line or X: line.

    The musical fields at the top of the file (lengths, metre, macros, instructions) become part of each tune. Other
    text is dropped. A file that is not UTF-8 is decoded as Latin-1.

    Raises:
        MediaError: it has no X: line.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    starts = [match.start() for match in _NEW_TUNE.finditer(text)]
    if not starts:
        raise MediaError("no ABC tune", "no line begins with X:")
    of_all = _file_header(text[: starts[0]])
    tunes = []
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        lines: list[str] = []
        for line in text[start:end].split("\n"):
            if not line.strip():
                break
            lines.append(line.rstrip())
        lines[1:1] = of_all
        tunes.append(Tune(_first(lines, "X"), _first(lines, "T"), "\n".join(lines) + "\n"))
    return tunes


def tidy(tune: Tune, fields: Fields = "musical") -> bytes:
    """Returns a tune as a separate ABC file, with the number 1.

    "musical" removes inaudible text, as IrishMAN does: only the fields X L M Q K P V U, the music, and the directives
    that are audible (%%MIDI or I:MIDI, propagate-accidentals, temperament) remain. "all" removes nothing. Macros are
    replaced by what they stand for.

    Raises:
        MediaError: a macro makes a line longer than 1 MiB.
    """
    lines: list[str] = []
    macros = Macros()
    for line in tune.text.splitlines():
        field = _FIELD.match(line)
        if field and field[1] == "X":
            lines.append("X:1")
        elif macros.define(line):
            continue
        elif fields == "all":
            lines.append(line if field or line.startswith("%") else macros.expand(line))
        elif _AUDIBLE.match(line):
            lines.append(line)
        elif line.startswith("%"):
            continue
        elif field:
            if field[1] in _MUSICAL:
                lines.append(f"{field[1]}:{_COMMENT.sub('', field[2]).strip()}")
        elif music := _COMMENT.sub("", line).strip():
            lines.append(macros.expand(music))
    return ("\n".join(lines) + "\n").encode()


def has_music(tune: Tune) -> bool:
    """Whether the tune has a line of music after the header, which ends with the first K: line.

    It may have no note letters: macros and drum patterns sound too. abc2midi tells whether it does.
    """
    lines = tune.text.splitlines()
    keys = [number for number, line in enumerate(lines) if line.startswith("K:")]
    body = lines[keys[0] + 1 :] if keys else lines
    return any(_COMMENT.sub("", line).strip() for line in body if not _FIELD.match(line))


def title_key(title: str) -> str:
    """Returns the key of all settings of a title: its words without articles and punctuation; "" if untitled."""
    words = re.findall(r"\w+", unicodedata.normalize("NFC", title).casefold().replace("'", ""))
    return " ".join(word for word in words if word not in ("the", "a", "an"))


def irish_collections() -> list[str]:
    """Returns the folders of `IRISH` in the installed music21.

    Raises:
        ImportError: music21 is missing.
        FileNotFoundError: music21 has no corpus.
    """
    # Without importing music21, which takes seconds.
    import importlib.util

    spec = importlib.util.find_spec("music21")
    if spec is None or spec.origin is None:
        optional("music21", "music", "the Irish tunes")
        raise ImportError('the Irish tunes need music21; install it with `pip install ".[music]"` in the repository')
    corpus = Path(spec.origin).parent / "corpus"
    missing = [name for name in IRISH if not (corpus / name).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"{corpus}: expected the folders {', '.join(missing)}; the corpus of this music21 is incomplete"
        )
    return [os.fspath(corpus / name) for name in IRISH]


def _file_header(text: str) -> list[str]:
    """The musical lines of the file header: fields, directives and comments at the top, up to an empty line."""
    lines = [line.rstrip() for line in text.lstrip("\n").split("\n\n")[0].splitlines()]
    if not all(line.startswith("%") or _FIELD.match(line) for line in lines):
        return []  # text about the collection
    return [line for line in lines if _AUDIBLE.match(line) or (_FIELD.match(line) and line[0] in _OF_ALL_TUNES)]


def _first(lines: list[str], letter: str) -> str:
    return next((line[2:].strip() for line in lines if line.startswith(f"{letter}:")), "")
