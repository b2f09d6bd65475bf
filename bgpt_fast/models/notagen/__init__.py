"""NotaGen (arXiv 2502.18008): sheet music in ABC notation, on bGPT's two decoders with 128 symbols.

A NotaGen is a `BGPT` whose config has NotaGen's alphabet (`notagen_config`); `BGPT.from_pretrained` reads the released
`.pth` files.
"""

from bgpt_fast.models.notagen.generator import MOST_BYTES, RELEASED_SAMPLING, Tune, TuneGenerator, generate
from bgpt_fast.models.notagen.source import TuneSource, pack_tunes
from bgpt_fast.models.notagen.tunes import (
    TuneError,
    is_notagen,
    notagen_config,
    prompt_context,
    split_bars,
    text_of,
    tune_patches,
)

__all__ = [
    "MOST_BYTES",
    "RELEASED_SAMPLING",
    "Tune",
    "TuneError",
    "TuneGenerator",
    "TuneSource",
    "generate",
    "is_notagen",
    "notagen_config",
    "pack_tunes",
    "prompt_context",
    "split_bars",
    "text_of",
    "tune_patches",
]
