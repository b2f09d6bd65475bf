"""`bgpt-fast env`: prints the machine, the build and the package versions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from bgpt_fast.cli.common import read_options, table
from bgpt_fast.environment import describe_environment
from bgpt_fast.terminal import print_table, print_text


@dataclass(frozen=True)
class Env:
    """Prints the hardware, the features of this build, and package versions.

    Args:
        json: print JSON instead of a table.
    """

    json: bool = False


OPTIONS = Env


def run(words: Sequence[str]) -> int:
    options = read_options(Env, "env", words)
    environment = describe_environment()
    if options.json:
        print_text(json.dumps(environment, indent=2))
        return 0
    rows = [[name, str(value)] for name, value in environment.items() if name != "packages"]
    rows += [[name, value] for name, value in environment["packages"].items()]
    print_table(table("bgpt_fast on this machine", ["what", "value"], rows))
    return 0
