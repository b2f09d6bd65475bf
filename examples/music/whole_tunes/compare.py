"""Compares generated tunes with the real training tunes: PYTHONPATH=. python …/compare.py [--run FOLDER].

Sizes, shares of the tunes with each kind of sign, and how far apart the texts are: the total variation distance between
the frequencies of their character n-grams (0: equal, 1: nothing in common), beside that of two halves of the real ones.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from train import RUN
from tune_generator import tune
from tune_pairs import convert_all

FEATURES = {
    "repeat": r":\|",
    "repeat opened": r"\|:",
    "two repeats at once": r"::",
    "endings": r"[|\[]1",
    "slur": r"\((?![2-9])",
    "broken rhythm": r"[<>]",
    "backslash": r"\\$",
    "accidental": r"[\^_=][A-Ga-g]",
    "grace note": r"\{",
    "staccato": r"\.[A-Ga-g]",
    "bowing": r"[uv]",
    "triplet": r"\(3",
    "text": r'"',
    "rest": r"z",
    "trill": r"T",
    "roll": r"~",
    "hold": r"H",
    "tie": r"-",
    "chord": r"\[[A-Ga-g^_=]",
    "tempo": r"^Q:",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=RUN, help="the run's folder, which has the real pairs")
    options = parser.parse_args()
    paths = sorted((options.run / "real/train").glob("*.abc"))
    real = [path.read_text(encoding="utf-8") for path in paths]
    generated = [tune(0, number) for number in range(len(real))]
    sizes = {
        "real": [(path.stat().st_size, path.with_suffix(".mid").stat().st_size) for path in paths],
        "generated": [
            (len(text), len(midi)) for text, midi in zip(generated, convert_all(generated)[0], strict=True) if midi
        ],
    }
    for name, pairs in sizes.items():
        abc, midi = np.array(pairs).T
        quartiles = [int(value) for value in np.percentile(midi, (5, 25, 50, 75, 95))]
        print(f"{name}: {abc.mean():.0f} + {midi.mean():.0f} bytes; MIDI's 5, 25, 50, 75, 95 %: {quartiles}")
    for name, pattern in FEATURES.items():
        shares = [
            np.mean([bool(re.search(pattern, _body(text, name), re.M)) for text in texts])
            for texts in (real, generated)
        ]
        print(f"{name}: {shares[0]:.3f} of the real tunes, {shares[1]:.3f} of the generated ones")
    for n in (1, 2, 3):
        far, near = distance(real, generated, n), distance(real[::2], real[1::2], n)
        print(f"{n}-grams: {far:.3f} from the real tunes; two halves of these: {near:.3f}")
    return 0


def _body(text: str, feature: str) -> str:
    return text if feature == "tempo" else re.sub(r"^[A-Za-z]:(?![:|]).*$", "", text, flags=re.M)


def distance(first: Sequence[str], second: Sequence[str], n: int) -> float:
    """The total variation distance between the frequencies of the n-grams of two sets of texts."""
    one, other = _frequencies(first, n), _frequencies(second, n)
    return sum(abs(one[gram] - other[gram]) for gram in one.keys() | other.keys()) / 2


def _frequencies(texts: Sequence[str], n: int) -> Counter[str]:
    counts = Counter(text[place : place + n] for text in texts for place in range(len(text) - n + 1))
    total = sum(counts.values())
    return Counter({gram: count / total for gram, count in counts.items()})


if __name__ == "__main__":
    sys.exit(main())
