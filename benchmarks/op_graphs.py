"""Ops in CUDA graphs and on side streams: the same bits as in plain calls."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from op_cases import Maker, OpCase, Sizes
from op_measure import WrongResultError, gradients_for, outputs_of, repeatable, run
from torch import Tensor

_LATE = 5_000_000  # cycles that the producer on the side stream waits, about 3 ms


def _copy(targets: Sequence[object], sources: Sequence[object]) -> None:
    with torch.no_grad():
        for target, source in zip(targets, sources, strict=True):
            if isinstance(target, Tensor) and isinstance(source, Tensor):
                target.copy_(source)


def _demand_equal(
    case: OpCase, what: str, arguments: Sequence[object], got: Sequence[Tensor], want: Sequence[Tensor]
) -> None:
    count = repeatable(case, arguments, want)
    for place, (ours, theirs) in enumerate(zip(got[:count], want[:count], strict=True)):
        if not torch.equal(ours, theirs):
            raise WrongResultError(f"{case.name}: {what}: result {place} differs from the plain call's")


def check_graph(case: OpCase, sizes: Sizes, dtype: torch.dtype, device: torch.device, replays: int) -> None:
    """Captures forward and backward, and replays them with other inputs each time.

    Raises:
        WrongResultError: a replay differs from the plain call on the same inputs.
    """
    held = case.inputs(Maker(sizes, dtype, device, seed=0))
    gradients = gradients_for(outputs_of(case.op(*held)))
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):  # compiles what is not compiled yet, which a capture forbids
            run(case.op, held, gradients)
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run(case.op, held, gradients)
    for seed in range(1, replays + 1):
        arguments = case.inputs(Maker(sizes, dtype, device, seed))
        _copy(held, arguments)
        graph.replay()
        _demand_equal(case, f"graph replay {seed}", held, results, run(case.op, arguments, gradients))


def check_side_stream(case: OpCase, sizes: Sizes, dtype: torch.dtype, device: torch.device) -> None:
    """Runs on a stream of its own, where the inputs come late: a launch on another stream would read too early.

    Raises:
        WrongResultError: the results differ from those of a plain call.
    """
    held = case.inputs(Maker(sizes, dtype, device, seed=0))
    arguments = case.inputs(Maker(sizes, dtype, device, seed=1))
    gradients = gradients_for(outputs_of(case.op(*held)))
    expected = run(case.op, arguments, gradients)
    torch.cuda.synchronize(device)
    with torch.cuda.stream(torch.cuda.Stream(device)):
        torch.cuda._sleep(_LATE)
        _copy(held, arguments)
        results = run(case.op, held, gradients)
    torch.cuda.synchronize(device)
    _demand_equal(case, "side stream", held, results, expected)
