"""Audio is read to its true end, and a truncated file is refused, whatever its header or libsndfile says."""

from __future__ import annotations

import contextlib
import io
import itertools
import random
import struct

import numpy as np
import pytest
from support.media import png, sound

from bgpt_fast.tasks.media import MediaError
from bgpt_fast.tasks.media.audio import check_audio, clips, is_audio
from bgpt_fast.tasks.media.audio_length import stated_end
from bgpt_fast.tasks.media.audio_streams import streams
from bgpt_fast.tasks.media.mpeg_frames import _frame_at, find_frames

soundfile = pytest.importorskip("soundfile")

FRAMES, RATE = 8001, 8000
STATE_NO_LENGTH = ("PAF", "PVF", "IRCAM", "XI")
FORMATS = [name for name in soundfile.available_formats() if name not in ("RAW", "SD2")]  # without a header; two files


def files(name: str) -> list[bytes]:
    """A file of each encoding that libsndfile writes in a format, with one and two channels."""
    wave = 0.3 * np.sin(np.arange(FRAMES)[:, None] * [0.1, 0.2])
    contents = []
    for encoding, channels in itertools.product(soundfile.available_subtypes(name), (1, 2)):
        file = io.BytesIO()
        try:
            soundfile.write(file, wave[:, :channels], RATE, format=name, subtype=encoding)
        except soundfile.LibsndfileError:  # it reads this combination, but does not write it
            continue
        contents.append(file.getvalue())
    return contents


def seconds(content: bytes) -> float:
    return float(check_audio(content).split(", ")[-1].removesuffix(" s"))


def reason(content: bytes) -> str:
    with pytest.raises(MediaError) as caught:
        check_audio(content)
    return caught.value.reason


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_whole_and_refused_in_part(name: str) -> None:
    contents = files(name)
    assert contents
    for content in contents:
        length = seconds(content)
        assert length == pytest.approx(FRAMES / RATE, abs=0.07) or name == "XI"  # blocks of up to 500 samples
        if name == "HTK":  # recognised by its length alone
            assert reason(content[:-2]) == "no audio"
            continue
        if name not in STATE_NO_LENGTH:
            for share in (0.999, 0.9, 0.5, 0.3):
                assert reason(content[: int(len(content) * share)]) in ("audio cut short", "damaged audio")
            behind = seconds(content + b"LIST\4\0\0\0abcd")
            assert behind == length, "what follows the samples is no sample"


@pytest.mark.parametrize("name", ["PAF", "PVF", "IRCAM"])
def test_formats_without_a_length_are_refused_within_a_sample(name: str) -> None:
    content = files(name)[-1]
    assert reason(content[:-1]) == "audio cut short"
    ends = [size for size in range(1, 2000) if stated_end(content[:-size]) == len(content) - size]
    assert seconds(content[: -ends[-1]]) < seconds(content), "a cut between samples is not detectable"


def mp3(rate: int, mode: str, length: float = 6.0) -> tuple[bytes, bytes, int]:
    """A file that begins quiet and goes on loud; without its first frame, which states the length; a frame's size."""
    draw = np.random.default_rng(0)
    wave = draw.normal(0, 0.2, round(rate * length))
    wave[: len(wave) // 2] *= 1e-4
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format="MP3", bitrate_mode=mode, compression_level=0.5)
    content = file.getvalue()
    (audio,) = find_frames(content, 0)
    assert audio.stated == audio.frames
    second = next(at for at in range(4, len(content)) if content[at : at + 2] == content[:2])
    return content, content[second:], audio.frame_samples


TAG = b"ID3\3\0\0\0\1\0\0" + b"\0" * 16384
LAST_TAG = b"TAG".ljust(128, b"x")


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE", "AVERAGE"])
@pytest.mark.parametrize("rate", [44_100, 16_000, 8000])
def test_mp3_is_read_to_the_end_without_a_stated_length(rate: int, mode: str) -> None:
    stated, unstated, frame = mp3(rate, mode)
    padding = 3 * frame / rate  # the encoder's, which only the first frame tells
    for before, behind in itertools.product((b"", TAG, TAG * 2, TAG + bytes(500)), (b"", LAST_TAG)):
        assert seconds(before + stated + behind) == 6
        assert 6 < seconds(before + unstated + behind) < 6 + padding
    assert seconds(stated + stated) == seconds(stated + TAG + stated) == 12, "the second file is not lost"
    assert 12 < seconds(unstated + unstated) < 12 + 2 * padding
    loud = clips(unstated, 8000, 1.0)[-2].astype(float)
    assert loud.std() > 5, "the samples, not silence"
    for content in (stated, unstated):
        assert reason(content[:-1]) == reason(content[:-9]) == "audio cut short"
    assert reason(stated[: len(stated) // 2]) == "audio cut short"


def free_format(content: bytes) -> tuple[bytes, list[int]]:
    """Frames of one bit rate with headers that do not state it, and where they begin."""
    free, place, places = bytearray(content), 0, []
    while (frame := _frame_at(content, place, None)) is not None:
        free[place + 2] &= 0x0F
        places.append(place)
        place += frame.size
    return bytes(free), places


@pytest.mark.parametrize("rate", [48_000, 44_100, 22_050, 8000])
def test_mp3_of_free_format_is_read_to_its_end_or_is_cut_short(rate: int) -> None:
    """Frames of 44,100 and 22,050 Hz have padding, so that their sizes differ by one."""
    unstated = mp3(rate, "CONSTANT", 3.0)[1]
    content, places = free_format(unstated)
    assert seconds(content) == seconds(unstated), "an equal recording"
    assert seconds(TAG + content + LAST_TAG) == seconds(content)
    for end in (places[len(places) // 2] + 30, places[-1] + 7, len(content) - 1):
        assert reason(content[:end]) == reason(TAG + content[:end]) == "audio cut short"
    begin, behind = places[5], places[9]
    assert reason(content[:begin] + bytes(behind - begin) + content[behind:]) == "damaged audio"
    other = mp3(16_000, "CONSTANT", 2.0)[0]
    assert seconds(content + other) == seconds(other + content) == seconds(content) + 2


def test_mp3_files_of_different_kinds_behind_one_another_are_all_read() -> None:
    one, other = mp3(44_100, "VARIABLE", 2.0)[0], mp3(16_000, "CONSTANT", 3.0)[0]
    stereo = io.BytesIO()
    soundfile.write(stereo, np.random.default_rng(0).normal(0, 0.2, (44_100, 2)), 44_100, format="MP3")
    assert seconds(one + other) == seconds(other + LAST_TAG + TAG + one) == 5
    assert seconds(one + stereo.getvalue() + one) == 5
    assert len(clips(one + other, 8000, 1.0)) == 5
    frames = [at for at in range(len(one)) if one[at : at + 2] == one[:2]]
    assert reason(one[: frames[len(frames) // 2]] + one) == "audio cut short", "although there are frames enough"


def test_mp3_with_holes_is_damaged() -> None:
    stated, unstated, _ = mp3(16_000, "CONSTANT", 6.0)
    for content in (stated, unstated):
        frames = [at for at in range(len(content)) if content[at : at + 2] == content[:2]]
        begin, end = (frames[len(frames) * share // 4] for share in (1, 3))
        for hole in (bytes(end - begin), bytes(1 << 21), b"hole" * 200):
            assert reason(content[:begin] + hole + content[end:]) == "damaged audio"
        header = content[: frames[5]] + bytes(4) + content[frames[5] + 4 :]
        assert reason(header) == "damaged audio", "a frame is lost"
        assert reason(content[:begin] + bytes(1 << 16)) in ("damaged audio", "audio cut short")
        padded = content[:begin] + bytes(50) + content[begin:] + bytes(1000)
        assert seconds(padded) == seconds(content), "nothing is lost"
    whole = [at for at in range(len(stated)) if stated[at : at + 2] == stated[:2]][9]
    assert seconds(stated[:whole] + bytes(5000) + stated[whole:]) == 6, "the stated count says that nothing is lost"


def test_what_only_begins_like_mp3() -> None:
    assert reason("ÿ".encode("utf-16")) == "no audio"
    jpeg = bytearray(png(0, (200, 200), file_format="JPEG"))
    header = bytes.fromhex("fffb90c4")  # two frames in a row, the second one cut
    jpeg[600:604] = jpeg[600 + 417 : 604 + 417] = header
    assert reason(bytes(jpeg[:1200])) == "no audio"
    assert not is_audio(bytes(jpeg))


def test_mp3_within_wav() -> None:
    stated, unstated, _ = mp3(44_100, "VARIABLE", 3.0)

    def wav(data: bytes) -> bytes:
        form = struct.pack("<HHIIHHHHIHHH", 0x55, 1, 44_100, 16_000, 1, 0, 12, 1, 2, 417, 1, 0)
        body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
        return b"RIFF" + struct.pack("<I", len(body)) + body

    assert seconds(wav(stated)) == 3
    assert 3 < seconds(wav(unstated)) < 3.1
    assert reason(wav(unstated)[:-100]) == "audio cut short"
    frames = [at for at in range(len(unstated)) if unstated[at : at + 2] == unstated[:2]]
    whole = wav(unstated)
    assert reason(whole[: len(whole) - len(unstated) + frames[20]]) == "audio cut short", "between two frames"


@pytest.mark.parametrize("encoding", ["VORBIS", "OPUS"])
def test_chained_ogg_is_read_to_the_end(encoding: str) -> None:
    one, two = (sound(seed, 24_000, format="OGG", subtype=encoding) for seed in (0, 1))
    assert seconds(one) == 1.5
    assert seconds(one + two) == 3
    assert len(clips(one + two, 8000, 1.0)) == 3
    assert seconds(one + LAST_TAG) == 1.5
    last_page = one.rindex(b"OggS")
    for cut in (one[:last_page], one[:-1], one[: last_page + 20], one + two[: two.rindex(b"OggS")]):
        assert reason(cut) == "audio cut short"


@pytest.mark.parametrize("encoding", ["VORBIS", "OPUS"])
def test_damaged_and_missing_ogg_pages_which_decoders_skip(encoding: str) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(0).normal(0, 0.2, (72_000, 2)), 24_000, format="OGG", subtype=encoding)
    content = file.getvalue()
    assert seconds(content) == 3
    pages = [b"OggS" + page for page in content.split(b"OggS")[1:]]
    assert len(pages) > 6
    for number in range(3, len(pages) - 1):
        damaged = bytearray(b"".join(pages))
        damaged[sum(map(len, pages[:number])) + 300] ^= 1
        assert reason(bytes(damaged)) == "damaged audio"
        assert reason(b"".join(pages[:number] + pages[number + 1 :])) == "damaged audio"


@pytest.mark.parametrize("unknown", [0x7F000000, 0x7FFFF000, 0xFFFFFFFF])
def test_a_length_that_a_program_did_not_know(unknown: int) -> None:
    for name, mark, order in (("WAV", b"data", "<I"), ("AIFF", b"SSND", ">I")):
        content = bytearray(sound(0, 8000, 8000, format=name))
        at = content.index(mark) + 4
        content[at : at + 4] = struct.pack(order, unknown)
        assert seconds(bytes(content)) == 1
    content = bytearray(sound(0, 8000, 8000, format="AU"))
    content[8:12] = struct.pack(">I", unknown)
    assert seconds(bytes(content)) == 1


def test_flac_without_a_length_and_with_a_tag() -> None:
    content = bytearray(sound(0, 8000, 8000))
    assert seconds(bytes(content) + LAST_TAG) == 1
    assert seconds(TAG + bytes(content)) == 1
    stated = int.from_bytes(content[21:26], "big") & (1 << 36) - 1
    assert stated == 8000
    content[22:26] = (9000).to_bytes(4, "big")
    assert reason(bytes(content)) == "audio cut short"
    content[22:26] = bytes(4)
    assert seconds(bytes(content)) == 1


def test_a_long_recording_is_refused_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bgpt_fast.tasks.media.audio._MOST_SAMPLES", 16_000)
    with pytest.raises(MediaError, match="audio too long: over 16,000 samples at 8000 Hz"):
        clips(sound(0, 16_001, 8000), 8000, 1.0)
    assert len(clips(sound(0, 16_000, 8000), 8000, 1.0)) == 2


def test_damaged_headers_raise_no_other_error() -> None:
    draw = random.Random(0)
    seeds = [files(name)[0] for name in FORMATS] + [mp3(8000, "VARIABLE", 0.5)[1]]
    for _ in range(4000):
        content = bytearray(draw.choice(seeds)[:2000])
        for _ in range(draw.randint(1, 6)):
            place = draw.randrange(len(content))
            length = draw.choice([0, 1, 1, 4])
            content[place : place + draw.choice([1, 4, 30])] = bytes(
                draw.choice([0, 255, 127, draw.randrange(256)]) for _ in range(length)
            )
            content = content or bytearray(b"R")
        with contextlib.suppress(MediaError):
            assert streams(bytes(content))
