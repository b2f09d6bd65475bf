"""Windows of held-out files that an evaluation during training scores: of every file, up to a number of patches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bgpt_fast.config import BGPTConfig
from bgpt_fast.documents import FixedWindow, count_patches

LEAST_PATCHES = 8
"""Patches of the shortest window, unless its file is shorter."""


def evaluation_windows(
    sizes: Sequence[int], config: BGPTConfig, max_patches: int, seed: int
) -> list[tuple[int, FixedWindow]]:
    """Chooses windows with at most about `max_patches` patches together; the same for the same arguments.

    If all files fit, they are scored whole, in windows one after the other, each patch once. Otherwise each file gets
    the same number of patches (or all, if it has fewer): windows that do not overlap, at random places, one in each
    equal part of the file. With fewer than `LEAST_PATCHES` patches a file, a random sample of the files is scored.

    Args:
        sizes: of the files in bytes.
        config: determines the patch size and the context.
        max_patches: extension patches included, at least 1.
        seed: of the places and the sample.

    Returns:
        (index of the file, window), in the order of the files.
    """
    stream = np.random.default_rng([seed, len(sizes), max_patches])
    chosen = np.arange(len(sizes))
    if len(sizes) * LEAST_PATCHES > max_patches:
        chosen = np.sort(stream.choice(chosen, min(len(sizes), max(1, max_patches // LEAST_PATCHES)), replace=False))
    step = config.patch_length - 1
    # Patches to score: all but the extension patch, of which each window has one.
    scored = np.array([count_patches(sizes[index], config.patch_size) - 1 for index in chosen.tolist()], np.int64)
    share = max(_share(scored + -(-scored // step), max_patches), 2)
    windows: list[tuple[int, FixedWindow]] = []
    for index, count in zip(chosen.tolist(), scored.tolist(), strict=True):
        if count + -(-count // step) <= share:
            starts, length = list(range(0, count, step)), min(step, count)
        else:
            parts = -(-share // config.patch_length)
            length = share // parts - 1
            edges = [count * part // parts for part in range(parts + 1)]
            spare = [max(edges[part + 1] - edges[part] - length, 0) for part in range(parts)]
            starts = [edges[part] + int(stream.integers(0, spare[part] + 1)) for part in range(parts)]
        windows += [(index, FixedWindow(config, start, length + 1)) for start in starts]
    return windows


def _share(costs: NDArray[np.int64], total: int) -> int:
    """The largest a for which the sum of min(cost, a) is at most `total`; the largest cost if all fit."""
    ordered = np.sort(costs)
    for place, cost in enumerate(ordered.tolist()):
        files = len(ordered) - place
        if cost * files > total:
            return total // files
        total -= cost
    return int(ordered[-1])
