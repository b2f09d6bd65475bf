"""What decoders say of files, and the page that shows them."""

from __future__ import annotations

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from support.cli import CommandLine
from support.media import midi, png, sound

from bgpt_fast.data import DataError
from bgpt_fast.tasks.media import standard_audio, standard_image
from bgpt_fast.tasks.media_check import check, check_files, summarise
from bgpt_fast.tasks.media_gallery import Exhibit, piano_roll, synthesise, write_gallery
from bgpt_fast.tasks.music import Note

TUNE = b"X:1\nL:1/8\nK:C\nCDEF GABc|\n"
GOOD = {
    "a.bmp": standard_image(png(0)),
    "a.webp": png(0, file_format="WEBP"),
    "a.wav": standard_audio(sound(0, 9000))[0],
    "a.flac": sound(0, 9000),
    "a.mid": midi([(0, 480, 60)]),
    "a.txt": "Grüße".encode(),
    "a.abc": TUNE,
}


@pytest.mark.parametrize("name", GOOD)
def test_good_files_decode_and_their_halves_do_not(name: str) -> None:
    said = check(name, GOOD[name])
    assert said.decodes, said
    if name == "a.txt":
        half = GOOD[name][:3]  # within a character
    elif name == "a.abc":
        half = GOOD[name][:10]
    else:
        half = GOOD[name][: len(GOOD[name]) // 2]
    assert check(name, half).decodes is False
    assert check(name, b"").decodes is False
    assert check(name, bytes(range(256)) * 9).decodes is False


def test_descriptions_of_files() -> None:
    assert check("x.bmp", GOOD["a.bmp"]).says == "BMP 32×32 RGB"
    assert check("x.wav", GOOD["a.wav"]).says == "WAV PCM_U8 8000 Hz, 1 channel, 1.000 s"
    assert check("x.mid", GOOD["a.mid"]).says == "MIDI 1 notes, 0.5 s"
    assert check("x.mid", midi([])).says == "MIDI file without a note"
    assert check("x.bin", b"").decodes is None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", GOOD)
def test_damaged_files_raise_no_other_error(name: str, seed: int) -> None:
    draw = np.random.default_rng(seed)
    for _ in range(15):
        content = bytearray(GOOD[name])
        for at in draw.integers(0, len(content), 3):
            content[at] = draw.integers(256)
        assert check(name, bytes(content)).decodes in (True, False)


def test_counting(tmp_path: Path) -> None:
    for name, content in GOOD.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "half.bmp").write_bytes(GOOD["a.bmp"][:99])
    (tmp_path / "empty.bmp").write_bytes(b"")
    (tmp_path / "x.bin").write_bytes(b"1")
    report = summarise(check_files(tmp_path))
    assert (report.files, report.unknown, report.decoding) == (10, 1, 7)
    assert report.share == 7 / 9
    assert report.by_extension["bmp"] == (3, 1)
    assert report.reasons == {"damaged image": 1, "empty": 1}
    assert summarise([]).share is None
    with pytest.raises(DataError, match="nowhere"):
        check_files(tmp_path / "nowhere")


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_gallery_is_self_contained(tmp_path: Path) -> None:
    exhibits = [Exhibit(name, content, truth=GOOD[name]) for name, content in GOOD.items()]
    exhibits += [Exhibit("half.bmp", GOOD["a.bmp"][:99]), Exhibit("<b>\udcff.txt", b"<script>alert(1)</script>")]
    checked = write_gallery(tmp_path / "page.html", "A <title>", exhibits)
    assert [one.decodes for one in checked] == [True] * 7 + [False, True]
    text = (tmp_path / "page.html").read_text()
    page = _Page()
    page.feed(text)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("figure") == 9
    assert tags.count("img") == 4
    assert "script" not in tags, "contents are escaped"
    assert "&lt;script&gt;" in text
    scores = 2 * (1 + (shutil.which("abc2midi") is not None))
    assert tags.count("svg") == scores
    assert tags.count("audio") == 4 + scores
    sources = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert all(str(source).startswith("data:") for source in sources)
    assert not re.search(r"https?://", text)
    assert "damaged image" in text


def test_scores_and_tones() -> None:
    notes = [Note(0.0, 0.5, 60), Note(0.5, 1.0, 69)]
    assert piano_roll(notes).count("<rect") == 2
    samples = synthesise(notes).astype(float) - 128
    second = np.abs(np.fft.rfft(samples[4000:8000]))
    assert second.argmax() * 2 == 440
    assert len(synthesise([Note(0.0, 9999.0, 60), Note(5000.0, 9999.0, 70)])) <= 60 * 8000 + 1


def test_the_command(tmp_path: Path, cli: CommandLine) -> None:
    for folder in ("made", "true"):
        (tmp_path / folder / "sub").mkdir(parents=True)
    (tmp_path / "true/sub/a.mid").write_bytes(midi([(0, 480, 60), (480, 480, 62)]))
    (tmp_path / "made/sub/a.mid").write_bytes(midi([(0, 480, 60), (480, 480, 63)]))
    (tmp_path / "true/missing.mid").write_bytes(midi([(0, 480, 60), (480, 480, 62)]))
    (tmp_path / "true/sub/a.abc").write_bytes(TUNE)  # of another kind than what was made
    (tmp_path / "made/report.json").write_text("{}")
    (tmp_path / "made/lonely.mid").write_bytes(b"MThd")
    (tmp_path / "made" / os.fsdecode(b"odd\xff\n.txt")).write_bytes(b"\xff")
    words = ["data", "check", tmp_path / "made", "--truth", tmp_path / "true"]
    words += ["--output", tmp_path / "check.json", "--gallery", tmp_path / "page.html"]
    output = cli.run(*words).out
    assert "1 damaged MIDI file" in output
    assert "33.33 %" in output
    figures = json.loads((tmp_path / "check.json").read_bytes())
    assert figures["share"] == 1 / 3
    assert figures["conversion"]["notes"] == {
        "matched": 1,
        "predicted": 2,
        "true": 4,
        "precision": 0.5,
        "recall": 0.25,
        "f1": 1 / 3,
    }
    assert figures["without_truth"][0] == "lonely.mid"
    assert figures["missing"] == ["missing.mid"]
    assert "the true file" in (tmp_path / "page.html").read_text()
    assert cli.json(*words)["files"] == 3
    cli.fails("expected one folder", "data", "check", tmp_path / "true", "--truth", tmp_path / "none")
