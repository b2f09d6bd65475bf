"""Images, audio and text become standard files, byte by byte as said; damaged ones are named."""

from __future__ import annotations

import contextlib
import io
import itertools
import struct
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from support.media import png, sound

from bgpt_fast.memory import is_out_of_memory
from bgpt_fast.tasks.media import (
    MediaError,
    MediaOptions,
    spectrogram_image,
    standard_audio,
    standard_image,
    standard_text,
)
from bgpt_fast.tasks.media.audio import clips, write_wav
from bgpt_fast.tasks.media.images import check_image, pixels_as_png
from bgpt_fast.tasks.media.source import kind_of, standard_files
from bgpt_fast.tasks.media.text import cut_text

soundfile = pytest.importorskip("soundfile")


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def reason(function: object, *arguments: object) -> str:
    with pytest.raises(MediaError) as caught:
        function(*arguments)  # type: ignore[operator]
    return caught.value.reason


@pytest.mark.parametrize(
    ("file_format", "mode"),
    [("PNG", "RGB"), ("PNG", "L"), ("GIF", "L"), ("WEBP", "RGB"), ("JPEG", "RGB"), ("TIFF", "RGBA"), ("PPM", "RGB")],
)
def test_images_of_any_format_become_the_papers_bmp(file_format: str, mode: str) -> None:
    standard = standard_image(png(0, (50, 40), mode, file_format))
    assert len(standard) == 54 + 3072
    assert standard[:2] == b"BM"
    image = Image.open(io.BytesIO(standard))
    assert (image.format, image.size, image.mode) == ("BMP", (32, 32), "RGB")


def test_an_image_of_this_size_keeps_its_pixels() -> None:
    content = png(1, (32, 32))
    standard = standard_image(content)
    np.testing.assert_array_equal(pixels(standard), pixels(content))
    assert standard_image(standard) == standard, "a standard image is standard"
    other = standard_image(png(2, (32, 32)))
    assert other != standard


def test_sizes_and_fits() -> None:
    wide = io.BytesIO()
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (0, 0, 10, 20))
    image.save(wide, "PNG")
    blue = {fit: (pixels(standard_image(wide.getvalue(), (8, 8), fit))[4] == (0, 0, 255)).all(1) for fit in FITS}
    assert blue["stretch"].tolist() == [True] * 2 + [False] * 6
    assert not blue["crop"].any()
    padded = pixels(standard_image(wide.getvalue(), (8, 8), "pad"))
    assert (padded[0] == 255).all()
    assert len(standard_image(wide.getvalue(), (5, 1))) == 54 + 16, "rows are padded to 4 bytes"


FITS = ("stretch", "crop", "pad")


def test_transparency_becomes_white_and_exif_rotation_applies() -> None:
    clear = io.BytesIO()
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(clear, "PNG")
    assert (pixels(standard_image(clear.getvalue())) == 255).all()
    turned = io.BytesIO()
    image = Image.new("RGB", (4, 2), "red")
    image.paste("blue", (0, 0, 2, 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    image.save(turned, "PNG", exif=exif)
    standard = pixels(standard_image(turned.getvalue(), (2, 4)))
    assert (standard[0] == (0, 0, 255)).all()
    assert (standard[3] == (255, 0, 0)).all()


GREYS = (np.arange(1024, dtype=np.uint16) * 64).reshape(32, 32)


def encoded(image: Image.Image, file_format: str, **save: object) -> bytes:
    file = io.BytesIO()
    image.copy().save(file, file_format, **save)
    return file.getvalue()


@pytest.mark.parametrize(
    ("file_format", "order"),
    [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2"), ("PGM", ">u2"), ("JPEG2000", "<u2")],
)
def test_sixteen_bit_greys_keep_their_upper_bits(file_format: str, order: str) -> None:
    if file_format == "PGM":
        content = b"P5\n32 32\n65535\n" + GREYS.astype(">u2").tobytes()
    else:
        content = encoded(Image.fromarray(GREYS.astype(order)), file_format)
    np.testing.assert_array_equal(pixels(standard_image(content))[:, :, 0], GREYS >> 8)
    assert pixels(pixels_as_png(content)).shape == (32, 32, 3)


def test_sixteen_bit_greys_with_orientation_transparency_and_white_as_zero() -> None:
    wide = Image.fromarray(GREYS[:16])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    for file_format in ("PNG", "TIFF"):
        turned = pixels(standard_image(encoded(wide, file_format, exif=exif), (16, 32)))
        np.testing.assert_array_equal(turned[:, :, 0], np.rot90(GREYS[:16] >> 8, -1))
    clear = encoded(Image.fromarray(GREYS), "PNG", transparency=int(GREYS[9, 9]))
    greys = pixels(standard_image(clear))[:, :, 0]
    assert greys[9, 9] == 255
    assert greys[9, 10] == GREYS[9, 10] >> 8, "of the same upper bits as the transparent value"
    inverted = encoded(Image.fromarray(GREYS), "TIFF", tiffinfo={262: 0})
    np.testing.assert_array_equal(pixels(standard_image(inverted))[:, :, 0], 255 - (GREYS >> 8))
    wide_range = np.arange(1024, dtype=np.int32).reshape(32, 32) << 12
    assert reason(standard_image, encoded(Image.fromarray(wide_range), "TIFF")) == "image without a range"


PICTURE = Image.fromarray(np.indices((60, 80)).sum(0).astype(np.uint8)).convert("RGB")
SMALL = PICTURE.resize((27, 20))


@pytest.mark.parametrize(
    ("file_format", "first", "second", "tags"),
    [
        ("MPO", PICTURE, SMALL, {}),
        ("TIFF", PICTURE, SMALL, {}),
        ("TIFF", SMALL, PICTURE, {}),
        ("TIFF", PICTURE, SMALL.rotate(90, expand=True), {254: 1}),
    ],
)
def test_previews_are_no_frames(
    file_format: str, first: Image.Image, second: Image.Image, tags: dict[int, int]
) -> None:
    other = second.copy()
    other.encoderinfo = {"tiffinfo": tags}  # type: ignore[attr-defined]
    content = encoded(first, file_format, save_all=True, append_images=[other])
    standard = pixels(standard_image(content, (80, 60))).astype(int)
    assert np.abs(standard - np.asarray(PICTURE)).mean() < 2
    check_image(content)


def test_several_full_pages_and_frames_are_refused() -> None:
    other = PICTURE.rotate(180)
    for file_format in ("GIF", "PNG", "WEBP"):
        content = encoded(PICTURE, file_format, save_all=True, append_images=[other])
        assert reason(standard_image, content) == "animated image"
    for page in (other, SMALL.rotate(90, expand=True)):
        content = encoded(PICTURE, "TIFF", save_all=True, append_images=[page])
        assert reason(standard_image, content) == "image of several pages"


def test_huge_images_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    for side in (13_000, 14_000):  # Pillow itself warns of the first, and refuses the second
        huge = encoded(Image.new("1", (side, side)), "PNG")
        for function in (standard_image, check_image, pixels_as_png):
            assert reason(function, huge) == "image too large"
    frames = encoded(PICTURE, "GIF", save_all=True, append_images=[PICTURE.rotate(angle) for angle in range(9)])
    check_image(frames)
    monkeypatch.setattr("bgpt_fast.tasks.media.images._MOST_PIXELS_OF_FRAMES", 1 << 18)
    assert reason(check_image, frames) == "image too large"


@pytest.mark.parametrize(
    "content",
    [
        b"BM is the mark of a bitmap, and the first word of this text.",
        b"P5 is a chapter, and no picture of 3 4 255 pixels.",
        b"P3\n2 2\n255\n0 0 0 but no more pixels",
        b"GIF89a was a format. It is not the format of this text, however long.",
        b"II*\0".replace(b"\0", b"") + b" and MM are byte orders",
        b"ID3 tags are at the start of recordings.",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        b"RIFF is a word",
        b"#define width 3\nint main(void) { return 0; }\n",
        b"/* XPM */ is a comment",
    ],
)
def test_text_that_begins_like_media_is_text(content: bytes) -> None:
    assert kind_of("file", content) == "text"
    assert standard_files("file", content, MediaOptions())[0].content == content


def test_images_and_audio_in_text_form_are_what_they_are() -> None:
    assert kind_of("file", b"P3\n1 1\n255\n1 2 3\n") == "image"
    assert kind_of("file", png(0)) == "image"
    assert kind_of("file", png(0)[:200]) == "image", "a damaged one is reported as such"
    assert kind_of("file", sound(0, 900)) == "audio"
    assert kind_of("file", b"P3\n1 1\n255\n1 2 3\n", ("text",)) == "text"


def test_contents_that_are_no_images() -> None:
    frames = {"save_all": True, "append_images": [Image.new("L", (20, 12), 9)]}
    assert reason(standard_image, png(0, mode="L", file_format="GIF", **frames)) == "animated image"
    assert reason(standard_image, png(0, mode="CMYK", file_format="JPEG")) == "CMYK image"
    assert reason(standard_image, png(0)[:300]) == "damaged image"
    assert reason(standard_image, png(0)[:20]) in ("damaged image", "no image")
    assert reason(standard_image, b"") == "no image"
    assert reason(standard_image, b"hello") == "no image"


def test_audio_becomes_clips_of_the_papers_size() -> None:
    standard = standard_audio(sound(0, 40_000, channels=2))  # 2.5 s at 16 kHz
    assert [len(clip) for clip in standard] == [44 + 8000] * 3
    info = soundfile.info(io.BytesIO(standard[0]))
    assert (info.format, info.subtype, info.samplerate, info.channels) == ("WAV", "PCM_U8", 8000, 1)
    last = np.frombuffer(standard[2][44:], np.uint8)
    assert (last[4000:] == 128).all(), "silence behind its end"
    assert not (last[:4000] == 128).all()


def test_resampling_keeps_a_tone() -> None:
    time = np.arange(44_100) / 44_100
    file = io.BytesIO()
    soundfile.write(file, 0.5 * np.sin(2 * np.pi * 440 * time), 44_100, format="WAV")
    (standard,) = standard_audio(file.getvalue())
    spectrum = np.abs(np.fft.rfft(np.frombuffer(standard[44:], np.uint8) - 128.0))
    assert spectrum.argmax() == 440
    assert spectrum[:400].max() < spectrum[440] / 100


@pytest.mark.parametrize("size", [1, 7999, 8000, 8001, 11_999, 12_000, 16_000])
def test_audio_of_this_kind_keeps_its_samples(size: int) -> None:
    samples = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    standard = standard_audio(write_wav(samples, 8000))
    assert len(standard) == max((size + 4000) // 8000, 1), "a last piece counts from half a clip on"
    together = np.concatenate([np.frombuffer(clip[44:], np.uint8) for clip in standard])
    np.testing.assert_array_equal(together[:size], samples[: len(together)])


def test_other_rates_and_lengths() -> None:
    standard = standard_audio(sound(0, 16_000), rate=4000, seconds=0.25)
    assert [len(clip) for clip in standard] == [44 + 1000] * 4


def test_contents_that_are_no_audio() -> None:
    whole = sound(0, 9000, format="WAV")
    assert reason(standard_audio, whole[:9000]) == "audio cut short"
    assert reason(standard_audio, whole[:30]) == "damaged audio"
    assert reason(standard_audio, whole[:44]) == "audio cut short"
    assert reason(standard_audio, sound(0, 9000)[:5000]) == "damaged audio"
    assert reason(standard_audio, sound(0, 0, format="WAV")) == "audio without a sample"
    assert reason(standard_audio, b"") == "no audio"
    assert reason(standard_audio, b"hello" * 99) == "no audio"
    assert standard_audio(whole)


def test_a_wav_from_a_pipe_has_no_length() -> None:
    whole = bytearray(sound(0, 9000, 8000, format="WAV"))
    at = whole.index(b"data") + 4
    whole[at : at + 4] = b"\xff" * 4
    assert len(standard_audio(bytes(whole))) == 1


def test_a_wav_with_odd_chunks_ends() -> None:
    """scipy/scipy#6700: a chunk of odd size with and without its padding byte, and a cut one behind the samples."""
    whole = write_wav(np.arange(200, dtype=np.uint8), 8000)
    at = whole.index(b"data")
    for odd in (b"LIST\3\0\0\0abc\0", b"LIST\0\0\0\0"):
        np.testing.assert_array_equal(clips(whole[:at] + odd + whole[at:], 8000, 0.025), clips(whole, 8000, 0.025))
    assert len(clips(whole + b"LIST\3\0\0", 8000, 0.025)) == 1
    assert len(clips(whole + b"LIST\xff\0\0\0a", 8000, 0.025)) == 1
    assert reason(standard_audio, whole[:at] + b"LIST\3\0\0\0abc" + whole[at:]) == "damaged audio", "without padding"


def test_a_bmp_with_a_header_of_124_bytes() -> None:
    """python-pillow/Pillow#6435: the header of version 5, with masks of colours in it."""
    greys = np.arange(64, dtype=np.uint8).reshape(8, 8)
    pixel = np.stack([greys, greys + 64, greys + 128, np.full_like(greys, 255)], 2)[::-1].tobytes()  # blue first
    header = struct.pack("<IiiHHIIiiII", 124, 8, 8, 1, 32, 3, len(pixel), 0, 0, 0, 0)
    header += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000).ljust(84, b"\0")
    content = b"BM" + struct.pack("<IHHI", 14 + 124 + len(pixel), 0, 0, 14 + 124) + header + pixel
    assert check_image(content) == "BMP 8×8 RGBA"
    np.testing.assert_array_equal(pixels(standard_image(content, (8, 8)))[:, :, 2], greys)


def test_a_spectrogram_shows_pitch_as_height_and_time_as_width() -> None:
    time = np.arange(8000) / 8000
    halves = np.where(time < 0.5, np.sin(2 * np.pi * 300 * time), np.sin(2 * np.pi * 2500 * time))
    standard = spectrogram_image((halves * 100 + 128).astype(np.uint8), 8000)
    assert len(standard) == 54 + 3072
    light = pixels(standard)[:, :, 0]
    low, high = light[:, 8].argmax(), light[:, 24].argmax()
    assert high < 12 < low, "higher pitch, higher up"
    assert not pixels(spectrogram_image(np.full(8000, 128, np.uint8), 8000)).any(), "silence is black"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("Grüße\r\nzwei\rdrei\n".encode(), "Grüße\nzwei\ndrei\n"),
        ("Grüße".encode("utf-8-sig"), "Grüße"),
        ("Grüße".encode("utf-16"), "Grüße"),
        ("a".encode("utf-32"), "a"),
    ],
)
def test_text_becomes_utf_8(content: bytes, expected: str) -> None:
    assert standard_text(content) == [expected.encode()]


def test_text_encoding_and_separator() -> None:
    assert standard_text("Grüße".encode("latin-1"), "latin-1") == ["Grüße".encode()]
    assert standard_text(b"one\n%\n \n%\ntwo", separator="\n%\n") == [b"one", b"two"]
    with pytest.raises(ValueError, match="expected the name of an encoding"):
        standard_text(b"\xff", "nosuch")


@pytest.mark.parametrize("text", ["one two\nthree\n\nfour five six seven", "ü" * 40, "🎵" * 9, "a" * 100])
def test_long_text_is_cut_between_words_or_characters(text: str) -> None:
    pieces = cut_text(text.encode(), 16)
    assert b"".join(pieces) == text.encode()
    assert all(len(piece) <= 16 and piece.decode() for piece in pieces)
    assert len(pieces) >= len(text.encode()) // 16
    assert cut_text(text.encode(), 0) == [text.encode()]


def test_contents_that_are_no_text() -> None:
    assert reason(standard_text, b"caf\xe9") == "text that is not UTF-8"
    assert reason(standard_text, b"\xff", "ascii") == "text that is neither UTF-8 nor ascii"
    assert reason(standard_text, b"a\0b") == "text with control characters"
    assert reason(standard_text, b" \n") == "text without a word"


@pytest.mark.parametrize("seed", range(4))
def test_damage_is_the_only_error_of_damaged_media(seed: int) -> None:
    draw = np.random.default_rng(seed)
    images = [png(0), png(1, mode="L", file_format="GIF"), png(2, file_format="JPEG"), png(3, file_format="TIFF")]
    sounds = [sound(0, 3000), sound(1, 3000, format="WAV"), sound(2, 3000, format="OGG"), sound(3, 3000, format="AIFF")]
    for content, function in [(one, standard_image) for one in images] + [(one, standard_audio) for one in sounds]:
        for _ in range(12):
            damaged = bytearray(content)
            for at in draw.integers(0, min(len(content), 200), 4):
                damaged[at] = draw.integers(256)
            with contextlib.suppress(MediaError):
                assert function(bytes(damaged))


def test_an_impossible_sample_rate() -> None:
    whole = bytearray(sound(0, 100, 8000, format="WAV"))
    at = whole.index(b"fmt ") + 12
    for rate in (1, 1 << 30):
        whole[at : at + 4] = rate.to_bytes(4, "little")
        assert reason(standard_audio, bytes(whole)) == "damaged audio"


@pytest.mark.parametrize("mode", ["1", "P", "PA", "LA", "RGBa", "YCbCr", "HSV", "LAB", "I;16", "RGBX"])
def test_every_mode_of_pixels(mode: str) -> None:
    from bgpt_fast.tasks.media.images import _rgb

    assert _rgb(Image.new(mode, (3, 3))).mode == "RGB"


def test_memory_that_runs_out_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    content, recording = png(0), sound(0, 8000)
    for where, error in itertools.product(
        ("PIL.Image.open", "PIL.ImageFile.ImageFile.load", "PIL.Image.Image.resize", "soundfile.SoundFile.__init__"),
        (MemoryError(), OSError("out of memory error when reading image file"), _no_memory_in_libsndfile()),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(where, mock.Mock(side_effect=error))
            with pytest.raises(type(error)) as caught:
                (clips(recording, 8000, 1.0) if "sound" in where else standard_image(content))
            assert is_out_of_memory(caught.value)
    assert standard_image(content)
    assert clips(recording, 8000, 1.0)


def _no_memory_in_libsndfile() -> Exception:
    codes = (soundfile.LibsndfileError(code) for code in range(100))
    return next(error for error in codes if "malloc" in error.error_string)
