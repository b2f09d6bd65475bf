"""Scores of converted files: bytes equal to the true file's, whether the file decodes, and matched notes."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from bgpt_fast.documents import extension_of
from bgpt_fast.tasks.media.errors import MediaError
from bgpt_fast.tasks.media_check import check
from bgpt_fast.tasks.music.abc2midi import abc_to_midi
from bgpt_fast.tasks.music.midi import Note, read_notes

ONSET_TOLERANCE = 0.05
"""Onset tolerance in seconds, the usual one for music transcription (mir_eval's default)."""


class Conversion(NamedTuple):
    """A predicted file and the true one; both have the extension of `name`."""

    name: str
    predicted: bytes
    truth: bytes


@dataclass(frozen=True)
class NoteScore:
    """Notes that were matched one to one: same pitch, onsets no further apart than the tolerance.

    Args:
        matched: number of matched pairs.
        predicted: number of predicted notes.
        true: number of true notes.
    """

    matched: int
    predicted: int
    true: int

    @property
    def precision(self) -> float | None:
        """Share of the predicted notes that are matched; None without any."""
        return self.matched / self.predicted if self.predicted else None

    @property
    def recall(self) -> float | None:
        """Share of the true notes that are matched; None without any."""
        return self.matched / self.true if self.true else None

    @property
    def f1(self) -> float | None:
        """The harmonic mean of precision and recall; None without any notes."""
        both = self.predicted + self.true
        return 2 * self.matched / both if both else None

    def to_dict(self) -> dict[str, Any]:
        """Counts and shares, JSON-ready."""
        return {**asdict(self), "precision": self.precision, "recall": self.recall, "f1": self.f1}


@dataclass(frozen=True)
class FileScore:
    """The scores of one file.

    Args:
        name: name of the file.
        is_exact: whether all bytes equal the true file's.
        decodes: whether it decodes; None without a decoder.
        bytes_right: number of bytes before the first wrong one.
        true_bytes: number of bytes of the true file.
        notes: matched notes; None if the files are not music, or the true notes cannot be read.
    """

    name: str
    is_exact: bool
    decodes: bool | None
    bytes_right: int
    true_bytes: int
    notes: NoteScore | None


@dataclass(frozen=True)
class ConversionReport:
    """The scores of a set of conversions. A file that does not decode has no predicted notes.

    Args:
        files: the scores of each file.
        onset_tolerance: in seconds.
    """

    files: tuple[FileScore, ...]
    onset_tolerance: float

    @property
    def exact(self) -> float:
        """Share of the files whose bytes are all right."""
        return sum(file.is_exact for file in self.files) / len(self.files)

    @property
    def bytes_right(self) -> float | None:
        """Share of the true bytes before the first wrong byte of their file; None without any."""
        true = sum(file.true_bytes for file in self.files)
        return sum(file.bytes_right for file in self.files) / true if true else None

    @property
    def decoding(self) -> float | None:
        """Share of the files with a decoder that decode; None without any."""
        known = [file.decodes for file in self.files if file.decodes is not None]
        return sum(known) / len(known) if known else None

    @property
    def notes(self) -> NoteScore | None:
        """Sums over the notes of all files; None without music."""
        scores = [file.notes for file in self.files if file.notes is not None]
        if not scores:
            return None
        return NoteScore(*(sum(getattr(score, name) for score in scores) for name in ("matched", "predicted", "true")))

    @property
    def mean_file_f1(self) -> float | None:
        """The unweighted mean of the files' F1; None without music."""
        scores = [file.notes.f1 for file in self.files if file.notes is not None and file.notes.f1 is not None]
        return sum(scores) / len(scores) if scores else None

    def to_dict(self) -> dict[str, Any]:
        """All figures, JSON-ready, with those of each file."""
        notes = self.notes
        return {
            "files": len(self.files),
            "exact": self.exact,
            "bytes_right": self.bytes_right,
            "decoding": self.decoding,
            "notes": notes and notes.to_dict(),
            "mean_file_f1": self.mean_file_f1,
            "onset_tolerance": self.onset_tolerance,
            "by_file": [
                {**asdict(file), "notes": None if file.notes is None else file.notes.to_dict()} for file in self.files
            ],
        }

    def rows(self) -> list[tuple[str, str]]:
        """Returns the figures as rows of a table; shares with their counts."""
        notes = self.notes
        known = [file.decodes for file in self.files if file.decodes is not None]
        true_bytes = sum(file.true_bytes for file in self.files)
        rows = [
            ("files", f"{len(self.files):,}"),
            ("right to the last byte", _share(sum(file.is_exact for file in self.files), len(self.files))),
            ("bytes before a file's first wrong one", _share(sum(file.bytes_right for file in self.files), true_bytes)),
            ("that decode", _share(sum(known), len(known))),
        ]
        if notes is not None:
            within = f"within {1000 * self.onset_tolerance:g} ms"
            rows += [
                (f"notes right: precision, {within}", _share(notes.matched, notes.predicted)),
                (f"notes right: recall, {within}", _share(notes.matched, notes.true)),
                ("notes right: F1", _percent(notes.f1)),
                ("mean F1 of a file", _percent(self.mean_file_f1)),
            ]
        return rows


def evaluate_conversion(
    conversions: Iterable[Conversion], *, onset_tolerance: float = ONSET_TOLERANCE
) -> ConversionReport:
    """Compares converted files with the true ones: bytes, decoders and notes.

    The notes of ABC are those of abc2midi, so that different notations of the same music count as equal.

    Args:
        conversions: predicted and true files, at least one.
        onset_tolerance: in seconds.

    Raises:
        ValueError: no conversion, or a negative tolerance.
        ImportError: a decoder is missing.
        FileNotFoundError: ABC files without abc2midi.
    """
    if not onset_tolerance >= 0:
        raise ValueError(f"evaluate_conversion: onset_tolerance: expected 0 s or more, got {onset_tolerance}")
    files = tuple(_score(conversion, onset_tolerance) for conversion in conversions)
    if not files:
        raise ValueError("evaluate_conversion: conversions: expected at least one, got none")
    return ConversionReport(files, onset_tolerance)


def match_notes(predicted: Iterable[Note], true: Iterable[Note], onset_tolerance: float) -> NoteScore:
    """Returns the largest one-to-one matching of notes of equal pitch with onsets within the tolerance (inclusive)."""
    onsets: tuple[defaultdict[int, list[float]], ...] = (defaultdict(list), defaultdict(list))
    for notes, by_pitch in zip((predicted, true), onsets, strict=True):
        for note in notes:
            by_pitch[note.pitch].append(note.onset)
    ours, theirs = onsets
    matched = sum(_matched(sorted(ours[pitch]), sorted(theirs[pitch]), onset_tolerance) for pitch in ours)
    return NoteScore(matched, *(sum(map(len, by_pitch.values())) for by_pitch in onsets))


def _matched(ours: list[float], theirs: list[float], tolerance: float) -> int:
    # With one tolerance for all notes, the greedy choice of the earliest free note is optimal.
    count = place = 0
    for onset in ours:
        # The 1e-9 s allow for rounding errors in sums of ticks.
        place = max(place, bisect_left(theirs, onset - tolerance - 1e-9))
        if place < len(theirs) and theirs[place] <= onset + tolerance + 1e-9:
            count, place = count + 1, place + 1
    return count


def _score(conversion: Conversion, onset_tolerance: float) -> FileScore:
    name, predicted, truth = conversion
    pairs = enumerate(zip(predicted, truth, strict=False))
    bytes_right = next((place for place, (a, b) in pairs if a != b), min(len(predicted), len(truth)))
    true_notes = _notes(name, truth)
    notes = None
    if true_notes is not None:
        notes = match_notes(_notes(name, predicted) or [], true_notes, onset_tolerance)
    return FileScore(name, predicted == truth, check(name, predicted).decodes, bytes_right, len(truth), notes)


def _notes(name: str, content: bytes) -> list[Note] | None:
    extension = extension_of(name).lower()
    try:
        if extension == "abc":
            return read_notes(abc_to_midi(content).midi)
        return read_notes(content) if extension in ("mid", "midi") else None
    except MediaError:
        return None


def _share(count: int, total: int) -> str:
    return f"{_percent(count / total)} ({count:,} of {total:,})" if total else "–"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f} %"
