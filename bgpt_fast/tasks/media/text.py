"""Text as UTF-8 documents."""

from __future__ import annotations

import codecs

from bgpt_fast.tasks.media.errors import MediaError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROLS = {chr(code) for code in range(32)} - set("\a\b\t\n\f\r\x1b")  # overstruck letters and colours are text


def standard_text(content: bytes, encoding: str = "", separator: str = "") -> list[bytes]:
    """UTF-8 documents: no byte-order mark, lines that end in a line feed, never an empty one.

    Args:
        content: the text file.
        encoding: what the text is in where it is not UTF-8 and has no byte-order mark; "" means that such a file is
            none.
        separator: what stands between two documents of a file, as "\\n%\\n" in fortune files; "" means one document a
            file.

    Raises:
        MediaError: no text, or nothing but white space.
        ValueError: no such encoding.
    """
    text = decode_text(content, encoding).replace("\r\n", "\n").replace("\r", "\n")
    documents = text.split(separator) if separator else [text]
    made = [document.encode() for document in documents if document.strip()]
    if not made:
        raise MediaError("text without a word")
    return made


def is_text(content: bytes, encoding: str = "") -> bool:
    """Whether it is UTF-8, has a byte-order mark or is in `encoding`, and is free of control characters."""
    try:
        decode_text(content, encoding)
    except MediaError:
        return False
    return True


def decode_text(content: bytes, encoding: str = "") -> str:
    """The text of a file in UTF-8, in what its byte-order mark says, or else in `encoding`."""
    named = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(named)
    except UnicodeDecodeError as error:
        if not encoding or named != "utf-8":
            raise MediaError("text that is not UTF-8", f"byte {error.start}") from error
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError as other:
            raise MediaError(f"text that is neither UTF-8 nor {encoding}", f"byte {other.start}") from other
        except LookupError as other:
            raise ValueError(f"encoding: expected the name of an encoding, as latin-1, got {encoding!r}") from other
    if found := _CONTROLS.intersection(text):
        raise MediaError("text with control characters", ", ".join(sorted(f"{ord(one)}" for one in found)))
    return text


def cut_text(data: bytes, most: int) -> list[bytes]:
    """A UTF-8 document in pieces, cut behind a paragraph, else a line, else a word, else anywhere between characters.

    Args:
        data: the document.
        most: most bytes of a piece, at least 4; 0 means one piece.
    """
    if not most:
        return [data]
    pieces = []
    start = 0
    while len(data) - start > most:
        end = _cut(data, start, start + most)
        pieces.append(data[start:end])
        start = end
    pieces.append(data[start:])
    return [piece for piece in pieces if piece.strip()]


def _cut(data: bytes, start: int, limit: int) -> int:
    for mark in (b"\n\n", b"\n", b" "):
        at = data.rfind(mark, start + 1, limit)
        if at > 0:
            return at + len(mark)
    end = limit
    while end > start and data[end] & 0xC0 == 0x80:  # not within a character
        end -= 1
    return end if end > start else limit
