"""Macros of ABC 2.1, which abc2midi does not know: "m:NAME=TEXT" replaces NAME in the music that follows.

In a transposing macro, NAME has an "n" for any note, and the letters h to z in TEXT are notes relative to it: m is the
next lower one, o the next higher one. Source: the ABC standard 2.1, section 9.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from bgpt_fast.tasks.media.errors import MediaError

_DEFINITION = re.compile(r"^m: *(.*?) *= *(.*)$")
_STEPS = "CDEFGABcdefgab"
_NOTE = r"([A-Ga-g][,']*)"
_MOST_BYTES = 1 << 20


class Macros:
    """The macros that are defined so far."""

    def __init__(self) -> None:
        self._replacements: list[Callable[[str], str]] = []

    def define(self, line: str) -> bool:
        """Adds the macro of a line "m:NAME=TEXT"; False if it is another line."""
        match = _DEFINITION.match(line)
        if match is None or not match[1]:
            return False
        name, text = match.groups()
        if "n" in name:
            pattern = re.compile(_NOTE.join(map(re.escape, name.split("n", 1))))
            self._replacements.append(lambda music: pattern.sub(lambda note: _transposed(text, note[1]), music))
        else:
            self._replacements.append(lambda music: music.replace(name, text))
        return True

    def expand(self, music: str) -> str:
        """Returns a line of music in which the names are replaced by their texts.

        Raises:
            MediaError: it becomes longer than 1 MiB.
        """
        for replace in self._replacements:
            music = replace(music)
            if len(music) > _MOST_BYTES:
                raise MediaError("ABC macros too long", f"over {_MOST_BYTES:,} characters in a line")
        return music


def _transposed(text: str, note: str) -> str:
    place = _STEPS.index(note[0]) + 7 * (note.count("'") - note.count(","))
    return re.sub("[h-z]", lambda letter: _named(place + ord(letter[0]) - ord("n")), text)


def _named(place: int) -> str:
    if place >= 7:
        octave = place // 7 - 1
        return _STEPS[7 + place % 7] + "'" * octave
    return _STEPS[place % 7] + "," * -(place // 7)
