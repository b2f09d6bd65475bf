"""A page that shows generated files: images, players, scores and text, in one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from bgpt_fast.files import atomic_write
from bgpt_fast.tasks.media.audio import write_wav
from bgpt_fast.tasks.media.errors import MediaError
from bgpt_fast.tasks.media.images import pixels_as_png
from bgpt_fast.tasks.media_check import Checked, check
from bgpt_fast.tasks.music.abc2midi import abc_to_midi
from bgpt_fast.tasks.music.midi import Note, read_notes

_TEXT_SHOWN = 4000
_BYTES_SHOWN = 256
_SECONDS_PLAYED = 60.0
_RATE = 8000
_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; color: #222; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; }
figure { margin: 0; padding: .8rem; border: 1px solid #ccc; border-radius: .4rem; overflow: hidden; }
figure.bad { border-color: #c33; background: #fff6f6; }
figcaption { font-size: 13px; overflow-wrap: anywhere; }
img { width: 128px; image-rendering: pixelated; display: block; margin-bottom: .5rem; }
audio { width: 100%; margin-bottom: .5rem; }
svg { width: 100%; height: 7rem; background: #f4f6fa; margin-bottom: .5rem; }
pre { font-size: 12px; max-height: 16rem; overflow: auto; background: #f6f6f6; padding: .4rem; white-space: pre-wrap; }
b.truth { display: block; margin-top: .6rem; font-size: 13px; color: #555; }
"""


@dataclass(frozen=True)
class Exhibit:
    """A file to show.

    Args:
        name: its name; the extension says how it is shown.
        content: its bytes.
        caption: what else to say of it.
        truth: what stands beside it, as the file that it should be; None for nothing.
    """

    name: str
    content: bytes
    caption: str = ""
    truth: bytes | None = None


def write_gallery(path: str | os.PathLike[str], title: str, exhibits: Iterable[Exhibit]) -> list[Checked]:
    """Writes the page, and returns what the decoders say of each exhibit.

    Images show enlarged; audio has a player; MIDI has a piano roll and a player of plain tones, and so has ABC where
    abc2midi is installed, beside its text; what does not decode shows the reason and its first bytes.

    Args:
        path: the HTML file; one that is there is replaced.
        title: its heading.
        exhibits: what to show, in this order; all of it goes into the page, so choose some hundreds at most.

    Raises:
        ImportError: a decoder is missing.
        OSError: the page cannot be written.
    """
    figures, checked = [], []
    for exhibit in exhibits:
        said = check(exhibit.name, exhibit.content)
        checked.append(said)
        truth = ""
        if exhibit.truth is not None:
            other = check(exhibit.name, exhibit.truth)
            truth = f'<b class="truth">the truth</b>{_shown(other, exhibit.truth)}'
        words = " · ".join(filter(None, (exhibit.caption, said.says, said.detail)))
        name = html.escape(_plain(os.path.basename(exhibit.name)))
        figures.append(
            f'<figure class="{"bad" if said.decodes is False else "good"}">{_shown(said, exhibit.content)}'
            f"<figcaption><b>{name}</b><br>{html.escape(_plain(words))}</figcaption>{truth}</figure>"
        )
    known = sum(one.decodes is not None for one in checked)
    line = f"{len(checked)} files; {sum(bool(one.decodes) for one in checked)} of {known} that have a decoder decode."
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1><p>{line}</p>\n<main>\n"
        + "\n".join(figures)
        + "\n</main></body></html>\n"
    )
    with atomic_write(path) as file:
        file.write(page.encode())
    return checked


def _shown(said: Checked, content: bytes) -> str:
    if not said.decodes:
        dump = " ".join(f"{byte:02x}" for byte in content[:_BYTES_SHOWN])
        return f"<pre>{dump}{' …' * (len(content) > _BYTES_SHOWN)}</pre>"
    if said.medium == "image":
        # Browsers do not show every format that Pillow reads.
        return f'<img alt="" src="{_data("image/png", pixels_as_png(content))}">'
    if said.medium == "audio":
        return _player(content)
    if said.medium == "midi":
        return _score(content)
    text = f"<pre>{html.escape(_plain(content[:_TEXT_SHOWN].decode('utf-8', 'replace')))}</pre>"
    if said.medium == "abc":
        try:
            return _score(abc_to_midi(content).midi) + text
        except (MediaError, FileNotFoundError):
            return text
    return text


def _score(midi: bytes) -> str:
    notes = read_notes(midi)
    return piano_roll(notes) + _player(write_wav(synthesise(notes), _RATE))


def piano_roll(notes: list[Note]) -> str:
    """Notes as an SVG drawing: time to the right, pitch upwards."""
    low, high = (which(note.pitch for note in notes) for which in (min, max))
    length = max(note.end for note in notes) or 1.0
    bars = "".join(
        f'<rect x="{1000 * note.onset / length:.1f}" y="{high - note.pitch}" '
        f'width="{max(1000 * (note.end - note.onset) / length, 1.0):.1f}" height="0.9" fill="#2a5db0"/>'
        for note in notes
    )
    return f'<svg viewBox="0 0 1000 {high - low + 1}" preserveAspectRatio="none" role="img">{bars}</svg>'


def synthesise(notes: list[Note]) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """The first minute of notes as plain decaying tones: uint8 [n] at 8 kHz, 128 being silence."""
    length = min(max(note.end for note in notes) + 0.2, _SECONDS_PLAYED)
    wave = np.zeros(int(length * _RATE) + 1)
    for note in notes:
        start = int(note.onset * _RATE)
        time = np.arange(min(int((note.end - note.onset) * _RATE) + 1, max(len(wave) - start, 0))) / _RATE
        frequency = 440.0 * 2 ** ((note.pitch - 69) / 12)
        fade = np.minimum(1, (time[-1] - time) / 0.01) if len(time) else time
        wave[start : start + len(time)] += np.sin(2 * np.pi * frequency * time) * np.exp(-3 * time) * fade
    loudest = float(np.abs(wave).max()) or 1.0
    return (np.rint(wave / loudest * 120) + 128).astype(np.uint8)


def _player(content: bytes) -> str:
    return f'<audio controls preload="none" src="{_data("audio/wav", _as_wav(content))}"></audio>'


def _as_wav(content: bytes) -> bytes:
    if content.startswith(b"RIFF"):
        return content
    import soundfile

    samples, rate = soundfile.read(io.BytesIO(content), dtype="int16")
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV")
    return file.getvalue()


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _plain(text: str) -> str:
    """Text that UTF-8 can hold."""
    return text.encode("utf-8", "replace").decode()
