"""Runs a command on the null GPU, after making what it needs.

    python3 -m tools.null_gpu python -m pytest tests/null_gpu
    python3 -m tools.null_gpu --no-gpu python -m pytest tests/kernels

The command's `python` is that of the environment with the GPU machine's versions (.venv-cuda). With --no-gpu it sees no
GPU, so that the kernels' tests run in Triton's interpreter under these versions. Without a command, only the
environment is made. The exit code is the command's; without one, 3 if the environment cannot be had here (no index of
packages in reach, too little disk space or time), 4 if a build failed.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

from tools.null_gpu.environment import EnvironmentFailed, EnvironmentUnavailable, prepare

MEMORY_LIMIT = 8 << 30
"""Bytes of its own memory that a process may have: a size that a kernel should have computed may be any number."""


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT, MEMORY_LIMIT))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-gpu", action="store_true", help="the versions alone, without a GPU")
    parser.add_argument("--install-seconds", type=float, help="most time for the installation of packages")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    try:
        environment = prepare(
            lambda text: print(text, file=sys.stderr, flush=True), install_seconds=arguments.install_seconds
        )
    except EnvironmentFailed as error:
        print(f"tools.null_gpu: {error}", file=sys.stderr)
        return 3 if isinstance(error, EnvironmentUnavailable) else 4
    if not arguments.command:
        return 0
    program, *words = arguments.command
    program = str(environment.python) if program == "python" else program
    variables = environment.environ(gpu=not arguments.no_gpu)
    return subprocess.run([program, *words], env=variables, preexec_fn=_limit_memory, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
