"""`bgpt-fast data cpu-states`: random programs for the toy CPU, with their execution traces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from bgpt_fast.cli.common import as_json, check_ranges, counted, new_folder, read_options
from bgpt_fast.deprecation import renamed_value
from bgpt_fast.files import write_json
from bgpt_fast.tasks.cpu_states import (
    SMALL_MACHINE,
    StreamOptions,
    Traces,
    generate,
    generate_released_split,
    write_folder,
    write_parquet,
)
from bgpt_fast.tasks.cpu_states.streams import OLD_STREAMS
from bgpt_fast.terminal import print_text

_MOST_PROGRAMS = 100_000_000


@dataclass(frozen=True)
class CPUStates:
    """Random programs for the toy CPU with their traces: OUTPUT/train and OUTPUT/test, and OUTPUT/report.json.

    No program of the test set is in the training set.

    Args:
        output: the folder to write, new or empty.
        train: number of training programs.
        test: number of test programs.
        seed: seed of the random programs.
        stream: "python" writes, byte for byte, what the released cpu-simulation.py writes with the same seed and
            options, except test programs that are also training programs; "philox" is for large data sets: the same
            distribution, generated on all cores. The old names "released" and "parallel" still work.
        format: "folder" of released-style .bin files named by the MD5 of their program, equal programs once; or one
            "parquet" file per set.
        machine: the machine and the length of its programs; the defaults are those of train, simulate and evaluate. The
            paper's machine is --machine.num-registers 10 --machine.memory-size 1024 --machine.max-program 255.
    """

    output: Path = Path("cpu_states")
    train: int = 10_000
    test: int = 1_000
    seed: int = 0
    stream: Literal["python", "philox", "released", "parallel"] = "python"
    format: Literal["folder", "parquet"] = "folder"
    machine: StreamOptions = SMALL_MACHINE


OPTIONS = CPUStates


def run(words: Sequence[str]) -> int:
    options = read_options(CPUStates, "data cpu-states", words)
    check_ranges(options, train=(0, _MOST_PROGRAMS), test=(0, _MOST_PROGRAMS), seed=(0, None))
    new_folder(options.output, "the data")
    machine = asdict(options.machine)
    stream = renamed_value("--stream", options.stream, OLD_STREAMS)
    if stream == "python":
        train, test = generate_released_split(options.train, options.test, seed=options.seed, **machine)
    else:
        train = generate(options.train, seed=options.seed, stream="philox", split="train", **machine)
        test = generate(options.test, seed=options.seed, stream="philox", split="eval", **machine)
    outputs = {name: _write(options, name, traces) for name, traces in (("train", train), ("test", test))}
    report = {
        "options": as_json(options),
        "train": {"instances": len(train), "bytes": train.nbytes, **outputs["train"]},
        "test": {"instances": len(test), "bytes": test.nbytes, "dropped": test.dropped, **outputs["test"]},
    }
    write_json(options.output / "report.json", report)
    shared = f"; {test.dropped} test programs were left out, being training programs too" if test.dropped else ""
    print_text(f"{len(train)} training and {len(test)} test instances in {options.output}/{shared}")
    return 0


def _write(options: CPUStates, name: str, traces: Traces) -> dict[str, object]:
    if options.format == "folder":
        tracked = counted(traces, len(traces), f"writing {name}")
        return {"path": name, "files": write_folder(tracked, options.output / name)}
    path = options.output / f"{name}.parquet"
    write_parquet(traces, path)
    return {"path": path.name, "files": 1}
