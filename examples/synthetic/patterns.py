"""Patterns that cost almost no bits once they are identified: alternating bits, and repeats of a short motif.

A file of alternating bits has one bit of information, a repeated motif that of its first occurrence; all other bytes
must cost ~0 bits.
"""

from __future__ import annotations

import dataclasses
import math
import random
import sys

from synthetic_documents import SMALL, Experiment, Rule, main, runs

SIZE = 248
FULL_SIZE = 8000
PERIODS = (1, 2, 4, 8)
LETTERS = b"acgt"


def alternating(size: int) -> Rule:
    """01010101… or 10101010…: one bit of information."""
    return Rule(lambda stream: ("alt", bytes([stream.choice((0x55, 0xAA))]) * size), lambda content: 1.0)


def repeats(size: int) -> Rule:
    """A random motif of 1, 2, 4 or 8 letters, repeated."""

    def make(stream: random.Random) -> tuple[str, bytes]:
        motif = bytes(stream.choice(LETTERS) for _ in range(stream.choice(PERIODS)))
        return "rep", (motif * size)[:size]

    def bits(content: bytes) -> float:
        fitting = [p for p in PERIODS if content == (content[:p] * size)[:size]]
        return -math.log2(sum(float(len(LETTERS)) ** -p for p in fitting) / len(PERIODS))

    return Rule(make, bits)


def experiments() -> dict[str, Experiment]:
    """Settings that train on a CPU."""
    return {
        "alternating": Experiment(alternating(SIZE), SMALL, 8, runs.cpu_training(steps=60), most_excess=0.002),
        "repeats": Experiment(
            repeats(SIZE),
            dataclasses.replace(SMALL, byte_num_heads=8),
            16,
            runs.cpu_training(steps=1500),
            most_excess=0.02,
        ),
    }


def full_experiments() -> dict[str, Experiment]:
    """With the paper's model."""
    return {
        "alternating": Experiment(
            alternating(FULL_SIZE), runs.PAPER, 32, runs.gpu_training(steps=500), most_excess=0.001
        ),
        "repeats": Experiment(repeats(FULL_SIZE), runs.PAPER, 32, runs.gpu_training(steps=3000), most_excess=0.001),
    }


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, experiments(), full_experiments()))
