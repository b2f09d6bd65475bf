"""How many default CPU-state instances the machine makes a second, in memory, on one core.

    PYTHONPATH=. python benchmarks/bench_cpu_states.py --output cpu_states.json

Instances are made in pieces whose memory is used again, as training and writing to disk do. `generate` in a fresh
process also pays for the first touch of 3.1 KB of memory an instance, dear on some virtual machines: the last row.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from peers import machine

from bgpt_fast.files import write_json
from bgpt_fast.tasks.cpu_states import ReleasedStream, StreamOptions, generate

FRESH = """
import time
from bgpt_fast.tasks.cpu_states import generate
began = time.perf_counter()
generate({count}, seed=1)
print({count} / (time.perf_counter() - began))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200_000, help="instances of each row")
    parser.add_argument("--piece", type=int, default=4096, help="instances made at a time")
    parser.add_argument("--output", type=Path, help="write the figures there as JSON")
    arguments = parser.parse_args()
    where = machine()
    pieces = -(-arguments.count // arguments.piece)
    rows = {}

    stream = ReleasedStream(StreamOptions(), seed=0)
    stream.take(arguments.piece)
    began = time.perf_counter()
    for _ in range(pieces):
        stream.take(arguments.piece)
    rows["released stream, in pieces"] = pieces * arguments.piece / (time.perf_counter() - began)

    start: int | None = 0
    began = time.perf_counter()
    for _ in range(pieces):
        assert start is not None
        start = generate(arguments.piece, stream="parallel", start=start, threads=1).next_start
    rows["parallel stream, in pieces, one thread"] = pieces * arguments.piece / (time.perf_counter() - began)

    fresh = subprocess.run(
        [sys.executable, "-c", FRESH.format(count=arguments.count)], capture_output=True, text=True, check=True
    )
    rows["released stream, at once, memory never touched before"] = float(fresh.stdout)
    result = {"machine": where, "count": arguments.count, "instances_per_second": rows}
    print(json.dumps(result, indent=2))
    if arguments.output is not None:
        write_json(arguments.output, result)


if __name__ == "__main__":
    main()
