"""A page that shows generated files: images, audio players, piano rolls and text in one self-contained HTML file."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from bgpt_fast.files import atomic_write
from bgpt_fast.tasks.media.audio import audio_as_wav, write_wav
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
        name: its name; the extension decides how it is shown.
        content: its bytes.
        caption: additional text below it.
        truth: the true file to show next to it; None if there is none.
    """

    name: str
    content: bytes
    caption: str = ""
    truth: bytes | None = None


def write_gallery(path: str | os.PathLike[str], title: str, exhibits: Iterable[Exhibit]) -> list[Checked]:
    """Writes the page; returns the result of `check` for each exhibit.

    Images are enlarged; audio has a player; MIDI has a piano roll and a player of plain tones; so does ABC, next to its
    text, if abc2midi is installed; files that do not decode show the reason and their first bytes.

    Args:
        path: the HTML file; an existing one is replaced.
        title: its heading.
        exhibits: in the page's order; their contents become part of the page, so a few hundred are the limit.

    Raises:
        ImportError: a decoder is missing.
        OSError: the page cannot be written.
    """
    figures, results = [], []
    for exhibit in exhibits:
        checked = check(exhibit.name, exhibit.content)
        results.append(checked)
        truth = ""
        if exhibit.truth is not None:
            other = check(exhibit.name, exhibit.truth)
            truth = f'<b class="truth">the true file</b>{_content_html(other, exhibit.truth)}'
        description = " · ".join(filter(None, (exhibit.caption, checked.says, checked.detail)))
        name = html.escape(_plain(os.path.basename(exhibit.name)))
        figures.append(
            f'<figure class="{"bad" if checked.decodes is False else "good"}">{_content_html(checked, exhibit.content)}'
            f"<figcaption><b>{name}</b><br>{html.escape(_plain(description))}</figcaption>{truth}</figure>"
        )
    known = sum(one.decodes is not None for one in results)
    line = f"{len(results)} files; {sum(bool(one.decodes) for one in results)} of {known} that have a decoder decode."
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1><p>{line}</p>\n<main>\n"
        + "\n".join(figures)
        + "\n</main></body></html>\n"
    )
    with atomic_write(path) as file:
        file.write(page.encode())
    return results


def _content_html(checked: Checked, content: bytes) -> str:
    if not checked.decodes:
        dump = " ".join(f"{byte:02x}" for byte in content[:_BYTES_SHOWN])
        return f"<pre>{dump}{' …' * (len(content) > _BYTES_SHOWN)}</pre>"
    if checked.medium == "image":
        # Browsers do not support every format that Pillow reads.
        return f'<img alt="" src="{_data("image/png", pixels_as_png(content))}">'
    if checked.medium == "audio":
        return _player(content)
    if checked.medium == "midi":
        return _score(content)
    text = f"<pre>{html.escape(_plain(content[:_TEXT_SHOWN].decode('utf-8', 'replace')))}</pre>"
    if checked.medium == "abc":
        try:
            return _score(abc_to_midi(content).midi) + text
        except (MediaError, FileNotFoundError):
            return text
    return text


def _score(midi: bytes) -> str:
    notes = read_notes(midi)
    return piano_roll(notes) + _player(write_wav(synthesise(notes), _RATE))


def piano_roll(notes: list[Note]) -> str:
    """Returns notes as an SVG image: time to the right, pitch upwards."""
    low, high = (which(note.pitch for note in notes) for which in (min, max))
    length = max(note.end for note in notes) or 1.0
    bars = "".join(
        f'<rect x="{1000 * note.onset / length:.1f}" y="{high - note.pitch}" '
        f'width="{max(1000 * (note.end - note.onset) / length, 1.0):.1f}" height="0.9" fill="#2a5db0"/>'
        for note in notes
    )
    return f'<svg viewBox="0 0 1000 {high - low + 1}" preserveAspectRatio="none" role="img">{bars}</svg>'


def synthesise(notes: list[Note]) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Returns the first minute of notes as decaying sines: uint8 [n] at 8 kHz, 128 is silence."""
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
    wav = content if content.startswith(b"RIFF") else audio_as_wav(content)
    return f'<audio controls preload="none" src="{_data("audio/wav", wav)}"></audio>'


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _plain(text: str) -> str:
    """Replaces lone surrogates."""
    return text.encode("utf-8", "replace").decode()
