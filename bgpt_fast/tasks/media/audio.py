"""Audio of any format as clips of 8-bit mono WAV."""

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
"""Programs that write WAV into a pipe put sizes from here on, not knowing the real one."""


def standard_audio(content: bytes, rate: int = 8000, seconds: float = 1.0) -> list[bytes]:
    """Clips of a recording, each a WAV file of mono 8-bit unsigned PCM: 44 + 8,000 bytes at 8 kHz and 1 s.

    Channels are averaged; soxr resamples at its high quality; nothing is normalised or dithered, so that 8-bit audio of
    this rate keeps its samples. A last piece of at least half a clip is padded with silence, and so is one that is all
    there is; a shorter one is left away.

    Args:
        content: the audio file.
        rate: samples a second of the clips.
        seconds: length of a clip.

    Raises:
        MediaError: no audio, damaged, cut short, or without a sample.
        ImportError: soundfile or soxr is missing.
    """
    return [write_wav(clip, rate) for clip in clips(content, rate, seconds)]


def clips(content: bytes, rate: int, seconds: float) -> list[NDArray[np.uint8]]:
    """The samples of the clips of `standard_audio`; 128 is silence."""
    size = round(rate * seconds)
    samples = _resampled(content, rate)
    if not len(samples):
        raise MediaError("audio without a sample")
    whole, rest = divmod(len(samples), size)
    if rest and (2 * rest >= size or not whole):
        samples = np.concatenate([samples, np.full(size - rest, 128, np.uint8)])
        whole += 1
    return list(samples[: whole * size].reshape(whole, size))


def write_wav(samples: NDArray[np.uint8], rate: int) -> bytes:
    """A WAV file of mono 8-bit unsigned samples."""
    soundfile = optional("soundfile", "audio", "writing audio")
    file = io.BytesIO()
    # 16 bits with the lower 8 empty become these very 8 bits.
    wide = (samples.astype(np.int16) - 128) << 8
    soundfile.write(file, wide, rate, format="WAV", subtype="PCM_U8")
    return file.getvalue()


def check_audio(content: bytes) -> str:
    """Decodes audio to its end and says what it is, as "WAV PCM_U8 8000 Hz, 1 channel, 1.000 s".

    Raises:
        MediaError: soundfile does not decode it, it is cut short, or has no sample.
        ImportError: soundfile is missing.
    """
    with _opened(content) as file:
        frames = sum(len(block) for block in _blocks(file))
        if not frames:
            raise MediaError("audio without a sample")
        channels = f"{file.channels} channel{'s' * (file.channels > 1)}"
        return f"{file.format} {file.subtype} {file.samplerate} Hz, {channels}, {frames / file.samplerate:.3f} s"


def is_audio(content: bytes) -> bool:
    """Whether soundfile knows the format."""
    try:
        _opened(content).close()
    except MediaError as error:
        return error.reason != "no audio"
    return True


class _Content(io.BytesIO):
    """Ignores seeks before the begin, which damaged files lead libsndfile to: soundfile would print a traceback."""

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
    # libsndfile takes what is there of a file that is cut short, and says so here alone.
    for promised, there in _FEWER_BYTES.findall(file.extra_info):
        if int(there) < int(promised) < _LENGTH_UNKNOWN:
            file.close()
            raise MediaError("audio cut short", f"{there} bytes of {promised}")
    return file


def _blocks(file: Any) -> Iterator[NDArray[np.float32]]:
    """Float samples [frames, channels], to the end that the header promises."""
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
    """All of a recording at the rate, 128 being silence."""
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
        raise MediaError("damaged audio", "samples that are no numbers")
    return np.clip(np.rint(samples * 128) + 128, 0, 255).astype(np.uint8)
