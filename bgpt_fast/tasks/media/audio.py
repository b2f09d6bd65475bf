"""Converts audio of any format to clips of 8-bit mono WAV."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bgpt_fast.tasks.media.errors import MediaError, optional

_FRAMES_A_BLOCK = 1 << 18
_LEAST_RATE, _MOST_RATE = 1000, 1_000_000
_MOST_SECONDS = 24 * 3600
_FEWER_BYTES = re.compile(r"^(?:data|SSND) *: *(\d+) \(should be (\d+)\)", re.MULTILINE)
_LENGTH_UNKNOWN = 0x7FFFF000
"""Programs that write WAV to a pipe do not know the data size, and write this value or a larger one."""


def standard_audio(content: bytes, rate: int = 8000, seconds: float = 1.0) -> list[bytes]:
    """Converts a recording to clips: WAV files of mono 8-bit unsigned PCM, 44 + 8,000 bytes at 8 kHz and 1 s.

    Channels are averaged; soxr resamples at high quality; there is no normalisation or dithering, so 8-bit audio
    at this rate stays unchanged. A remainder of at least half a clip is padded with silence, as is a recording shorter
    than a clip; a shorter remainder is dropped.

    Args:
        content: the audio file.
        rate: sample rate of the clips in Hz.
        seconds: length of a clip.

    Raises:
        MediaError: not audio, damaged, truncated, or without a sample.
        ImportError: soundfile or soxr is missing.
    """
    return [write_wav(clip, rate) for clip in clips(content, rate, seconds)]


def clips(content: bytes, rate: int, seconds: float) -> list[NDArray[np.uint8]]:
    """Returns the samples of the clips of `standard_audio`; 128 is silence."""
    size = round(rate * seconds)
    samples = _resampled(content, rate)
    if not len(samples):
        raise MediaError("audio without a sample")
    count, rest = divmod(len(samples), size)
    if rest and (2 * rest >= size or not count):
        samples = np.concatenate([samples, np.full(size - rest, 128, np.uint8)])
        count += 1
    return list(samples[: count * size].reshape(count, size))


def write_wav(samples: NDArray[np.uint8], rate: int) -> bytes:
    """Returns a WAV file of mono 8-bit unsigned samples."""
    soundfile = optional("soundfile", "audio", "writing audio")
    file = io.BytesIO()
    # soundfile keeps the upper 8 of 16 bits.
    wide = (samples.astype(np.int16) - 128) << 8
    soundfile.write(file, wide, rate, format="WAV", subtype="PCM_U8")
    return file.getvalue()


def check_audio(content: bytes) -> str:
    """Decodes audio; returns a description, such as "WAV PCM_U8 8000 Hz, 1 channel, 1.000 s".

    Raises:
        MediaError: it does not decode, is truncated, or has no sample.
        ImportError: soundfile is missing.
    """
    with _opened(content) as file:
        frames = sum(len(block) for block in _blocks(file))
        if not frames:
            raise MediaError("audio without a sample")
        channels = f"{file.channels} channel{'s' * (file.channels > 1)}"
        return f"{file.format} {file.subtype} {file.samplerate} Hz, {channels}, {frames / file.samplerate:.3f} s"


def is_audio(content: bytes) -> bool:
    """Whether soundfile recognises the format."""
    try:
        _opened(content).close()
    except MediaError as error:
        return error.reason != "no audio"
    return True


class _Content(io.BytesIO):
    """Ignores seeks before the start (libsndfile, damaged files), for which soundfile would print a traceback."""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()


def _opened(content: bytes) -> Any:
    soundfile = optional("soundfile", "audio", "reading audio")
    try:
        file = soundfile.SoundFile(_Content(content))
    except soundfile.LibsndfileError as error:
        unknown = "Format not recognised" in str(error) or "unknown" in str(error)
        raise MediaError("no audio" if unknown else "damaged audio", error.error_string) from error
    except Exception as error:
        raise MediaError("damaged audio", str(error)) from error
    # libsndfile decodes truncated files without an error; only its log reports the missing bytes.
    for size, expected in _FEWER_BYTES.findall(file.extra_info):
        if int(expected) < int(size) < _LENGTH_UNKNOWN:
            file.close()
            raise MediaError("audio cut short", f"{expected} bytes of {size}")
    return file


def _blocks(file: Any) -> Iterator[NDArray[np.float32]]:
    """Yields float samples [frames, channels]; raises if there are fewer than the header states."""
    read = 0
    try:
        while len(block := file.read(_FRAMES_A_BLOCK, dtype="float32", always_2d=True)):
            read += len(block)
            if read > _MOST_SECONDS * file.samplerate:
                raise MediaError("audio longer than a day")
            yield block
    except (MediaError, MemoryError):
        raise
    except Exception as error:
        raise MediaError("damaged audio", str(error)) from error
    if read < file.frames < _LENGTH_UNKNOWN:
        raise MediaError("audio cut short", f"{read} samples of {file.frames}")


def _resampled(content: bytes, rate: int) -> NDArray[np.uint8]:
    """Returns a recording resampled to `rate`; 128 is silence."""
    soxr = optional("soxr", "audio", "resampling audio")
    with _opened(content) as file:
        if not _LEAST_RATE <= file.samplerate <= _MOST_RATE:
            raise MediaError("damaged audio", f"{file.samplerate} samples a second")
        if file.samplerate == rate:
            parts = [_quantised(block.mean(1)) for block in _blocks(file)]
        else:
            stream = soxr.ResampleStream(file.samplerate, rate, 1, dtype="float32", quality="HQ")
            parts = [_quantised(stream.resample_chunk(block.mean(1))) for block in _blocks(file)]
            parts.append(_quantised(stream.resample_chunk(np.empty(0, np.float32), last=True)))
    return np.concatenate(parts) if parts else np.empty(0, np.uint8)


def _quantised(samples: NDArray[np.float32]) -> NDArray[np.uint8]:
    if not np.isfinite(samples).all():
        raise MediaError("damaged audio", "samples that are not finite")
    return np.clip(np.rint(samples * 128) + 128, 0, 255).astype(np.uint8)
