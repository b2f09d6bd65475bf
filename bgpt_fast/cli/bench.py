"""`bgpt-fast bench`: runs the benchmark suite of a checkout, and its reports, each in its own process.

The suite is not in the wheel: its baselines and their packages belong to the repository.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bgpt_fast.cli.common import read_options

_COMMANDS = {"report": "report", "compare": "compare", "docs": "docs", "instructions": "count_instructions"}
"""What comes after `bench`, by the module of the suite that does it."""


@dataclass(frozen=True)
class Bench:
    """Measures every op and the whole engine beside baselines and the machine's peak rates; needs a checkout.

    Afterwards: `bgpt-fast bench report FILE.json` makes a page of it, `bgpt-fast bench compare A.json B.json` lists
    what became slower, `bgpt-fast bench docs` writes docs/performance.md from the files in benchmarks/results/,
    `bgpt-fast bench instructions` counts the instructions of the C++ hot paths under valgrind.

    Args:
        json: where the figures go, with machine, versions, commit and command.
        size: "quick" takes under 3 minutes on two cores, "full" is for published results, "tiny" is a trial.
        device: "auto" means the GPU where there is one.
        dtype: of ops and training, several joined by commas; None means bfloat16 on a GPU and float32 on a CPU.
        threads: of torch on the CPU; None means torch's own choice.
        select: only items whose names match, as pytest's -k: "training", "patch_embed and forward".
        runs: of the whole suite in new processes; `compare` takes the noise from two or more.
        profile: instead: a trace of training or generation for Perfetto, with the top kernels and the idle share.
        trace: where the trace goes; None means bench_train.json.gz or bench_generate.json.gz.
    """

    json: Path = Path("bench.json")
    size: Literal["quick", "full", "tiny"] = "quick"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: str | None = None
    threads: int | None = None
    select: str | None = None
    runs: int = 1
    profile: Literal["train", "generate"] | None = None
    trace: Path | None = None


def checkout_of(package: Path) -> Path:
    """The checkout with the suite that a package belongs to.

    Raises:
        FileNotFoundError: the package was installed without one.
    """
    root = package.resolve().parent
    if not (root / "benchmarks" / "suite.py").is_file():
        raise FileNotFoundError(
            f"{root / 'benchmarks'}: bgpt-fast bench needs the repository, and this bgpt_fast was installed without "
            "it; clone the repository and run `make build` and `.venv/bin/bgpt-fast bench` there"
        )
    return root


def run(words: Sequence[str]) -> int:
    package = Path(__file__).parent.parent
    if words and words[0] in _COMMANDS:
        return _run_module(checkout_of(package), f"benchmarks.{_COMMANDS[words[0]]}", *words[1:])
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
    if options.dtype is not None:
        shared += ["--dtype", options.dtype]
    if options.select is not None:
        shared += ["-k", options.select]
    return _measure(options, root, shared)


def _measure(options: Bench, root: Path, shared: list[str]) -> int:
    """Runs the suite, each run into a file of its own; the JSON of all is written last."""
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
    print(f"{options.json}: next, bgpt-fast bench report {options.json}")
    return 0


def _run_module(root: Path, module: str, *words: str) -> int:
    """`python -m module` with the checkout importable, in the caller's folder."""
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", module, *words]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode
