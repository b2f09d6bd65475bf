"""MIDI files as notes. Source: Standard MIDI Files 1.0.

Not mido: it takes quadratic time for long integers, six times as long for others, and gives no times for files of type
2 or with a division in SMPTE frames.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections import defaultdict, deque
from typing import NamedTuple

from bgpt_fast.tasks.media.errors import MediaError

_MOST_BYTES = 1 << 23
_MOST_SECONDS = 24 * 3600
_DEFAULT_TEMPO = 500_000
_FRAMES_A_SECOND = {24: 24.0, 25: 25.0, 29: 30_000 / 1001, 30: 30.0}
_SYSTEM_DATA_BYTES = {0xF1: 1, 0xF2: 2, 0xF3: 1, 0xF6: 0, 0xF8: 0, 0xFA: 0, 0xFB: 0, 0xFC: 0, 0xFE: 0}


class Note(NamedTuple):
    """A note: onset and end in seconds, and MIDI pitch (60 is middle C)."""

    onset: float
    end: float
    pitch: int


class _Track(NamedTuple):
    """Notes (tick, channel and pitch, whether it begins), tempos (tick, microseconds a beat), and the last tick."""

    notes: list[tuple[int, tuple[int, int], bool]]
    tempos: list[tuple[int, int]]
    end: int


def read_notes(content: bytes) -> list[Note]:
    """Returns the notes of all tracks and channels of a MIDI file, by onset and pitch; tempo changes apply.

    A note without an end lasts until the end of the file. The tracks of a file of type 2 are played one after another.

    Raises:
        MediaError: it does not decode, is over 8 MiB, or lasts longer than a day.
    """
    if not content.startswith(b"MThd"):
        raise MediaError("no MIDI file", "it does not begin with MThd")
    if len(content) > _MOST_BYTES:
        raise MediaError("MIDI file too large", f"{len(content):,} bytes; at most {_MOST_BYTES:,}")
    try:
        kind, division, tracks = _tracks(content)
    except (IndexError, struct.error) as error:
        raise _damaged("it ends within an event") from error
    if kind != 2:
        tracks = [
            _Track(
                sorted((event for track in tracks for event in track.notes), key=lambda event: event[0]),
                sorted((tempo for track in tracks for tempo in track.tempos), key=lambda tempo: tempo[0]),
                max((track.end for track in tracks), default=0),
            )
        ]
    notes: list[Note] = []
    start = 0.0
    for track in tracks:
        clock = _Clock(division, track.tempos)
        end = start + clock.seconds(track.end)
        if end >= _MOST_SECONDS:
            raise MediaError("MIDI file longer than a day")
        notes += _notes(track, clock, start, end)
        start = end
    return sorted(notes, key=lambda note: (note.onset, note.pitch))


def check_midi(content: bytes) -> str:
    """Decodes a MIDI file; returns a description, such as "MIDI 24 notes, 6.0 s".

    Raises:
        MediaError: it does not decode, or has no notes.
    """
    notes = read_notes(content)
    if not notes:
        raise MediaError("MIDI file without a note")
    return f"MIDI {len(notes)} notes, {max(note.end for note in notes):.1f} s"


class _Clock:
    """The time of each tick.

    Args:
        division: ticks a beat; negative: frames a second, and in the lower byte ticks a frame.
        tempos: (tick, microseconds a beat) in order; ignored for a division in frames.
    """

    def __init__(self, division: int, tempos: list[tuple[int, int]]) -> None:
        if division < 0:
            rate = _FRAMES_A_SECOND.get(-(division >> 8))
            if rate is None or not division & 0xFF:
                raise _damaged(f"division {division & 0xFFFF:#06x}")
            self._ticks, self._starts, self._lengths = [0], [0.0], [1 / (rate * (division & 0xFF))]
            return
        if not division:
            raise _damaged("no ticks in a beat")
        self._ticks, self._starts = [0], [0.0]
        self._lengths = [_DEFAULT_TEMPO * 1e-6 / division]
        for tick, tempo in tempos:
            self._starts.append(self.seconds(tick))
            self._ticks.append(tick)
            self._lengths.append(tempo * 1e-6 / division)

    def seconds(self, tick: int) -> float:
        """The time of a tick after the start."""
        place = bisect_right(self._ticks, tick) - 1
        return self._starts[place] + (tick - self._ticks[place]) * self._lengths[place]


def _notes(track: _Track, clock: _Clock, start: float, end: float) -> list[Note]:
    notes: list[Note] = []
    sounding: defaultdict[tuple[int, int], deque[float]] = defaultdict(deque)
    for tick, key, begins in track.notes:
        if begins:
            sounding[key].append(start + clock.seconds(tick))
        elif sounding[key]:
            notes.append(Note(sounding[key].popleft(), start + clock.seconds(tick), key[1]))
    notes += [Note(onset, end, pitch) for (_, pitch), onsets in sounding.items() for onset in onsets]
    return notes


def _tracks(content: bytes) -> tuple[int, int, list[_Track]]:
    """Returns the type, the division and the tracks; chunks of other kinds are ignored."""
    size, kind, count, division = struct.unpack_from(">IHHh", content, 4)
    if kind > 2 or size < 6:
        raise _damaged(f"type {kind}" if kind > 2 else f"a header of {size} bytes")
    tracks: list[_Track] = []
    place = 8 + size
    while len(tracks) < count:
        name, size = struct.unpack_from(">4sI", content, place)
        place += 8
        if place + size > len(content):
            raise _damaged(f"{len(content):,} bytes of {place + size:,}")
        if name == b"MTrk":
            tracks.append(_track(content[place : place + size]))
        place += size
    return kind, division, tracks


def _track(data: bytes) -> _Track:
    notes: list[tuple[int, tuple[int, int], bool]] = []
    tempos: list[tuple[int, int]] = []
    place = tick = status = 0
    while place < len(data):
        delta, place = _integer(data, place)
        tick += delta
        if data[place] >= 0x80:
            event = data[place]
            place += 1
        else:
            event = status  # "running status"
        if event == 0xFF:
            kind = data[place]
            size, place = _integer(data, place + 1)
            if kind == 0x2F:
                break
            if kind == 0x51 and size == 3:
                tempos.append((tick, int.from_bytes(data[place : place + 3], "big")))
            place += size
        elif event in (0xF0, 0xF7):
            size, place = _integer(data, place)
            place += size
        elif event >= 0xF0:
            if event not in _SYSTEM_DATA_BYTES:
                raise _damaged(f"status byte {event:#04x}")
            place += _SYSTEM_DATA_BYTES[event]
        elif event >= 0x80:
            status = event
            first = data[place]
            second = 0 if 0xC0 <= event < 0xE0 else data[place + 1]
            if first >= 0x80 or second >= 0x80:
                raise _damaged("data byte over 127")
            place += 1 if 0xC0 <= event < 0xE0 else 2
            if event < 0xA0:
                notes.append((tick, (event & 0xF, first), event >= 0x90 and second > 0))
        else:
            raise _damaged("running status without a status")
    if place > len(data):
        raise _damaged("an event longer than its track")
    return _Track(notes, tempos, tick)


def _integer(data: bytes, place: int) -> tuple[int, int]:
    """Returns an integer of 7 bits a byte, at most 4 bytes, and the place behind it."""
    value = 0
    for position in range(place, place + 4):
        byte = data[position]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, position + 1
    raise _damaged("an integer of more than 4 bytes")


def _damaged(detail: str) -> MediaError:
    return MediaError("damaged MIDI file", detail)
