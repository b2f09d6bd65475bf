"""Pairs of generated ABC tunes and abc2midi's MIDI files, in chunks that are cached on disk.

abc2midi converts a whole chunk in one process, so that a pair takes less than a millisecond.

    python examples/music/whole_tunes/tune_pairs.py --chunks 100     # fills the cache with two processes
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tune_generator import tune

from bgpt_fast.files import atomic_write
from bgpt_fast.tasks.music import find_abc2midi

TUNES = 256
"""Tunes of a chunk."""
VERSION = 1
"""Part of the name of a chunk's file; to be raised when the generator changes."""


def new_tune(seed: int, number: int, kind: str) -> str:
    """A generated tune of a kind: "whole", a number of bars such as "4", or "plain 4" for bars of notes alone."""
    bars = kind.removeprefix("plain ")
    return tune(seed, number, None if bars == "whole" else int(bars), plain=bars != kind)


class Pair(NamedTuple):
    """An ABC file and its MIDI file."""

    abc: bytes
    midi: bytes


def convert_all(tunes: Sequence[str]) -> tuple[list[bytes], str]:
    """MIDI files of ABC tunes that begin with X:1, b"" where abc2midi writes none; and all that it printed.

    Raises:
        OSError: abc2midi is missing.
        subprocess.TimeoutExpired: it needs more than a minute.
    """
    with tempfile.TemporaryDirectory(prefix="tunes-") as name:
        folder = Path(name)
        numbered = (f"X:{number}\n" + text.removeprefix("X:1\n") for number, text in enumerate(tunes, 1))
        (folder / "t.abc").write_text("\n".join(numbered), encoding="utf-8")
        done = subprocess.run(
            [find_abc2midi(), "t.abc"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
            check=False,
        )
        paths = [folder / f"t{number}.mid" for number in range(1, len(tunes) + 1)]
        files = [path.read_bytes() if path.exists() else b"" for path in paths]
    return files, done.stdout.decode("utf-8", "replace")


def make_chunk(seed: int, index: int, kind: str) -> list[Pair]:
    """Pairs `index · TUNES` … of the stream of `seed`, without those that abc2midi cannot convert."""
    tunes = [new_tune(seed, number, kind) for number in range(index * TUNES, (index + 1) * TUNES)]
    files, _ = convert_all(tunes)
    return [Pair(text.encode(), midi) for text, midi in zip(tunes, files, strict=True) if midi]


def cached_chunk(folder: Path, seed: int, index: int, kind: str) -> list[Pair]:
    """As `make_chunk`, from FOLDER if it is there, or else written to it."""
    path = folder / f"v{VERSION}-seed{seed}-{kind.replace(' ', '-')}" / f"{index:06d}.npz"
    if path.exists():
        with np.load(path) as arrays:
            data, ends = arrays["data"].tobytes(), arrays["ends"].tolist()
        files = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        return [Pair(*pair) for pair in zip(files[::2], files[1::2], strict=True)]
    pairs = make_chunk(seed, index, kind)
    files = [file for pair in pairs for file in pair]
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, data=np.frombuffer(b"".join(files), dtype=np.uint8), ends=np.cumsum([len(file) for file in files])
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(buffer.getvalue())
    return pairs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("runs/whole-tunes/cache"), help="the folder of the chunks")
    parser.add_argument("--chunks", type=int, default=100, help=f"chunks of {TUNES} tunes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", default="whole", help="of tunes: whole, a number of bars such as 4, or plain 4")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    start = time.monotonic()
    make = partial(_count, options.cache, options.seed, options.kind)
    with ProcessPoolExecutor(options.workers) as pool:
        pairs = sum(pool.map(make, range(options.chunks)))
    print(f"{pairs:,} pairs, {pairs / (time.monotonic() - start):,.0f} a second")
    return 0


def _count(folder: Path, seed: int, kind: str, index: int) -> int:
    return len(cached_chunk(folder, seed, index, kind))


if __name__ == "__main__":
    sys.exit(main())
