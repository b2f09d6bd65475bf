"""Generated files held against the real decoders: Pillow, soundfile, mido, UTF-8 and abc2midi."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bgpt_fast.data import DataError
from bgpt_fast.data.file_index import Paths, SkipReport, as_roots, find_files
from bgpt_fast.documents import extension_of
from bgpt_fast.folder_lock import LOCK
from bgpt_fast.tasks.media.audio import check_audio
from bgpt_fast.tasks.media.errors import MediaError
from bgpt_fast.tasks.media.images import check_image
from bgpt_fast.tasks.media.source import AUDIO, IMAGES, TEXTS
from bgpt_fast.tasks.media.text import decode_text
from bgpt_fast.tasks.music.abc2midi import abc_to_midi
from bgpt_fast.tasks.music.collections import split_collection
from bgpt_fast.tasks.music.midi import check_midi

Medium = Literal["image", "audio", "midi", "abc", "text", "unknown"]
OUR_REPORTS = ("report.json", "sources.jsonl", "made.jsonl", LOCK)
"""What the commands here write beside their files, at the top of a folder; no output to check."""

_NAMED = 20


@dataclass(frozen=True)
class Checked:
    """What a decoder says of a file.

    Args:
        name: the file.
        medium: what its extension says that it is; "unknown" means that nothing here decodes it.
        decodes: whether its decoder took all of it; None for an unknown medium.
        says: what the file is, as "BMP 32×32 RGB", or the reason why it does not decode.
        detail: the decoder's own words, if it failed.
    """

    name: str
    medium: Medium
    decodes: bool | None
    says: str
    detail: str = ""


@dataclass(frozen=True)
class CheckReport:
    """How many of some files decode.

    Args:
        files: all of them.
        unknown: files that nothing here decodes; they do not count in shares.
        decoding: files that decode.
        by_extension: extension → (files, decoding).
        reasons: why files do not decode, each with its number.
        first_failing: a few of them as "name: reason: detail".
    """

    files: int
    unknown: int
    decoding: int
    by_extension: dict[str, tuple[int, int]]
    reasons: dict[str, int]
    first_failing: list[str]

    @property
    def share(self) -> float | None:
        """Of the files that have a decoder, how many decode; None if there is no such file."""
        known = self.files - self.unknown
        return self.decoding / known if known else None

    def to_dict(self) -> dict[str, Any]:
        """All figures, JSON-ready."""
        return {
            "files": self.files,
            "unknown": self.unknown,
            "decoding": self.decoding,
            "share": self.share,
            "by_extension": {
                name: {"files": files, "decoding": decoding} for name, (files, decoding) in self.by_extension.items()
            },
            "reasons": self.reasons,
            "first_failing": self.first_failing,
        }


def check(name: str, content: bytes) -> Checked:
    """Decodes a content to its end with the decoder that its name's extension asks for.

    ABC has to hold one tune or more; where abc2midi is installed, it has to make a MIDI file with notes of the first.

    Args:
        name: a file's name; what comes behind its last dot counts.
        content: the whole file.

    Raises:
        ImportError: the decoder is missing.
    """
    medium = medium_of(name)
    if medium == "unknown":
        return Checked(name, medium, None, "no decoder for this extension")
    try:
        return Checked(name, medium, True, _DECODERS[medium](content))
    except MediaError as error:
        return Checked(name, medium, False, error.reason, error.detail)


def check_files(paths: Paths) -> list[Checked]:
    """Checks every file below folders, by relative path. Unreadable and empty files count as not decoding.

    The report of the command that wrote a folder is left out.

    Raises:
        DataError: no such path, or no file.
        ImportError: a decoder is missing.
    """
    skips = SkipReport()
    checked = []
    for file in find_files(as_roots(paths), skips):
        if os.fsdecode(file.relative) in OUR_REPORTS:
            continue
        try:
            with open(file.path, "rb") as stream:
                content = stream.read()
        except OSError:
            skips.add(file.path, "unreadable")
            continue
        checked.append(check(file.path, content))
    checked += [Checked(name, medium_of(name), False, reason) for name, reason in skips.reasons.items()]
    if not checked:
        raise DataError(f"{as_roots(paths)}: expected files, got none")
    return checked


def summarise(checked: Iterable[Checked]) -> CheckReport:
    """Counts what `check` said of files."""
    everything = list(checked)
    extensions: dict[str, Counter[bool]] = {}
    for one in everything:
        if one.decodes is not None:
            extensions.setdefault(extension_of(one.name).lower(), Counter())[one.decodes] += 1
    failing = [one for one in everything if one.decodes is False]
    return CheckReport(
        files=len(everything),
        unknown=sum(one.decodes is None for one in everything),
        decoding=sum(bool(one.decodes) for one in everything),
        by_extension={name: (counts.total(), counts[True]) for name, counts in sorted(extensions.items())},
        reasons=dict(Counter(one.says for one in failing).most_common()),
        first_failing=[_line(one) for one in failing[:_NAMED]],
    )


def medium_of(name: str) -> Medium:
    """What a name's extension says that a file is."""
    extension = extension_of(name).lower()
    named: Sequence[tuple[Medium, frozenset[str]]] = (
        ("abc", frozenset({"abc"})),
        ("midi", frozenset({"mid", "midi"})),
        ("image", IMAGES),
        ("audio", AUDIO),
        ("text", TEXTS),
    )
    return next((medium for medium, extensions in named if extension in extensions), "unknown")


def _check_text(content: bytes) -> str:
    if not content:
        raise MediaError("empty")
    text = decode_text(content)
    return f"UTF-8 text, {len(text)} characters"


def _check_abc(content: bytes) -> str:
    decode_text(content)
    tunes = split_collection(content)
    if not any(line.startswith("K:") for line in tunes[0].text.splitlines()):
        raise MediaError("no ABC tune", "no line begins with K:")
    if shutil.which("abc2midi") is None:
        return f"ABC, {len(tunes)} tune{'s' * (len(tunes) > 1)}, not tried with abc2midi"
    return "ABC, by abc2midi " + check_midi(abc_to_midi(content).midi)


_DECODERS = {
    "image": check_image,
    "audio": check_audio,
    "midi": check_midi,
    "abc": _check_abc,
    "text": _check_text,
}


def _line(one: Checked) -> str:
    return f"{one.name}: {one.says}" + (f": {one.detail}" if one.detail else "")
