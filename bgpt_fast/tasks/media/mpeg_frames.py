"""The frames of MPEG audio (MP1, MP2, MP3), which mostly has no header that states its length.

libsndfile stops at the length that its decoder estimates from the first frame, unless a frame with the exact count
("Xing", "Info" or "VBRI") comes first. Source: ISO/IEC 11172-3 and 13818-3; the Xing frame as LAME writes it.
"""

from __future__ import annotations

import itertools
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
_MOST_FRAME = 4096
"""Bytes of a frame of free format: more than at 640 kbit/s and 32 kHz."""
_MOST_ALIKE = 8
"""Places within a frame of free format that begin like the next one."""
_MOST_JUNK = 1 << 20
_MOST_CANDIDATES = 1 << 20
"""Places in a row that begin like a frame and are none, behind which no frame is expected."""
_MOST_ZEROS = 1 << 16
"""Behind the last frame, as padding; more are where a download did not arrive."""
_FRAMES_OF_ANOTHER_KIND = 8
"""In a row, by which another file is recognised behind the first one: in other bytes a few can be by chance."""
_TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN")
_ALL = 0x7FFFFFFF


class _Frame(NamedTuple):
    """A header; `free_size` is that of frames without padding in free format, which state no bit rate, otherwise 0."""

    is_mpeg_1: bool
    layer: int
    rate: int
    is_mono: bool
    free_size: int
    size: int

    @property
    def kind(self) -> tuple[bool, int, int, bool, int]:
        """What all frames of a file have in common."""
        return self[:5]


class MpegAudio(NamedTuple):
    """Consecutive frames of one file: of one version, layer, rate and number of channels.

    Args:
        start: offset of the first frame.
        content: the frames, without other bytes between them, at which decoders give up.
        frames: number of complete frames, without the one that states the count.
        stated: the count according to that frame; None without one.
        is_cut: whether the last frame is incomplete.
        is_damaged: whether as many bytes as a frame has are missing or no frame, between two or behind the last.
        frame_samples: number of samples in a frame.
    """

    start: int
    content: bytes
    frames: int
    stated: int | None
    is_cut: bool
    is_damaged: bool
    frame_samples: int


def find_frames(content: bytes, start: int) -> list[MpegAudio]:
    """Splits MPEG audio, from the first frame at or after `start`, where another file follows.

    Another file begins with a frame that states its count, or with frames of another kind. Tags, and other bytes fewer
    than a frame, are skipped.

    Returns:
        The files; none if there are no two frames in a row in the first MiB.
    """
    files = []
    place, first = _next_frame(content, start, None, start + _MOST_JUNK)
    while first is not None:
        audio, place, first = _one_file(content, place, first)
        files.append(audio)
    return files


def _one_file(content: bytes, begin: int, first: _Frame) -> tuple[MpegAudio, int, _Frame | None]:
    """Returns a file's frames, and the place and first frame of the next file, None behind the last one."""
    place, count, size = begin, 0, first.size
    start, runs = begin, []
    is_cut = is_damaged = False
    frame: _Frame | None = first
    while True:
        if frame is not None and count and _states_count(content, place, frame):
            break
        if frame is None:
            behind, frame = _next_frame(content, place, first, len(content))
            is_cut = frame is None and place < len(content) < place + 4 and content[place] == 0xFF
            is_file = frame is not None and (frame.kind != first.kind or _states_count(content, behind, frame))
            is_damaged |= _is_gap(content, place, behind, size, frame is None or is_file)
            runs.append(content[start:place])
            start = place = behind
            if frame is None or is_file:
                break
        is_cut = place + frame.size > len(content)
        if is_cut:
            frame = None
            break
        count += 1
        place += frame.size
        size = frame.size
        frame = _frame_at(content, place, first)
    count, stated = _without_count_frame(content, begin, first, count)
    frames = b"".join([*runs, content[start:place]])
    return MpegAudio(begin, frames, count, stated, is_cut, is_damaged, _frame_samples(first)), place, frame


def _is_gap(content: bytes, place: int, behind: int, size: int, is_last: bool) -> bool:
    """Whether frames of `size` bytes are missing in bytes that are none; behind the last one other bytes may follow."""
    rest = content[place:behind].lstrip(b"\0")
    if rest.startswith(_TAGS):
        return False
    if is_last:
        return not rest and behind - place >= _MOST_ZEROS
    return behind - place >= size


def with_length(audio: MpegAudio) -> bytes:
    """Returns the file with a first frame that states a count above the true one, so that all frames are decoded."""
    content = audio.content
    first = _frame_at(content, 0, None)
    assert first is not None
    rest = 0 if audio.stated is None else first.size
    if first.layer != 3:
        return content
    # The smallest bit rate whose frame holds the count; free format has one alone.
    place = _count_place(first)
    header = bytearray(content[:4])
    header[1] |= 1  # no checksum
    if first.free_size and first.size < place + 12:
        return content
    for index in range(0 if first.free_size else 1, 15):
        header[2] = index << 4 | header[2] & 0x0C
        frame = _frame_at(bytes(header), 0, first)
        if frame is not None and frame.size >= place + 12:
            first = frame
            break
    body = bytearray(first.size)
    body[:4] = header
    body[place : place + 12] = struct.pack(">4sII", b"Info", 1, min(len(content), _ALL))
    return bytes(body) + content[rest:]


def _without_count_frame(content: bytes, begin: int, first: _Frame, count: int) -> tuple[int, int | None]:
    if not _states_count(content, begin, first):
        return count, None
    place = begin + _count_place(first)
    if content[place : place + 4] in (b"Xing", b"Info"):
        flags, frames = struct.unpack_from(">II", content.ljust(place + 12, b"\0"), place + 4)
        return max(count - 1, 0), frames if flags & 1 else None
    return max(count - 1, 0), struct.unpack_from(">I", content.ljust(begin + 54, b"\0"), begin + 50)[0]


def _states_count(content: bytes, place: int, frame: _Frame) -> bool:
    """Whether a frame may state the count, and no sound."""
    behind = place + _count_place(frame)
    is_xing = content[behind : behind + 4] in (b"Xing", b"Info")
    return frame.layer == 3 and (is_xing or content[place + 36 : place + 40] == b"VBRI")


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
    """The frame whose header is at `place`; None if there is none, or one of another kind than `like`."""
    if place + 4 > len(content) or content[place] != 0xFF or content[place + 1] < 0xE0:
        return None
    version, layer = content[place + 1] >> 3 & 3, 4 - (content[place + 1] >> 1 & 3)
    bitrate, rate = content[place + 2] >> 4, content[place + 2] >> 2 & 3
    if version == 1 or layer == 4 or bitrate == 15 or rate == 3:
        return None
    is_mpeg_1 = version == 3
    hertz = _RATES[rate] // {3: 1, 2: 2, 0: 4}[version]
    is_mono = content[place + 3] >> 6 == 3
    if like is not None and (like[:4] != (is_mpeg_1, layer, hertz, is_mono) or bool(like.free_size) == bool(bitrate)):
        return None
    free_size = 0
    if bitrate == 0:
        free_size = _free_size(content, place) if like is None else like.free_size
        if not free_size:
            return None
        size = free_size + _padding(content, place)
    elif layer == 1:
        size = 12_000 * _BITRATES[is_mpeg_1, layer][bitrate - 1] // hertz * 4 + _padding(content, place)
    else:
        bits = 1000 * _BITRATES[is_mpeg_1, layer][bitrate - 1]
        size = (72 if layer == 3 and not is_mpeg_1 else 144) * bits // hertz + _padding(content, place)
    return _Frame(is_mpeg_1, layer, hertz, is_mono, free_size, size)


def _padding(content: bytes, place: int) -> int:
    """Bytes by which the frame at `place` is longer than one without padding."""
    is_layer_1 = content[place + 1] >> 1 & 3 == 3
    return (content[place + 2] >> 1 & 1) * (4 if is_layer_1 else 1)


def _free_size(content: bytes, place: int) -> int:
    """Bytes of frames of free format without padding, at which two more follow the one at `place`; 0 if none do."""

    def follows(at: int) -> bool:
        # The same but for padding, a private bit, and what may change from frame to frame.
        same = content[at : at + 2] == content[place : place + 2] and len(content) >= at + 4
        return same and content[at + 2] & 0xFC == content[place + 2] & 0xFC and content[at + 3] >> 6 == channels

    channels = content[place + 3] >> 6
    at = place + 23
    for _ in range(_MOST_ALIKE):
        at = content.find(content[place : place + 2], at + 1, place + _MOST_FRAME)
        if at < 0:
            break
        size = at - place - _padding(content, place)
        if follows(at) and follows(at + size + _padding(content, at)):
            return size
    return 0


def _next_frame(content: bytes, place: int, like: _Frame | None, end: int) -> tuple[int, _Frame | None]:
    """Finds the next frame before `end` that others of its kind follow: one, or more if it is not like `like`.

    Returns:
        Its place, and the frame; the end of the content, and None, if there is none.
    """
    candidates = re.compile(rb"\xff[\xe0-\xff]").finditer(content, place, end)
    for match in itertools.islice(candidates, _MOST_CANDIDATES):
        frame = _frame_at(content, match.start(), None)
        if frame is None:
            continue
        is_like = like is not None and frame.kind == like.kind
        most = 2 if is_like or like is None else _FRAMES_OF_ANOTHER_KIND
        count, behind = 1, match.start() + frame.size
        while count < most and (following := _frame_at(content, behind, frame)) is not None:
            count, behind = count + 1, behind + following.size
        if count == most or (is_like and behind == len(content)):
            return match.start(), frame
    return len(content), None
