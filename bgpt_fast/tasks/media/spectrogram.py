"""Spectrograms of audio clips as images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bgpt_fast.tasks.media.errors import optional
from bgpt_fast.tasks.media.images import write_bmp

_WINDOW = 512
_RANGE_DB = 80.0


def spectrogram_image(samples: NDArray[np.uint8], rate: int, size: tuple[int, int] = (32, 32)) -> bytes:
    """Returns the log-mel spectrogram of a clip as a grey 24-bit BMP: time to the right, mels upwards, 80 dB of range.

    White is the clip's maximum. The paper does not specify its spectrograms.

    Args:
        samples: uint8 [n], mono; 128 is silence.
        rate: samples per second.
        size: width (columns of time) and height (mel bands).

    Raises:
        ImportError: Pillow is missing.
    """
    optional("PIL", "image", "drawing spectrograms")
    from PIL import Image

    columns, bands = size
    power = _power(samples, columns)
    mels = np.maximum(power @ _mel_bands(bands, rate), 1e-12)
    decibels = 10 * np.log10(mels)
    light = np.clip((decibels - decibels.max()) / _RANGE_DB + 1, 0, 1)
    if not np.any(samples != 128):
        light = np.zeros_like(light)
    grey = np.rint(light.T[::-1] * 255).astype(np.uint8)
    return write_bmp(Image.fromarray(np.repeat(grey[:, :, None], 3, axis=2)))


def _power(samples: NDArray[np.uint8], columns: int) -> NDArray[np.float64]:
    """Returns float64 [columns, _WINDOW // 2 + 1]: the power spectra of equally spaced windows of the clip."""
    wave = np.pad((samples.astype(np.float64) - 128) / 128, _WINDOW)
    centres = np.rint((np.arange(columns) + 0.5) * len(samples) / columns).astype(int) + _WINDOW
    starts = centres - _WINDOW // 2
    windows = np.stack([wave[start : start + _WINDOW] for start in starts]) * np.hanning(_WINDOW)
    return np.abs(np.fft.rfft(windows)) ** 2


def _mel_bands(bands: int, rate: int) -> NDArray[np.float64]:
    """Returns float64 [_WINDOW // 2 + 1, bands]: triangular filters, equally spaced in mels."""
    top = 2595 * np.log10(1 + rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, bands + 2) / 2595) - 1)
    frequencies = np.fft.rfftfreq(_WINDOW, 1 / rate)[:, None]
    low, middle, high = corners[:-2], corners[1:-1], corners[2:]
    rising = (frequencies - low) / (middle - low)
    falling = (high - frequencies) / (high - middle)
    triangles = np.clip(np.minimum(rising, falling), 0, None)
    # A filter narrower than the frequency resolution takes the nearest frequency.
    empty = np.flatnonzero(triangles.sum(0) == 0)
    triangles[np.abs(frequencies - middle[empty]).argmin(0), empty] = 1
    return triangles
