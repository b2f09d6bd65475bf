"""The frames of MPEG audio (MP1, MP2, MP3), which mostly has no header that states its length.

libsndfile stops at the length that its decoder estimates from the first frame, unless a frame with the exact count
("Xing", "Info" or "VBRI") comes first. Source: ISO/IEC 11172-3 and 13818-3; the Xing frame as LAME writes it.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

_RATES = (44_100, 48_000, 32_000)
_BITRATES = {  # (MPEG 1, layer) → kbit/s by index
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MOST_JUNK = 1 << 20
_ALL = 0x7FFFFFFF


class _Frame(NamedTuple):
    is_mpeg_1: bool
    layer: int
    rate: int
    is_mono: bool
    size: int


class MpegAudio(NamedTuple):
    """The frames of a file.

    Args:
        start: offset of the first frame.
        frames: number of complete frames, without the one that states the count.
        stated: the count according to that frame; None without one.
        is_cut: whether the last frame is incomplete.
        frame_samples: number of samples in a frame.
    """

    start: int
    frames: int
    stated: int | None
    is_cut: bool
    frame_samples: int


def find_frames(content: bytes, start: int) -> MpegAudio | None:
    """Counts the frames from the first one at or after `start`; None if there are no two in a row.

    Other bytes between frames are skipped, at most 1 MiB of them at a time.
    """
    place, first = _next_frame(content, start, None)
    if first is None:
        return None
    begin, count = place, 0
    while True:
        frame = _frame_at(content, place, first)
        if frame is None:
            place, frame = _next_frame(content, place, first)
        if frame is None:
            is_cut = place < len(content) < place + 4 and content[place] == 0xFF
        else:
            is_cut = place + frame.size > len(content)
        if frame is None or is_cut:
            count, stated = _without_count_frame(content, begin, first, count)
            return MpegAudio(begin, count, stated, is_cut, _frame_samples(first))
        count += 1
        place += frame.size


def with_length(content: bytes, audio: MpegAudio) -> bytes:
    """Returns the file with a first frame that states a count above the true one, so that all frames are decoded."""
    first = _frame_at(content, audio.start, None)
    assert first is not None
    rest = audio.start if audio.stated is None else audio.start + first.size
    if first.layer != 3:
        return content
    # The smallest bit rate at which the frame has room for the count.
    place = _count_place(first)
    header = bytearray(content[audio.start : audio.start + 4])
    header[1] |= 1  # no checksum
    for index in range(1, 15):
        header[2] = index << 4 | header[2] & 0x0C
        frame = _frame_at(bytes(header), 0, first)
        if frame is not None and frame.size >= place + 12:
            first = frame
            break
    body = bytearray(first.size)
    body[:4] = header
    body[place : place + 12] = struct.pack(">4sII", b"Info", 1, min(len(content), _ALL))
    return content[: audio.start] + bytes(body) + content[rest:]


def _without_count_frame(content: bytes, begin: int, first: _Frame, count: int) -> tuple[int, int | None]:
    if first.layer == 3:
        place = begin + _count_place(first)
        if content[place : place + 4] in (b"Xing", b"Info"):
            flags, frames = struct.unpack_from(">II", content.ljust(place + 12, b"\0"), place + 4)
            return max(count - 1, 0), frames if flags & 1 else None
        place = begin + 36
        if content[place : place + 4] == b"VBRI":
            return max(count - 1, 0), struct.unpack_from(">I", content.ljust(place + 18, b"\0"), place + 14)[0]
    return count, None


def _frame_samples(frame: _Frame) -> int:
    if frame.layer == 1:
        return 384
    return 1152 if frame.layer == 2 or frame.is_mpeg_1 else 576


def _count_place(frame: _Frame) -> int:
    """Offset of "Xing" in a frame: behind the header and the side information."""
    if frame.is_mpeg_1:
        return 21 if frame.is_mono else 36
    return 13 if frame.is_mono else 21


def _frame_at(content: bytes, place: int, like: _Frame | None) -> _Frame | None:
    """The frame whose header is at `place`; None if there is none, or one of another version, layer or rate."""
    if place + 4 > len(content) or content[place] != 0xFF or content[place + 1] < 0xE0:
        return None
    version, layer = content[place + 1] >> 3 & 3, 4 - (content[place + 1] >> 1 & 3)
    bitrate, rate = content[place + 2] >> 4, content[place + 2] >> 2 & 3
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    is_mpeg_1 = version == 3
    hertz = _RATES[rate] // {3: 1, 2: 2, 0: 4}[version]
    if like is not None and (like.is_mpeg_1, like.layer, like.rate) != (is_mpeg_1, layer, hertz):
        return None
    bits = 1000 * _BITRATES[is_mpeg_1, layer][bitrate - 1]
    padding = content[place + 2] >> 1 & 1
    if layer == 1:
        size = (12 * bits // hertz + padding) * 4
    else:
        size = (72 if layer == 3 and not is_mpeg_1 else 144) * bits // hertz + padding
    return _Frame(is_mpeg_1, layer, hertz, content[place + 3] >> 6 == 3, size)


def _next_frame(content: bytes, place: int, like: _Frame | None) -> tuple[int, _Frame | None]:
    """Finds the next frame that is followed by another one, or by the end of the file."""
    for match in re.compile(rb"\xff[\xe0-\xff]").finditer(content, place, place + _MOST_JUNK):
        frame = _frame_at(content, match.start(), like)
        if frame is not None:
            behind = match.start() + frame.size
            if _frame_at(content, behind, frame) is not None or (behind == len(content) and like is not None):
                return match.start(), frame
    return place, None
