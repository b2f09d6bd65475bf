"""Checks whether generated files decode with Pillow, soundfile, as MIDI or UTF-8, or with abc2midi."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bgpt_fast.data import DataError
from bgpt_fast.data.file_index import Paths, SkipReport, as_roots, find_files, read_content
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
"""Reports and journals that the commands write at the top of an output folder, which are not checked."""

_NAMED = 20


@dataclass(frozen=True)
class Checked:
    """The result of decoding a file.

    Args:
        name: name of the file.
        medium: by its extension; "unknown" means that there is no decoder.
        decodes: whether the complete file decodes; None for an unknown medium.
        says: a description, such as "BMP 32×32 RGB", or the reason why it does not decode.
        detail: the decoder's message, if it failed.
    """

    name: str
    medium: Medium
    decodes: bool | None
    says: str
    detail: str = ""


@dataclass(frozen=True)
class CheckReport:
    """Counts of files that decode.

    Args:
        files: number of files.
        unknown: files without a decoder, which shares do not count.
        decoding: number of files that decode.
        by_extension: extension → (files, decoding).
        reasons: number of files by the reason why they do not decode.
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
        """Share of the files with a decoder that decode; None if there is no such file."""
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
    """Decodes a complete file with the decoder of its extension.

    ABC must have at least one tune; if abc2midi is installed, it must convert the first one to a MIDI file with notes.

    Args:
        name: the file's name.
        content: all bytes of the file.

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


def check_files(paths: Paths, progress: Callable[[int, int], None] | None = None) -> list[Checked]:
    """Checks every file below folders, by relative path. Unreadable, empty and too large files count as not decoding.

    The report of the command that wrote the folder is not checked.

    Args:
        paths: files and folders.
        progress: called with the numbers of files done and of all files.

    Raises:
        DataError: no such path, or no file.
        ImportError: a decoder is missing.
    """
    skips = SkipReport()
    checked = []
    files = find_files(as_roots(paths), skips)
    for done, file in enumerate(files):
        if progress is not None:
            progress(done, len(files))
        if os.fsdecode(file.relative) in OUR_REPORTS:
            continue
        content = read_content(file, skips)
        if content is not None:
            checked.append(check(file.path, content))
    checked += [Checked(name, medium_of(name), False, reason) for name, reason in skips.reasons.items()]
    if not checked:
        raise DataError(f"{as_roots(paths)}: expected files, got none")
    return checked


def summarise(checked: Iterable[Checked]) -> CheckReport:
    """Returns the counts of some results of `check`."""
    results = list(checked)
    extensions: dict[str, Counter[bool]] = {}
    for one in results:
        if one.decodes is not None:
            extensions.setdefault(extension_of(one.name).lower(), Counter())[one.decodes] += 1
    failing = [one for one in results if one.decodes is False]
    return CheckReport(
        files=len(results),
        unknown=sum(one.decodes is None for one in results),
        decoding=sum(bool(one.decodes) for one in results),
        by_extension={name: (counts.total(), counts[True]) for name, counts in sorted(extensions.items())},
        reasons=dict(Counter(one.says for one in failing).most_common()),
        first_failing=[_line(one) for one in failing[:_NAMED]],
    )


def medium_of(name: str) -> Medium:
    """Returns the medium of a file by its extension."""
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
