"""Seeded random media files, generated in memory."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

# Tests that import this module are skipped if a package is missing; pip install '.[test]' installs them all.
mido = pytest.importorskip("mido")
soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")
Image = pytest.importorskip("PIL.Image")


def png(seed: int, size: tuple[int, int] = (20, 12), mode: str = "RGB", file_format: str = "PNG", **save: Any) -> bytes:
    """A random image of any mode and format."""
    shape = (size[1], size[0], len(mode)) if len(mode) > 1 else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels, mode).save(file, file_format, **save)
    return file.getvalue()


def sound(seed: int, frames: int, rate: int = 16000, channels: int = 1, **write: Any) -> bytes:
    """A random tone with noise, by default as FLAC."""
    draw = np.random.default_rng(seed)
    time = np.arange(frames)[:, None] / rate
    wave = 0.5 * np.sin(2 * np.pi * draw.uniform(200, 900, channels) * time) + draw.normal(0, 0.01, (frames, channels))
    file = io.BytesIO()
    soundfile.write(file, wave, rate, **{"format": "FLAC", **write})
    return file.getvalue()


def midi(notes: list[tuple[int, int, int]], tempo: int = 500_000) -> bytes:
    """A MIDI file of (onset in ticks, length in ticks, pitch), 480 ticks a beat of `tempo` microseconds."""
    events = sorted(
        [(onset, 1, pitch) for onset, _, pitch in notes]
        + [(onset + length, 0, pitch) for onset, length, pitch in notes]
    )
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=tempo)])
    now = 0
    for tick, on, pitch in events:
        track.append(mido.Message("note_on" if on else "note_off", note=pitch, velocity=64, time=tick - now))
        now = tick
    file = io.BytesIO()
    mido.MidiFile(tracks=[track], ticks_per_beat=480).save(file=file)
    return file.getvalue()
