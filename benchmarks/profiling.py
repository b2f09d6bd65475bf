"""A few steps of training or generation under torch's profiler: a trace for Perfetto, the top kernels, the idle share.

    bgpt-fast bench --profile train

docs/profiling.md explains how to read them.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gzip
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.generation import endless_model, prompts_of
from benchmarks.names import OURS
from benchmarks.results import duration
from benchmarks.scales import Scale, scale_of
from benchmarks.training import batch_of, model_and_loss
from bgpt_fast import Generator
from bgpt_fast.generation.decoders.cpu import CpuDecoder
from bgpt_fast.generation.decoders.cuda import CudaDecoder
from bgpt_fast.generation.decoders.eager import EagerDecoder
from bgpt_fast.training.profiling import StepProfiler, phase

_WARM, _STEPS = 3, 4
PHASES = {
    "train": ("forward", "backward", "optimizer"),
    "generate": ("patch decoder", "byte decoder"),
}
"""The phases that a trace names."""


def _train(scale: Scale, device: torch.device, profiler: StepProfiler) -> None:
    """Training steps like those of the Trainer."""
    config = scale.model
    batch = batch_of("mixed", scale.patches, config, device)
    model, loss_of = model_and_loss(OURS, config, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device.type == "cuda")
    for _ in range(_WARM + _STEPS):
        with phase("forward"), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = loss_of(batch)
        optimizer.zero_grad(set_to_none=True)
        with phase("backward"):
            loss.backward()
        with phase("optimizer"):
            optimizer.step()
        profiler.step()


def _in_phase(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*arguments: Any, **named: Any) -> Any:
        with phase(name):
            return function(*arguments, **named)

    return run


@contextlib.contextmanager
def _named_decoders() -> Iterator[None]:
    """Marks the calls of both decoders as phases; the decoders do not, because it would cost time at every byte."""
    with contextlib.ExitStack() as stack:
        for decoder in (EagerDecoder, CudaDecoder, CpuDecoder):
            for method, name in (("prefill", "patch decoder"), ("write", "byte decoder")):
                named = _in_phase(name, getattr(decoder, method))
                stack.enter_context(mock.patch.object(decoder, method, named))
        yield


def _generate(scale: Scale, device: torch.device, profiler: StepProfiler) -> None:
    """Generation; a step is one patch of every file, and the first step reads the prompts."""
    model = endless_model(scale.model).to(device)
    prompts = prompts_of(scale.model, scale.context, scale.batches[-1])
    with _named_decoders():
        Generator(model, max_batch=len(prompts)).generate(
            prompts, max_new_bytes=(_WARM + _STEPS) * scale.model.patch_size, progress=lambda *_: profiler.step()
        )


def coverage(path: Path, phases: tuple[str, ...]) -> tuple[dict[str, float], float]:
    """Seconds of each phase on the host, and the share of the steps that the host spent in no torch op and no phase.

    Args:
        path: a trace written by a StepProfiler.
        phases: names of the phases.
    """
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    events = [event for event in json.loads(data)["traceEvents"] if event.get("ph") == "X"]
    annotations = [event for event in events if event.get("cat") == "user_annotation"]
    seconds = {name: sum(event["dur"] for event in annotations if event["name"] == name) / 1e6 for name in phases}
    steps = [event for event in annotations if event["name"].startswith("ProfilerStep")]
    began, ended = min(event["ts"] for event in steps), max(event["ts"] + event["dur"] for event in steps)
    covering = [event for event in events if event.get("cat") == "cpu_op" or event["name"] in phases]
    busy, reached = 0.0, began
    for event in sorted(covering, key=lambda event: event["ts"]):
        end = min(event["ts"] + event["dur"], ended)
        busy += max(0.0, end - max(event["ts"], reached))
        reached = max(reached, end)
    return seconds, 1 - busy / (ended - began)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bgpt-fast bench --profile", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=sorted(PHASES))
    parser.add_argument("--output", type=Path, required=True, help="the trace; compressed if it ends in .gz")
    parser.add_argument("--size", choices=("tiny", "quick", "full"), default="quick")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args(words)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    kind = arguments.device if arguments.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    scale, device = scale_of(arguments.size, kind), torch.device(kind)
    with StepProfiler(arguments.output, _WARM + 1, _STEPS) as profiler:
        {"train": _train, "generate": _generate}[arguments.what](scale, device, profiler)
    phases, outside = coverage(arguments.output, PHASES[arguments.what])
    print(f"{arguments.output}: {profiler.profiled} steps; open it in https://ui.perfetto.dev")
    for name, seconds in phases.items():
        print(f"  {name:20s} {duration(seconds / profiler.profiled):>10s} a step on the host")
    if profiler.gpu_idle_share is not None:
        print(f"  the GPU was idle for {100 * profiler.gpu_idle_share:.1f} % of the time")
    print(f"  the host was in none of these and in no op of torch for {100 * outside:.1f} % of the time")
    column = "gpu_seconds" if profiler.gpu_idle_share is not None else "cpu_seconds"
    print("top kernels:" if column == "gpu_seconds" else "top ops on the CPU:")
    rows = [row for row in profiler.summary() if row["name"] not in PHASES[arguments.what]]
    for row in itertools.islice(rows, 12):
        print(f"  {duration(row[column] / profiler.profiled):>10s} a step  {row['calls']:6d} calls  {row['name']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
