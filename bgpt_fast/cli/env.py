"""`bgpt-fast env`: prints the machine, the build and the package versions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from bgpt_fast.cli.common import read_options, table
from bgpt_fast.environment import describe_environment
from bgpt_fast.terminal import print_table, print_text
from bgpt_fast.training.precision import product_rates


@dataclass(frozen=True)
class Env:
    """Prints the hardware, the features of this build, and package versions.

    Args:
        json: print JSON instead of a table.
    """

    json: bool = False


OPTIONS = Env
_WIDTH = 768


def run(words: Sequence[str]) -> int:
    options = read_options(Env, "env", words)
    rates = product_rates(_WIDTH)
    environment = describe_environment() | {"product_gflops": {k: round(v / 1e9) for k, v in rates._asdict().items()}}
    if options.json:
        print_text(json.dumps(environment, indent=2))
        return 0
    rows = [[name, str(value)] for name, value in environment.items() if name not in ("packages", "product_gflops")]
    rows.append(["matrix products of width 768", rates.text.removeprefix("products: ")])
    rows += [[name, value] for name, value in environment["packages"].items()]
    print_table(table("bgpt_fast on this machine", ["what", "value"], rows))
    return 0
