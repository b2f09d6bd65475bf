"""The conversion of one media file to standard files; runs in worker processes."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from bgpt_fast.documents import extension_of
from bgpt_fast.files import FileContentError, read_file
from bgpt_fast.journal import content_digest
from bgpt_fast.tasks.media.audio import check_audio, clips, is_audio, write_wav
from bgpt_fast.tasks.media.errors import MediaError
from bgpt_fast.tasks.media.images import Fit, check_image, is_image, standard_image
from bgpt_fast.tasks.media.spectrogram import spectrogram_image
from bgpt_fast.tasks.media.text import cut_text, is_text, standard_text

Kind = Literal["image", "audio", "text"]
KINDS: tuple[Kind, ...] = ("image", "audio", "text")
# These extensions determine the kind without decoding, so that a damaged file is reported as its kind.
_AUDIO = "wav wave flac ogg oga opus mp3 aif aiff aifc au snd caf w64 rf64 voc sph m4a aac wma"
_IMAGES = "bmp dib png apng jpg jpeg jpe jp2 gif tif tiff webp avif ico icns pcx ppm pgm pbm pnm tga"
_TEXTS = "txt text md rst csv tsv json jsonl xml html htm tex py c h cpp js abc"
AUDIO, IMAGES, TEXTS = (frozenset(extensions.split()) for extensions in (_AUDIO, _IMAGES, _TEXTS))


@dataclass(frozen=True)
class MediaOptions:
    """The format of standard files.

    Args:
        kinds: kinds of files to convert; others are skipped and counted.
        image_size: width and height in pixels.
        image_fit: images of another aspect ratio are stretched, cropped to their centre, or padded with white.
        audio: clips are written as WAV, as spectrogram images, or both.
        sample_rate: sampling rate of the clips, in samples per second.
        clip_seconds: length of a clip.
        text_encoding: encoding of texts that are not UTF-8; "" skips them.
        text_separator: text between two documents of one file, whose splits are independent; "" means one document
            per file. "\\n" and "\\t" are a line feed and a tab.
        text_bytes: longer documents are split at paragraphs, lines or words; 0 means never.
        most_bytes: larger sources are skipped, since each source is read into memory.
    """

    kinds: tuple[Kind, ...] = KINDS
    image_size: tuple[int, int] = (32, 32)
    image_fit: Fit = "stretch"
    audio: Literal["wav", "spectrogram", "both"] = "wav"
    sample_rate: int = 8000
    clip_seconds: float = 1.0
    text_encoding: str = ""
    text_separator: str = ""
    text_bytes: int = 0
    most_bytes: int = 1 << 29

    def __post_init__(self) -> None:
        expected = [
            ("kinds", bool(self.kinds) and set(self.kinds) <= set(KINDS), f"some of {', '.join(KINDS)}"),
            ("image_size", all(1 <= side <= 4096 for side in self.image_size), "sides from 1 to 4096"),
            ("sample_rate", 1000 <= self.sample_rate <= 192_000, "1,000 to 192,000"),
            ("clip_seconds", 1 <= self.sample_rate * self.clip_seconds < 1 << 28, "1 to 2²⁸ samples"),
            ("text_bytes", self.text_bytes == 0 or self.text_bytes >= 16, "0, or at least 16"),
            ("most_bytes", 1 <= self.most_bytes <= 1 << 40, "1 to 2⁴⁰"),
            ("text_encoding", not self.text_encoding or _is_encoding(self.text_encoding), "an encoding of Python's"),
        ]
        for name, right, words in expected:
            if not right:
                raise ValueError(f"{name}: expected {words}, got {getattr(self, name)!s:.80}")


def _is_encoding(name: str) -> bool:
    try:
        return codecs.lookup(name)._is_text_encoding  # "hex" and "rot13" decode no bytes to text
    except (LookupError, ValueError):
        return False


class Output(NamedTuple):
    """A standard file: its folder, the suffix of its stem, its extension and content.

    `document` is the digest of its document if the source has several independent ones; "" if all outputs of a source
    belong together.
    """

    kind: Kind
    suffix: str
    extension: str
    content: bytes
    document: str = ""


class Standardised(NamedTuple):
    """The outputs of a source, or the reason why there are none."""

    digest: str
    outputs: list[Output]
    reason: str = ""
    detail: str = ""


def read_and_standardise(path: str, options: MediaOptions) -> Standardised:
    """Reads a source and converts it to standard files."""
    try:
        content = read_file(path, options.most_bytes)
    except FileContentError:
        return Standardised("", [], "too large", f"over {options.most_bytes:,} bytes; see most_bytes")
    except OSError as error:
        return Standardised("", [], "unreadable", str(error.strerror))
    digest = content_digest(content)
    try:
        return Standardised(digest, standard_files(path, content, options))
    except MediaError as error:
        return Standardised(digest, [], error.reason, error.detail)


def standard_files(name: str, content: bytes, options: MediaOptions) -> list[Output]:
    """Returns the standard files of a media file.

    Args:
        name: the file's name.
        content: all bytes of the file.
        options: the format.

    Raises:
        MediaError: the file has no output.
        ImportError: the decoder's package is missing.
    """
    kind = kind_of(name, content, options.kinds, options.text_encoding)
    if kind not in options.kinds:
        raise MediaError(f"{kind}, not among the kinds")
    if kind == "image":
        return [Output("image", "", "bmp", standard_image(content, options.image_size, options.image_fit))]
    if kind == "text":
        separator = options.text_separator.replace("\\n", "\n").replace("\\t", "\t")
        pieces = []
        for document in standard_text(content, options.text_encoding, separator):
            key = content_digest(document) if separator else ""
            pieces += [("txt", piece, key) for piece in cut_text(document, options.text_bytes)]
        many = len(pieces) > 1
        return [Output("text", f"-{n:05d}" * many, *one) for n, one in enumerate(pieces)]
    outputs = []
    rate = options.sample_rate
    for number, samples in enumerate(clips(content, rate, options.clip_seconds)):
        if options.audio != "spectrogram":
            outputs.append(Output("audio", f"-{number:05d}", "wav", write_wav(samples, rate)))
        if options.audio != "wav":
            image = spectrogram_image(samples, rate, options.image_size)
            outputs.append(Output("image", f"-{number:05d}", "bmp", image))
    return outputs


def kind_of(name: str, content: bytes, kinds: tuple[Kind, ...] = KINDS, encoding: str = "") -> Kind:
    """Returns the kind of a file: by a known extension, otherwise the first of `kinds` whose decoder recognises it.

    A file that is text, too, is an image or audio only if it decodes.

    Raises:
        MediaError: none does.
    """
    extension = extension_of(name).lower()
    if extension in IMAGES:
        return "image"
    if extension in AUDIO:
        return "audio"
    if extension in TEXTS:
        return "text"
    could_be_text = "text" in kinds and is_text(content, encoding)
    decoders: tuple[tuple[Kind, Callable[[bytes], bool], Callable[[bytes], object]], ...] = (
        ("image", is_image, check_image),
        ("audio", is_audio, check_audio),
    )
    for kind, recognises, decode in decoders:
        if kind not in kinds or not recognises(content):
            continue
        # A text can begin like an image or a recording ("BM", "P5", "ID3").
        if could_be_text:
            try:
                decode(content)
            except MediaError:
                continue
        return kind
    if could_be_text:
        return "text"
    raise MediaError(f"no {', '.join(kinds[:-1])}{' or ' * (len(kinds) > 1)}{kinds[-1]}")
