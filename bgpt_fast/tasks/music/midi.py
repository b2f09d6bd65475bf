"""MIDI files as notes."""

from __future__ import annotations

import io
from collections import defaultdict, deque
from typing import NamedTuple

from bgpt_fast.tasks.media.errors import MediaError, optional

_MOST_SECONDS = 24 * 3600


class Note(NamedTuple):
    """A note: onset and end in seconds, and MIDI pitch (60 is middle C)."""

    onset: float
    end: float
    pitch: int


def read_notes(content: bytes) -> list[Note]:
    """Returns the notes of all tracks and channels of a MIDI file, by onset and pitch; tempo changes apply.

    A note without an end lasts until the end of the file.

    Raises:
        MediaError: it does not decode, or lasts longer than a day.
        ImportError: mido is missing.
    """
    mido = optional("mido", "music", "reading MIDI")
    if not content.startswith(b"MThd"):
        raise MediaError("no MIDI file", "it does not begin with MThd")
    try:
        song = mido.MidiFile(file=io.BytesIO(content))
        return _notes(song)
    except MediaError:
        raise
    except Exception as error:  # mido raises all kinds of errors on damaged files
        raise MediaError("damaged MIDI file", f"{type(error).__name__} {error}".strip()) from error


def _notes(song: object) -> list[Note]:
    now = 0.0
    notes: list[Note] = []
    sounding: defaultdict[tuple[int, int], deque[float]] = defaultdict(deque)
    for message in song:  # type: ignore[attr-defined]  # mido's own iteration, in seconds
        now += message.time
        if not 0 <= now < _MOST_SECONDS:
            raise MediaError("MIDI file longer than a day, or with negative times")
        if message.type not in ("note_on", "note_off"):
            continue
        key = (message.channel, message.note)
        if message.type == "note_on" and message.velocity:
            sounding[key].append(now)
        elif sounding[key]:
            notes.append(Note(sounding[key].popleft(), now, message.note))
    notes += [Note(onset, now, pitch) for (_, pitch), onsets in sounding.items() for onset in onsets]
    return sorted(notes, key=lambda note: (note.onset, note.pitch))


def check_midi(content: bytes) -> str:
    """Decodes a MIDI file; returns a description, such as "MIDI 24 notes, 6.0 s".

    Raises:
        MediaError: it does not decode, or has no notes.
        ImportError: mido is missing.
    """
    notes = read_notes(content)
    if not notes:
        raise MediaError("MIDI file without a note")
    return f"MIDI {len(notes)} notes, {max(note.end for note in notes):.1f} s"
