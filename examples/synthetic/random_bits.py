"""A random process of known entropy, which the model's bits per byte must reach and cannot fall below.

Each bit differs from the previous one, across bytes and patches, with a probability of 10 %: 0.469 bits per bit, 3.752
per byte. Another stream has independent bits that are 1 with 10 %: the same entropy, without memory. Compressors that
model bytes and not bits are far above it.
"""

from __future__ import annotations

import math
import random
import sys

from synthetic_documents import SMALL, Experiment, Rule, main, runs

SIZE = 248
FULL_SIZE = 8000
CHANCE = 0.1


def flipping(size: int) -> Rule:
    """A Markov chain of bits: the first is uniform, each other differs from the last with a probability of 10 %."""

    def make(stream: random.Random) -> tuple[str, bytes]:
        bit, bits = stream.getrandbits(1), 0
        for place in range(8 * size):
            bit ^= place > 0 and stream.random() < CHANCE
            bits = bits << 1 | bit
        return "flip", bits.to_bytes(size, "big")

    def cost(content: bytes) -> float:
        bits = int.from_bytes(content, "big")
        flips = ((bits ^ bits >> 1) & ((1 << 8 * size - 1) - 1)).bit_count()
        return 1 + _cost(flips, 8 * size - 1)

    return Rule(make, cost)


def coin(size: int) -> Rule:
    """Independent bits that are 1 with a probability of 10 %."""

    def make(stream: random.Random) -> tuple[str, bytes]:
        bits = 0
        for _ in range(8 * size):
            bits = bits << 1 | (stream.random() < CHANCE)
        return "coin", bits.to_bytes(size, "big")

    def cost(content: bytes) -> float:
        return _cost(int.from_bytes(content, "big").bit_count(), 8 * size)

    return Rule(make, cost)


def _cost(rare: int, count: int) -> float:
    return -rare * math.log2(CHANCE) - (count - rare) * math.log2(1 - CHANCE)


def experiments() -> dict[str, Experiment]:
    """Settings that train on a CPU."""
    return {
        "coin": Experiment(coin(SIZE), SMALL, 8, runs.cpu_training(steps=200), most_excess=0.05),
        "flipping": Experiment(flipping(SIZE), SMALL, 16, runs.cpu_training(steps=600), most_excess=0.05),
    }


def full_experiments() -> dict[str, Experiment]:
    """With the paper's model."""
    return {
        "coin": Experiment(coin(FULL_SIZE), runs.PAPER, 32, runs.gpu_training(steps=2000), most_excess=0.01),
        "flipping": Experiment(flipping(FULL_SIZE), runs.PAPER, 32, runs.gpu_training(steps=5000), most_excess=0.01),
    }


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, experiments(), full_experiments()))
