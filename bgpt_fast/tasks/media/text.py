"""Conversion of text files to UTF-8 documents."""

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
_CONTROLS = {chr(code) for code in range(32)} - set("\a\b\t\n\f\r\x1b")  # text may contain overstrikes and colour codes


def standard_text(content: bytes, encoding: str = "", separator: str = "") -> list[bytes]:
    """Converts a text file to UTF-8 documents without byte-order mark, with LF line ends; empty ones are dropped.

    Args:
        content: the text file.
        encoding: encoding of a text that is not UTF-8 and has no byte-order mark; "" makes such a file an error.
        separator: text between two documents of a file, such as "\\n%\\n" in fortune files; "" means one document
            per file.

    Raises:
        MediaError: not text, or only white space.
        ValueError: no such encoding.
    """
    text = decode_text(content, encoding).replace("\r\n", "\n").replace("\r", "\n")
    documents = text.split(separator) if separator else [text]
    encoded = [document.encode() for document in documents if document.strip()]
    if not encoded:
        raise MediaError("text without a word")
    return encoded


def is_text(content: bytes, encoding: str = "") -> bool:
    """Whether the content decodes as text (`decode_text`)."""
    try:
        decode_text(content, encoding)
    except MediaError:
        return False
    return True


def decode_text(content: bytes, encoding: str = "") -> str:
    """Decodes a file as UTF-8, as its byte-order mark states, or in `encoding`; control characters are an error."""
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
    if controls := _CONTROLS.intersection(text):
        raise MediaError("text with control characters", ", ".join(sorted(f"{ord(one)}" for one in controls)))
    return text


def cut_text(data: bytes, most: int) -> list[bytes]:
    """Splits a UTF-8 document after a paragraph, else a line, else a word, else between characters.

    Args:
        data: the document.
        most: maximum number of bytes in a piece, at least 4; 0 means no split.
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
    while end > start and data[end] & 0xC0 == 0x80:  # do not split a character
        end -= 1
    return end if end > start else limit
