"""`bgpt-fast data`: creates data sets, checks generated files, and computes baselines."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from bgpt_fast.terminal import print_error, print_text

KINDS = {
    "media": "images, audio and text of any format as small standard files, split into train and test",
    "music": "ABC collections as pairs of ABC and MIDI files; by default the Irish tunes of music21",
    "cpu-states": "random programs of the toy CPU and their traces, for training and testing",
    "check": "whether files decode, the accuracy of converted ones, and a page that shows them",
    "baselines": "bits per byte of gzip, xz and zstd on files, and classifiers that count bytes",
}


def run(words: Sequence[str]) -> int:
    """Runs the subcommand that the first word names."""
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, KINDS))
        kinds = "\n".join(f"  {name:<{width}}  {text}" for name, text in KINDS.items())
        print_text(f"usage: bgpt-fast data KIND [OPTIONS]\n\nkinds:\n{kinds}\n")
        print_text("bgpt-fast data KIND --help explains a kind's options.")
        return 0 if words else 2
    if words[0] not in KINDS:
        print_error(f"bgpt-fast data: expected a kind, one of {', '.join(KINDS)}; got {words[0]!r}")
        return 2
    module = importlib.import_module(f"bgpt_fast.cli.data_{words[0].replace('-', '_')}")
    return module.run(words[1:])
