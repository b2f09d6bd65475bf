"""Converts media files to small files in standard formats for a byte model."""

from bgpt_fast.tasks.media.audio import standard_audio
from bgpt_fast.tasks.media.errors import MediaError
from bgpt_fast.tasks.media.images import standard_image
from bgpt_fast.tasks.media.names import Plan
from bgpt_fast.tasks.media.source import MediaOptions
from bgpt_fast.tasks.media.spectrogram import spectrogram_image
from bgpt_fast.tasks.media.standardise import MediaReport, standardise
from bgpt_fast.tasks.media.text import standard_text

__all__ = [
    "MediaError",
    "MediaOptions",
    "MediaReport",
    "Plan",
    "spectrogram_image",
    "standard_audio",
    "standard_image",
    "standard_text",
    "standardise",
]
