"""Tests how far the patch-level decoder carries information: a value is needed again k = 1 … 256 patches later.

recall: four patches of one letter, k - 1 patches of zeros, four of the letter again; one model for all k, which the
extension states.
delay: k random letters, then 16 that each repeat the letter k patches before: the model must locate it by distance.
A patch holds one letter and zeros. Without the earlier patches, a model needs 4 bits for each repeated letter.
"""

from __future__ import annotations

import dataclasses
import math
import random
import sys
from collections.abc import Callable

from synthetic_documents import SMALL, Experiment, Rule, main, runs

from bgpt_fast.tasks.evaluation import FileReport

LETTERS = b"ABCDEFGHIJKLMNOP"
BITS = math.log2(len(LETTERS))
DISTANCES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
COPIED = 16
BLOCK = 4
PATCH = 4


def recall(patch_size: int) -> Rule:
    """A letter in four patches, k - 1 patches of zeros, the letter in four again; the extension states k.

    Four patches and not one, since copying from the previous patch is learned before copying from far away.
    """

    def make(stream: random.Random) -> tuple[str, bytes]:
        k = stream.choice(DISTANCES)
        block = bytes([stream.choice(LETTERS)]).ljust(patch_size, b"\0") * BLOCK
        return f"k{k}", block + bytes(patch_size) * (k - 1) + block

    return Rule(make, lambda content: BITS)


def recalled_at_each_distance(report: FileReport) -> dict[str, float]:
    """Returns the recalled share of the letter for each k, and the lowest of them."""
    letters = dict.fromkeys(report.by_extension, 0)
    for file in report.files:
        letters[file.extension] += 1
    shares = {
        extension: 1 - (scores.nats / math.log(2) / letters[extension] - BITS) / BITS
        for extension, scores in report.by_extension.items()
    }
    ordered = {f"recalled_share_{name}": shares[name] for name in sorted(shares, key=lambda name: int(name[1:]))}
    return {**ordered, "least_recalled_share": min(shares.values())}


def delay_line(k: int, patch_size: int) -> Rule:
    """k random letters, then 16 copies of those k patches before; one letter per patch."""

    def make(stream: random.Random) -> tuple[str, bytes]:
        letters = [stream.choice(LETTERS) for _ in range(k)]
        for _ in range(COPIED):
            letters.append(letters[-k])
        return f"k{k}", b"".join(bytes([letter]).ljust(patch_size, b"\0") for letter in letters)

    return Rule(make, lambda content: k * BITS)


def recalled_behind(k: int, patch_size: int) -> Callable[[FileReport], dict[str, float]]:
    """Returns a function of the report: the share of the letters recalled over k patches."""

    def measure(report: FileReport) -> dict[str, float]:
        late = report.by_patch[k:]
        bits = sum(scores.per_position * patch_size for scores in late) / len(late)
        return {"least_recalled_share": 1 - bits / BITS}

    return measure


def experiments() -> dict[str, Experiment]:
    """Settings that train on a CPU."""
    small = dataclasses.replace(SMALL, patch_size=PATCH, patch_length=DISTANCES[-1] + 2 * BLOCK + 1)
    result = {
        f"delay_{k}": Experiment(
            delay_line(k, PATCH),
            dataclasses.replace(SMALL, patch_size=PATCH, patch_length=k + COPIED + 2),
            16,
            runs.cpu_training(steps=steps),
            most_excess=0.01,
            measure=recalled_behind(k, PATCH),
            least={"least_recalled_share": 0.99},
        )
        for k, steps in ((1, 200), (4, 200), (16, 300))
    }
    result["recall"] = Experiment(
        recall(PATCH),
        small,
        18,
        runs.cpu_training(steps=400, learning_rate=5e-3),
        most_excess=0.01,
        held_out=300,
        measure=recalled_at_each_distance,
        least={"least_recalled_share": 0.95},
    )
    return result


def full_experiments() -> dict[str, Experiment]:
    """With the paper's model."""
    S = runs.PAPER.patch_size
    result = {
        f"delay_{k}": Experiment(
            delay_line(k, S),
            runs.PAPER,
            64,
            runs.gpu_training(steps=3000),
            most_excess=0.001,
            measure=recalled_behind(k, S),
            least={"least_recalled_share": 0.99},
        )
        for k in (1, 4, 16, 64, 256)
    }
    result["recall"] = Experiment(
        recall(S),
        runs.PAPER,
        128,
        runs.gpu_training(steps=2000),
        most_excess=0.001,
        held_out=1000,
        measure=recalled_at_each_distance,
        least={"least_recalled_share": 0.95},
    )
    return result


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, experiments(), full_experiments()))
