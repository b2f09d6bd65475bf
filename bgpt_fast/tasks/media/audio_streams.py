"""The streams of an audio file, each complete and in a form that libsndfile decodes to the end."""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from bgpt_fast.tasks.media.audio_length import UNKNOWN_LENGTH, riff_chunks, stated_end
from bgpt_fast.tasks.media.errors import MediaError
from bgpt_fast.tasks.media.mpeg_frames import MpegAudio, find_frames, with_length

_MPEG_IN_WAV = 0x55
_BEGINS, _ENDS = 2, 4
"""Flags of an OGG page: the first, the last one of a stream."""
_REFLECTED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_CHUNKS_FOLLOW = (b"RIFF", b"RIFX", b"RF64", b"FORM", b"caff")
"""Formats in which libsndfile does not take what follows the samples for samples, and needs some of it."""


class Stream(NamedTuple):
    """A file for libsndfile.

    Args:
        content: the file.
        frames: the least number of sample frames that must come out of it; None: as many as libsndfile states.
    """

    content: bytes
    frames: int | None = None


def streams(content: bytes) -> list[Stream]:
    """Splits a file of consecutive streams (OGG, MPEG audio), and makes decoders read each to its end.

    libsndfile takes the length that a file states, or an estimate, for the truth: it stops there, or reports nothing if
    the file ends earlier. So truncation is found here from the header.

    Raises:
        MediaError: the file ends before the length that it states, or OGG pages or MPEG frames are missing or damaged,
            which decoders skip.
    """
    start = _behind_tags(content)
    if content.startswith(b"OggS", start):
        return [Stream(part) for part in _ogg_streams(content, start)]
    if content[start : start + 1] == b"\xff":
        return _mpeg(content, start)
    if content[start : start + 4] in (b"RIFF", b"RIFX") and (inner := _mpeg_in_wav(content[start:])):
        return _mpeg(inner, 0)
    if (end := stated_end(content[start:] if start else content)) is not None:
        end += start
        if end > len(content):
            raise MediaError("audio cut short", f"{len(content):,} bytes of {end:,}")
        if content[start : start + 4] not in _CHUNKS_FOLLOW or content[start + 8 : start + 12] in (b"8SVX", b"16SV"):
            return [Stream(content[:end])]
    elif start and not content.startswith(b"fLaC", start):
        return _mpeg(content, start)  # behind zeros that the tag's size does not count
    return [Stream(content)]


def _behind_tags(content: bytes) -> int:
    """Returns the offset behind the ID3v2 tags at the start."""
    start = 0
    while content.startswith(b"ID3", start) and len(content) >= start + 10:
        flags, size = content[start + 5], content[start + 6 : start + 10]
        length = sum(byte << shift for byte, shift in zip(size, (21, 14, 7, 0), strict=True))
        start += 10 + length + 10 * bool(flags & 0x10)
    return start


def _ogg_streams(content: bytes, start: int) -> list[bytes]:
    """Splits an OGG file where a stream begins behind another one's pages (chained, RFC 3533)."""
    begins = [start]
    place = start
    is_header = True
    unfinished: set[bytes] = set()
    numbers: dict[bytes, int] = {}
    while content.startswith(b"OggS", place):
        segments = content[place + 26 : place + 27]
        table = content[place + 27 : place + 27 + (segments[0] if segments else 0)]
        behind = place + 27 + len(table) + sum(table)
        if not segments or len(table) < segments[0] or behind > len(content):
            raise MediaError("audio cut short", "within an OGG page")
        flags, serial = content[place + 5], content[place + 14 : place + 18]
        number, checksum = struct.unpack_from("<II", content, place + 18)
        if _ogg_checksum(content[place:behind]) != checksum:
            raise MediaError("damaged audio", "an OGG page with a wrong checksum")
        if not flags & _BEGINS and number != (numbers.get(serial, number - 1) + 1) % (1 << 32):
            raise MediaError("damaged audio", "an OGG page is missing")
        numbers[serial] = number
        if flags & _BEGINS and not is_header:
            begins.append(place)
        is_header = bool(flags & _BEGINS)
        if flags & _BEGINS:
            unfinished.add(serial)
        if flags & _ENDS:
            unfinished.discard(serial)
        place = behind
    if unfinished:
        raise MediaError("audio cut short", "the last OGG page of a stream is missing")
    return [content[begin:end] for begin, end in zip(begins, [*begins[1:], place], strict=True)]


def _ogg_checksum(page: bytes) -> int:
    """The CRC of a page with the generator of zlib's CRC, but without its inversion and its reflection of bits."""
    without = page[:22] + bytes(4) + page[26:]
    crc = zlib.crc32(without.translate(_REFLECTED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(crc.to_bytes(4, "little").translate(_REFLECTED), "big")


def _mpeg(content: bytes, start: int) -> list[Stream]:
    files = find_frames(content, start)
    if not files or (not start and files[0].start):
        return [Stream(content, 0)]  # other content that begins with 255, such as JPEG or UTF-16
    return [_mpeg_file(audio) for audio in files]


def _mpeg_file(audio: MpegAudio) -> Stream:
    if audio.is_cut:
        raise MediaError("audio cut short", "within an MPEG frame")
    if audio.is_damaged and (audio.stated is None or audio.frames < audio.stated):
        raise MediaError("damaged audio", "zeros or other bytes where MPEG frames should be")
    # Some encoders count the frame with the count too.
    if audio.stated is not None and audio.frames + 1 < audio.stated:
        raise MediaError("audio cut short", f"{audio.frames:,} MPEG frames of {audio.stated:,}")
    # Up to four frames are the encoder's delay and padding, which decoders drop.
    least = max(audio.frames - 4, 0) * audio.frame_samples
    is_stated = audio.stated is not None and audio.frames <= audio.stated
    return Stream(audio.content if is_stated else with_length(audio), least)


def _mpeg_in_wav(content: bytes) -> bytes | None:
    """Returns the MPEG audio in a WAV file; None if it holds other audio."""
    kind = 0
    for name, place, size in riff_chunks(content):
        if name == b"fmt ":
            kind = int.from_bytes(content[place : place + 2], "little")
        if name == b"data" and kind == _MPEG_IN_WAV:
            if len(content) < place + size < place + UNKNOWN_LENGTH:
                raise MediaError("audio cut short", f"{len(content):,} bytes of {place + size:,}")
            return content[place : place + size]
    return None
