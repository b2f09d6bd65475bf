"""The Trainer's step on the null GPU as a table by phase: launches, predicted GPU time, host time, who waits for whom.

    bgpt-fast bench --null-gpu

The Trainer runs twice: once as it is, for the host's time and the launches; once with every op and Triton kernel
recorded, for what each launch reads, writes and computes. tools/null_gpu/op_stream.py turns both into times. Host times
are CPU seconds of this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import itertools
import json
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.training import random_documents
from bgpt_fast import BGPT, BGPTConfig, PackedPatches
from bgpt_fast.device import HostCopy
from bgpt_fast.flops import peak_flops, training_flops
from bgpt_fast.training import TrainConfig, Trainer
from tools.null_gpu.log import Event, Kind, Log, launches, refusals, waits
from tools.null_gpu.op_stream import Step, gpu_seconds, simulate
from tools.null_gpu.recorder import Recording, Work, recording, recording_phases

_STEPS, _WARM = 8, 3
_FIRST_PHASE = "data"


class EqualDocuments:
    """Batches of documents that fill the context; all batches are the same."""

    def __init__(self, config: BGPTConfig, patches: int) -> None:
        documents = max(1, patches // config.patch_length)
        size = (config.patch_length - 2) * config.patch_size
        self._batch = PackedPatches.from_bytes(random_documents([size] * documents), config)
        self.patches_per_batch = self._batch.num_patches

    def next_batch(self) -> PackedPatches:
        return self._batch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def describe(self) -> dict[str, Any]:
        return {"kind": "equal documents"}


@dataclass(frozen=True)
class StepReport:
    """One step of a run.

    Args:
        launches: how often the host puts work on the GPU; a CUDA graph counts once.
        waits: the calls in which the host waits for the GPU, by name.
        refused: the calls that CUDA would refuse, by reason.
        kernels: number of launches by kernel; a product's name has its sizes.
        gpu_seconds_of: predicted GPU time by op or kernel.
        step: who waits for whom, by phase.
        peak_memory: bytes that torch's allocator held at most.
        mfu: predicted share of the datasheet's operations a second.
        patches: of the batch.
    """

    launches: int
    waits: dict[str, int]
    refused: dict[str, int]
    kernels: dict[str, int]
    gpu_seconds_of: dict[str, float]
    step: Step
    peak_memory: int
    mfu: float
    patches: int


def measure(config: BGPTConfig, patches: int, **fields: Any) -> StepReport:
    """Trains a few steps on the null GPU.

    Args:
        config: of the model.
        patches: of a batch, in documents that fill the context.
        fields: of `TrainConfig`, such as precision or cuda_graph.
    """
    log = Log()
    start = len(log)
    source = EqualDocuments(config, patches)
    plain, first = _run(log, config, source, fields, lambda: recording_phases(log))
    peak = torch.cuda.max_memory_allocated()
    steps = _windows(plain, first, len(log))[_WARM:]
    # The least: whatever else the machine does only adds to it.
    begin, end = min(steps, key=lambda step: _cpu_seconds(log, *step))
    events = _from_zero(log.events(begin)[: end - begin])
    phases = plain.phase_of(begin, end - begin)
    full, first = _run(log, config, source, fields, lambda: recording(log))
    work = _recorded_work(log, full, first, events)
    seconds = [
        gpu_seconds(event, each, lambda number: _graph_seconds(log, number))
        for event, each in zip(events, work, strict=True)
    ]
    step = simulate(events, seconds, phases, _cpu_seconds(log, begin, end))
    flops = training_flops(config, [config.patch_length] * (source.patches_per_batch // config.patch_length))
    peak_rate = peak_flops(torch.device("cuda"), torch.bfloat16)
    assert peak_rate is not None
    by_name: Counter[str] = Counter()
    for event, each, duration in zip(events, work, seconds, strict=True):
        by_name[_name(event, each)] += duration  # type: ignore[assignment]
    return StepReport(
        launches=launches(events),
        waits=dict(waits(events)),
        refused=dict(refusals(log.events(start))),
        kernels=dict(Counter(_name(event, each) for event, each in zip(events, work, strict=True))),
        gpu_seconds_of=dict(by_name),
        step=step,
        peak_memory=peak,
        mfu=flops / step.seconds / peak_rate,
        patches=source.patches_per_batch,
    )


def _run(
    log: Log,
    config: BGPTConfig,
    source: EqualDocuments,
    fields: dict[str, Any],
    recorder: Callable[[], AbstractContextManager[Recording]],
) -> tuple[Recording, int]:
    """Trains `_STEPS` steps; returns what was recorded and the number of the first entry of the log."""
    with tempfile.TemporaryDirectory(prefix="null_gpu") as folder, finite_figures(), contextlib.ExitStack() as stack:
        torch.manual_seed(0)
        torch.cuda.reset_peak_memory_stats()
        settings = {"steps": _STEPS, "save_every": 0, "tensorboard": False, "device": "cuda", **fields}
        trainer = Trainer(BGPT(config), source, TrainConfig(**settings), folder, show_progress=False)
        first = len(log)
        recording_ = stack.enter_context(recorder())
        trainer.train()
        return recording_, first


@contextlib.contextmanager
def finite_figures() -> Iterator[None]:
    """Within the block, losses and gradient norms that are not finite are read as 0, so that training goes on.

    No kernel computes them on the null GPU: what is read is whatever the host wrote there for an earlier tensor.
    """
    read = HostCopy.tolist

    def finite(self: HostCopy) -> list[float]:
        return [value if math.isfinite(value) else 0.0 for value in read(self)]

    with mock.patch.object(HostCopy, "tolist", finite):
        yield


def _windows(recording_: Recording, first: int, end: int) -> list[tuple[int, int]]:
    """First entry and end of each whole step: a step begins with the phase in which its batches are fetched."""
    begins = [number for number, name in recording_.phases if name == _FIRST_PHASE and number >= first]
    return list(itertools.pairwise(begins))


def _cpu_seconds(log: Log, begin: int, end: int) -> float:
    events = log.events(begin)
    return events[end - begin].cpu_seconds - events[0].cpu_seconds


def _from_zero(events: list[Event]) -> list[Event]:
    began = events[0].cpu_seconds
    return [dataclasses.replace(event, cpu_seconds=event.cpu_seconds - began) for event in events]


def _recorded_work(log: Log, full: Recording, first: int, events: list[Event]) -> list[Work | None]:
    """What each of `events` does, from the last recorded step, whose launches are matched with them in order.

    Raises:
        RuntimeError: the recorded step lacks more than a few of the launches.
    """
    begin, end = _windows(full, first, len(log))[-1]
    recorded = log.events(begin)[: end - begin]
    work = full.work_of(begin, recorded)
    # torch checks indices with a few kernels more where ops are recorded.
    matcher = difflib.SequenceMatcher(None, [e.key for e in recorded], [e.key for e in events], autojunk=False)
    result: list[Work | None] = [None] * len(events)
    matched = 0
    for there, here, size in matcher.get_matching_blocks():
        result[here : here + size] = work[there : there + size]
        matched += size
    if matched < 0.97 * len(events):
        raise RuntimeError(
            f"null GPU: the recorded step has only {matched} of the {len(events)} calls of the plain one"
        )
    return result


def _graph_seconds(log: Log, number: int) -> float:
    """A graph's kernels have no recorded work, so only its matrix products and a kernel's shortest time count."""
    return sum(gpu_seconds(event, None) for event in log.graph(number))


def _name(event: Event, work: Work | None) -> str:
    if event.kind is Kind.PRODUCT:
        m, n, k, batch = event.product
        return f"product {m} × {n} × {k}" + (f" × {batch}" if batch > 1 else "")
    return work.name if work is not None else event.name


def table(report: StepReport) -> list[str]:
    """The lines of the table."""
    lines = [f"{'phase':12s} {'launches':>8s} {'GPU ms':>8s} {'host ms':>8s} {'GPU waits':>10s} {'host waits':>10s}"]
    for name, phase in [*report.step.phases.items(), ("step", report.step.total)]:
        cells = [phase.gpu, phase.host, phase.gpu_waits, phase.host_waits]
        text = " ".join(f"{1e3 * value:{width}.2f}" for value, width in zip(cells, (8, 8, 10, 10), strict=True))
        lines.append(f"{name or 'between':12s} {phase.launches:8d} {text}")
    total, seconds = report.step.total, report.step.seconds
    limit = "host" if total.host > total.gpu else "GPU"
    waiting = ", ".join(f"{count} × {name}" for name, count in report.waits.items()) or "none"
    lines += [
        f"a step takes {1e3 * seconds:.1f} ms, {report.patches / seconds:,.0f} patches/s, MFU {100 * report.mfu:.1f} %"
        f": the {limit} is the limit; the GPU's work alone would allow "
        f"{100 * report.mfu * seconds / total.gpu:.1f} %",
        f"calls in which the host waits: {waiting}",
        f"peak memory {report.peak_memory / 1e9:.2f} GB, "
        f"{(report.peak_memory - 6e9) / report.patches / 1e6:.2f} MB a patch beyond 6 GB",
    ]
    if report.refused:
        lines.append(f"calls that CUDA would refuse: {report.refused}")
    return lines


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bgpt-fast bench --null-gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--patches", type=int, default=8192, help="of a batch (default: %(default)s)")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--graph", action="store_true", help="with TrainConfig.cuda_graph")
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    parser.add_argument("--top", type=int, default=20, help="kernels and ops to list (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=None, help="file for the figures")
    arguments = parser.parse_args(words)
    config = BGPTConfig()
    fields: dict[str, Any] = {"precision": arguments.precision, "cuda_graph": arguments.graph}
    fields |= {"accumulation": arguments.accumulation, "optimizer": arguments.optimizer}
    report = measure(config, arguments.patches, **fields)
    print("\n".join(table(report)))
    print("\nms of the GPU, predicted, by op and kernel; rates are those of an H200, and no kernel has run:")
    for name, seconds in sorted(report.gpu_seconds_of.items(), key=lambda pair: -pair[1])[: arguments.top]:
        print(f"{1e3 * seconds:9.3f} {report.kernels[name]:5d} × {name[:90]}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(dataclasses.asdict(report), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
