"""Where the samples of an audio file end according to its header, for the formats that state it.

PAF, PVF, IRCAM, and XI as libsndfile writes it, state no length: only a file that ends within a sample is noticed.
Sources: the headers that libsndfile 1.2 writes, and the specifications of the formats.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator

UNKNOWN_LENGTH = 0x7F000000
"""Programs that write to a pipe do not know the length, and write this 32-bit value or a larger one."""
_MAT4_BYTES = (8, 4, 4, 2, 2, 1)


def stated_end(content: bytes) -> int | None:
    """Returns the offset behind the last sample according to the header.

    Args:
        content: the audio file, without a tag before its header.

    Returns:
        The offset, beyond the end of a truncated file; None if the header does not state it.
    """
    for begin, end_of in _FORMATS:
        if content.startswith(begin):
            try:
                return end_of(content)
            except (struct.error, IndexError, ValueError):  # within the header
                return None
    return None


def riff_chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields (identifier, offset of the data, stated size) of the chunks of a RIFF, RIFX or RF64 file."""
    yield from _chunks(content, 12, ">4sI" if content.startswith(b"RIFX") else "<4sI", 2)


def _chunks(content: bytes, start: int, header: str, align: int) -> Iterator[tuple[bytes, int, int]]:
    place = start
    while place + struct.calcsize(header) <= len(content):
        name, size = struct.unpack_from(header, content, place)
        place += struct.calcsize(header)
        yield name, place, size
        if size < 0:
            return
        place += size + -size % align


def _riff(content: bytes) -> int | None:
    size_64 = None
    for name, place, size in riff_chunks(content):
        if name == b"ds64":
            (size_64,) = struct.unpack_from("<Q", content, place + 8)
        if name == b"data":
            if size == 0xFFFFFFFF and size_64:
                return place + size_64
            return _unless_unknown(place, size)
    return None


def _iff(content: bytes) -> int | None:
    for name, place, size in _chunks(content, 12, ">4sI", 2):
        if name in (b"SSND", b"BODY"):
            return _unless_unknown(place, size)
    return None


def _w64(content: bytes) -> int | None:
    place = 40
    while place + 24 <= len(content):
        (size,) = struct.unpack_from("<Q", content, place + 16)
        if content[place : place + 4] == b"data":
            return place + size if 24 < size < 1 << 62 else None
        if size < 24:
            return None
        place += size + -size % 8
    return None


def _caf(content: bytes) -> int | None:
    for name, place, size in _chunks(content, 8, ">4sq", 1):
        if name == b"data":
            return place + size if size > 0 else None  # -1: not known
    return None


def _au(content: bytes) -> int | None:
    start, size = struct.unpack_from("<II" if content.startswith(b"dns.") else ">II", content, 4)
    return _unless_unknown(start, size)


def _avr(content: bytes) -> int | None:
    is_stereo, bits = struct.unpack_from(">HH", content, 12)
    (frames,) = struct.unpack_from(">I", content, 26)
    return 128 + frames * (bits // 8) * (2 if is_stereo else 1)


def _mat4(content: bytes) -> int | None:
    order = "<" if content[0] or content[4] else ">"
    place = 0
    for _ in range(2):  # the sampling rate, the samples
        kind, rows, columns, _, name = struct.unpack_from(f"{order}5I", content, place)
        place += 20 + name + rows * columns * _MAT4_BYTES[kind // 10 % 10]
    return place


def _mat5(content: bytes) -> int | None:
    order = "<" if content[126:128] == b"IM" else ">"
    place = 136 + struct.unpack_from(f"{order}I", content, 132)[0] + 8  # behind the sampling rate and a matrix's head
    for _ in range(3):  # flags, dimensions, name
        kind, size = struct.unpack_from(f"{order}II", content, place)
        place += 8 if kind >> 16 else 8 + size + -size % 8
    return place + 8 + struct.unpack_from(f"{order}I", content, place + 4)[0]


def _mpc(content: bytes) -> int | None:
    (frames,) = struct.unpack_from("<I", content, 30)
    return 42 + 2 * frames * (1 + bool(content[21]))


def _nist(content: bytes) -> int | None:
    header = int(content[8:16])
    fields = dict(re.findall(rb"^(\w+) -i (\d+)$", content[:header], re.MULTILINE))
    samples = int(fields.get(b"sample_count", 0)) * int(fields.get(b"channel_count", 1))
    return header + samples * int(fields.get(b"sample_n_bytes", 1)) if samples else None


def _sds(content: bytes) -> int | None:
    bits = content[6]
    samples = content[10] | content[11] << 7 | content[12] << 14
    if not 8 <= bits <= 28:
        return None
    samples_a_packet = 120 // -(-bits // 7)
    return 21 - 127 * (-samples // samples_a_packet)


def _voc(content: bytes) -> int | None:
    (place,) = struct.unpack_from("<H", content, 20)
    while content[place]:
        kind, size = content[place], int.from_bytes(content[place + 1 : place + 4], "little")
        place += 4 + size
        if kind in (1, 9):  # the one block with samples that libsndfile reads; it wants a terminator behind the former
            return place + (kind == 1)
    return None


def _wve(content: bytes) -> int | None:
    (size,) = struct.unpack_from(">I", content, 18)
    return 32 + size


def _xi(content: bytes) -> int | None:
    samples, size = struct.unpack_from("<HI", content, 296)
    return 298 + 40 + size if samples == 1 and size else None


def _paf(content: bytes) -> int | None:
    width, channels = struct.unpack_from(">ii" if content.startswith(b" paf") else "<ii", content, 16)
    return _whole_frames(content, 2048, channels * {0: 2, 1: 32, 2: 1}.get(width, 1))  # 24 bits: blocks of 10 samples


def _pvf(content: bytes) -> int | None:
    header = content[:100].split(b"\n")[:2]
    channels, _, bits = map(int, header[1].split())
    return _whole_frames(content, len(header[0]) + len(header[1]) + 2, channels * bits // 8)


def _ircam(content: bytes) -> int | None:
    channels, encoding = struct.unpack_from("<II" if content.startswith(b"\x64\xa3") else ">II", content, 8)
    return _whole_frames(content, 1024, channels * (encoding & 0xFF))


def _whole_frames(content: bytes, start: int, size: int) -> int | None:
    """The end of the last frame, complete or not."""
    return start - size * ((start - len(content)) // size) if size > 0 else None


def _unless_unknown(place: int, size: int) -> int | None:
    return place + size if 0 < size < UNKNOWN_LENGTH else None


_FORMATS: tuple[tuple[bytes | tuple[bytes, ...], Callable[[bytes], int | None]], ...] = (
    ((b"RIFF", b"RIFX", b"RF64"), _riff),
    (b"riff\x2e\x91\xcf\x11", _w64),
    (b"FORM", _iff),
    (b"caff", _caf),
    ((b".snd", b"dns."), _au),
    (b"2BIT", _avr),
    (b"MATLAB 5.0", _mat5),
    ((b"\0\0\0\0\1\0\0\0\1\0\0\0\0\0\0\0", b"\0\0\x03\xe8\0\0\0\1\0\0\0\1\0\0\0\0"), _mat4),
    (b"\1\4", _mpc),
    (b"NIST_1A", _nist),
    (b"\xf0\x7e", _sds),
    (b"Creative Voice File\x1a", _voc),
    (b"ALawSoundFile**", _wve),
    (b"Extended Instrument: ", _xi),
    ((b" paf", b"fap "), _paf),
    (b"PVF1\n", _pvf),
    ((b"\x64\xa3", b"\0\1\xa3\x64", b"\0\2\xa3\x64", b"\0\3\xa3\x64"), _ircam),
)
