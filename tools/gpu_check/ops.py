"""Ops on a GPU: their speed compared with baselines, and their bits in CUDA graphs and on side streams."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.op_cases import Maker, OpCase, Sizes
from benchmarks.op_measure import (
    WrongResultError,
    call_of,
    check,
    figures,
    gradients_for,
    implementations,
    num_repeatable,
    outputs_of,
    reusable_buffers,
    run,
)
from benchmarks.timing import measure

_DELAY = 5_000_000  # cycles that the producer on the side stream waits, about 3 ms


def measure_case(
    case: OpCase, sizes: Sizes, dtype: torch.dtype, device: torch.device, *, peak: dict[str, float], seconds: float
) -> dict[str, Any]:
    """Checks an op, then times it and its baselines, and on a GPU the compiled reference.

    If a baseline fails, its error is reported and the others are still timed; a failure of the op is raised.

    Raises:
        WrongResultError: the op is wrong; nothing is timed.
    """
    correct = check(case, sizes, dtype, device)
    arguments = case.inputs(Maker(sizes, dtype, device, seed=0))
    directions = ("forward", "backward") if case.differentiable else ("forward",)
    works = dict(zip(directions, case.work(sizes, dtype.itemsize), strict=False))
    timed: dict[str, Any] = {}
    for name, function in implementations(case, compiled=device.type == "cuda").items():
        try:
            with reusable_buffers():
                timed[name] = {
                    direction: figures(
                        measure(
                            call_of(function, arguments, backward=direction == "backward"), device, seconds=seconds
                        ),
                        work,
                        peak,
                    )
                    for direction, work in works.items()
                }
        except Exception as error:
            if name == "op" or "CUDA error" in str(error):
                raise
            timed[name] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    dtype_name = str(dtype).removeprefix("torch.")
    return {"dtype": dtype_name, "correct": correct, "timed": timed, "speed_up": speed_ups(timed)}


def speed_ups(timed: dict[str, Any]) -> dict[str, float]:
    """How many times faster the op is than each of the others, forward and backward together."""
    totals = {
        name: sum(direction["median"] for direction in row.values())
        for name, row in timed.items()
        if "failed" not in row
    }
    return {name: total / totals["op"] for name, total in totals.items() if name != "op"}


def small_runs(case: OpCase, sizes: Sizes, device: torch.device) -> int:
    """Runs the op in every dtype without timing it, for tools that check its kernels; returns the number of runs."""
    for dtype, seed in itertools.product(case.dtypes, range(2)):
        run(case.op, case.inputs(Maker(sizes, dtype, device, seed)))
    return 2 * len(case.dtypes)


def _copy(targets: Sequence[object], sources: Sequence[object]) -> None:
    with torch.no_grad():
        for target, source in zip(targets, sources, strict=True):
            if isinstance(target, Tensor) and isinstance(source, Tensor):
                target.copy_(source)


def _check_equal(
    case: OpCase, what: str, arguments: Sequence[object], results: Sequence[Tensor], expected: Sequence[Tensor]
) -> None:
    count = num_repeatable(case, arguments, expected)
    for index, (ours, plain) in enumerate(zip(results[:count], expected[:count], strict=True)):
        if not torch.equal(ours, plain):
            raise WrongResultError(f"{case.name}: {what}: result {index} differs from the plain call's")


def check_graph(case: OpCase, sizes: Sizes, dtype: torch.dtype, device: torch.device, replays: int) -> None:
    """Captures forward and backward, and replays them with other inputs each time.

    Raises:
        WrongResultError: a replay differs from the plain call on the same inputs.
    """
    static = case.inputs(Maker(sizes, dtype, device, seed=0))
    gradients = gradients_for(outputs_of(case.op(*static)))
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):  # compiles kernels, which is not allowed during capture
            run(case.op, static, gradients)
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run(case.op, static, gradients)
    for seed in range(1, replays + 1):
        arguments = case.inputs(Maker(sizes, dtype, device, seed))
        _copy(static, arguments)
        graph.replay()
        _check_equal(case, f"graph replay {seed}", static, results, run(case.op, arguments, gradients))


def check_side_stream(case: OpCase, sizes: Sizes, dtype: torch.dtype, device: torch.device) -> None:
    """Runs on a separate stream that makes the inputs late, so that a launch on another stream would read too early.

    Raises:
        WrongResultError: the results differ from those of a plain call.
    """
    late = case.inputs(Maker(sizes, dtype, device, seed=0))
    arguments = case.inputs(Maker(sizes, dtype, device, seed=1))
    gradients = gradients_for(outputs_of(case.op(*late)))
    expected = run(case.op, arguments, gradients)
    torch.cuda.synchronize(device)
    with torch.cuda.stream(torch.cuda.Stream(device)):
        torch.cuda._sleep(_DELAY)
        _copy(late, arguments)
        results = run(case.op, late, gradients)
    torch.cuda.synchronize(device)
    _check_equal(case, "side stream", late, results, expected)
