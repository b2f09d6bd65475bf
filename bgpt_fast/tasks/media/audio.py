"""Converts audio of any format to clips of 8-bit mono WAV."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bgpt_fast.memory import is_out_of_memory
from bgpt_fast.tasks.media.audio_length import UNKNOWN_LENGTH
from bgpt_fast.tasks.media.audio_streams import Stream, streams
from bgpt_fast.tasks.media.errors import MediaError, optional, raise_damage

_VALUES_A_BLOCK = 1 << 19
_LEAST_RATE, _MOST_RATE = 1000, 1_000_000
_MOST_SAMPLES = 1 << 28
"""Of the clips of one recording, which are held in memory: 9 hours at 8 kHz."""
_MOST_SECONDS = 24 * 3600


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
    description, seconds = "", 0.0
    for stream in streams(content):
        with _opened(stream) as sound:
            frames = sum(len(block) for block in _blocks(sound))
            seconds += frames / sound.rate
            channels = f"{sound.file.channels} channel{'s' * (sound.file.channels > 1)}"
            description = description or f"{sound.file.format} {sound.file.subtype} {sound.rate} Hz, {channels}"
    if not seconds:
        raise MediaError("audio without a sample")
    return f"{description}, {seconds:.3f} s"


def audio_as_wav(content: bytes) -> bytes:
    """Returns audio of any format as a 16-bit WAV file, of the first stream if there are several."""
    soundfile = optional("soundfile", "audio", "reading audio")
    file = io.BytesIO()
    with _opened(streams(content)[0]) as sound:
        samples = np.concatenate(list(_blocks(sound)))
        soundfile.write(file, samples, sound.rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def is_audio(content: bytes) -> bool:
    """Whether soundfile recognises the format."""
    try:
        for stream in streams(content):
            with _opened(stream):
                pass
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


class _Sound(NamedTuple):
    """An open `soundfile.SoundFile`, its sampling rate, and the least number of frames that it must have."""

    file: Any
    rate: int
    frames: int


@contextlib.contextmanager
def _opened(stream: Stream) -> Iterator[_Sound]:
    soundfile = optional("soundfile", "audio", "reading audio")

    class ForwardFile(soundfile.SoundFile):  # type: ignore[misc, name-defined]  # an optional package
        """Reads to the end: soundfile reads no more frames than are stated, and seeks after each read."""

        def seekable(self) -> bool:
            return False

    try:
        file = ForwardFile(_Content(stream.content))
    except soundfile.LibsndfileError as error:
        if is_out_of_memory(error):
            raise
        unknown = "Format not recognised" in str(error) or "unknown" in str(error)
        raise MediaError("no audio" if unknown else "damaged audio", error.error_string) from error
    except Exception as error:
        raise_damage("damaged audio", error)
    with file:
        if not _LEAST_RATE <= file.samplerate <= _MOST_RATE:
            raise MediaError("damaged audio", f"{file.samplerate} samples a second")
        frames = file.frames if stream.frames is None else stream.frames
        # Those that do not know it state a large one.
        yield _Sound(file, file.samplerate, frames if frames * file.channels < UNKNOWN_LENGTH else 0)


def _blocks(sound: _Sound) -> Iterator[NDArray[np.float32]]:
    """Yields float samples [frames, channels]; raises if there are fewer than the header states."""
    read = 0
    most = max(_VALUES_A_BLOCK // sound.file.channels, 1)
    try:
        # Not beyond the stated length, where a FLAC decoder takes a tag for damage.
        while frames := min(most, sound.file.frames - read):
            block = sound.file.read(frames, dtype="float32", always_2d=True)
            if not len(block):
                break
            read += len(block)
            if read > _MOST_SECONDS * sound.rate:
                raise MediaError("audio longer than a day")
            yield block
    except Exception as error:
        raise_damage("damaged audio", error)
    if read < sound.frames:
        raise MediaError("audio cut short", f"{read:,} samples of {sound.frames:,}")


def _resampled(content: bytes, rate: int) -> NDArray[np.uint8]:
    """Returns a recording resampled to `rate`; 128 is silence."""
    parts: list[NDArray[np.uint8]] = []
    samples = 0
    for stream in streams(content):
        with _opened(stream) as sound:
            for part in _resampled_blocks(sound, rate):
                samples += len(part)
                if samples > _MOST_SAMPLES:
                    raise MediaError("audio too long", f"over {_MOST_SAMPLES:,} samples at {rate} Hz")
                parts.append(part)
    return np.concatenate(parts) if parts else np.empty(0, np.uint8)


def _resampled_blocks(sound: _Sound, rate: int) -> Iterator[NDArray[np.uint8]]:
    if sound.rate == rate:
        yield from (_quantised(block.mean(1)) for block in _blocks(sound))
        return
    soxr = optional("soxr", "audio", "resampling audio")
    stream = soxr.ResampleStream(sound.rate, rate, 1, dtype="float32", quality="HQ")
    yield from (_quantised(stream.resample_chunk(block.mean(1))) for block in _blocks(sound))
    yield _quantised(stream.resample_chunk(np.empty(0, np.float32), last=True))


def _quantised(samples: NDArray[np.float32]) -> NDArray[np.uint8]:
    if not np.isfinite(samples).all():
        raise MediaError("damaged audio", "samples that are not finite")
    return np.clip(np.rint(samples * 128) + 128, 0, 255).astype(np.uint8)
