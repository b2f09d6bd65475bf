"""`bgpt-fast bench`: runs the benchmark suite of a source checkout, or one of its reports, as a subprocess.

The wheel does not contain the suite, because its baselines and their packages are part of the repository only.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bgpt_fast.cli.common import read_options
from bgpt_fast.terminal import print_text

_COMMANDS = {"report": "report", "compare": "compare", "docs": "docs", "instructions": "count_instructions"}
"""The word after `bench`, with the module of the suite that it runs."""


@dataclass(frozen=True)
class Bench:
    """Measures all ops and the complete engine against baselines and the machine's peak rates; needs a source checkout.

    Afterwards: `bgpt-fast bench report FILE.json` writes an HTML page, `bgpt-fast bench compare A.json B.json` lists
    what became slower, `bgpt-fast bench docs` writes docs/performance.md from the files in benchmarks/results/,
    `bgpt-fast bench instructions` counts the instructions of the C++ hot paths under valgrind.

    `bgpt-fast bench --null-gpu` needs no GPU: it prints the training step on one, with launches, predicted times and
    waits by phase; `bgpt-fast bench --null-gpu --help` lists its options.

    Args:
        json: file for the figures, with the machine, versions, commit and command.
        size: "quick" takes under 3 minutes on two cores, "full" is for published results, "tiny" is a trial.
        device: "auto" uses the GPU if there is one.
        dtype: dtypes of ops and training, separated by commas; None means bfloat16 on a GPU and float32 on a CPU.
        threads: torch's CPU threads; None means torch's default.
        clock: on a CPU, "wall" is the elapsed time; "thread" is the CPU time of the calling thread, for a machine that
            others use too.
        select: run only matching items, with the syntax of pytest's -k: "training", "patch_embed and forward".
        runs: number of runs of the suite, each in a new process; `compare` estimates the noise from two or more.
        profile: record a Perfetto trace of training or generation instead; prints the top kernels and the idle share.
        trace: file for the trace; None means bench_train.json.gz or bench_generate.json.gz.
    """

    json: Path = Path("bench.json")
    size: Literal["quick", "full", "tiny"] = "quick"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: str | None = None
    threads: int | None = None
    clock: Literal["wall", "thread"] = "wall"
    select: str | None = None
    runs: int = 1
    profile: Literal["train", "generate"] | None = None
    trace: Path | None = None


def checkout_of(package: Path) -> Path:
    """Returns the source checkout, with the suite, that a package was imported from.

    Raises:
        FileNotFoundError: the package is installed without a checkout.
    """
    root = package.resolve().parent
    if not (root / "benchmarks" / "suite.py").is_file():
        raise FileNotFoundError(
            f"{root / 'benchmarks'}: bgpt-fast bench needs the repository, and this bgpt_fast was installed without "
            "it; clone the repository and run `make build` and `.venv/bin/bgpt-fast bench` there"
        )
    return root


OPTIONS = Bench


def run(words: Sequence[str]) -> int:
    package = Path(__file__).parent.parent
    if words and words[0] in _COMMANDS:
        return _run_module(checkout_of(package), f"benchmarks.{_COMMANDS[words[0]]}", *words[1:])
    if words and words[0] == "--null-gpu":
        step = ["python", "-m", "tools.null_gpu.step", *words[1:]]
        return _run_module(checkout_of(package), "tools.null_gpu", *step)
    options = read_options(Bench, "bench", words)
    if options.runs < 1:
        raise ValueError(f"--runs: expected at least 1, got {options.runs}")
    root = checkout_of(package)
    shared = ["--size", options.size, "--device", options.device]
    if options.threads is not None:
        shared += ["--threads", str(options.threads)]
    if options.profile is not None:
        trace = options.trace or Path(f"bench_{options.profile}.json.gz")
        return _run_module(root, "benchmarks.profiling", options.profile, "--output", str(trace), *shared)
    shared += ["--clock", options.clock]
    if options.dtype is not None:
        shared += ["--dtype", options.dtype]
    if options.select is not None:
        shared += ["-k", options.select]
    return _measure(options, root, shared)


def _measure(options: Bench, root: Path, shared: list[str]) -> int:
    """Runs the suite, with a file for each run; the combined JSON is written last."""
    options.json.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{options.json.name[:64]}.", dir=options.json.parent) as scratch:
        parts = [Path(scratch).resolve() / f"{number}.json" for number in range(options.runs)]
        for part in parts:
            words = [str(root / "benchmarks"), "--rootdir", str(root), "-p", "no:cacheprovider", "-q", *shared]
            words += ["--benchmark-columns", "median,iqr,rounds", "--benchmark-json", str(part)]
            code = _run_module(root, "pytest", *words)
            if code:
                return code
        if options.runs > 1:
            code = _run_module(root, "benchmarks.compare", *map(str, parts), "--merge", str(parts[0]))
            if code:
                return code
        parts[0].replace(options.json)
    print_text(f"{options.json}: next, bgpt-fast bench report {shlex.quote(str(options.json))}")
    return 0


def _run_module(root: Path, module: str, *words: str) -> int:
    """Runs `python -m module` in the caller's folder with the checkout importable."""
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", module, *words]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode
