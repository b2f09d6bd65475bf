"""Makes one JSON of several runs of the same code, with every item's median in each run.

python benchmarks/suite_merge.py 0.json 1.json --output bench.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from suite_compare import merge_files


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args(words)
    merge_files(arguments.runs, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
