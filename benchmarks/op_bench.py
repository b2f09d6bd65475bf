"""What the bench_<op>.py files share: pytest-benchmark over one op, its reference and its peers, on what is there.

On a GPU each call is waited for, so launch time is in these figures; `gpu_check.py` measures without it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_cases import PAPER, Sizes, case_of
from op_measure import backward_calls, check, forward_calls, implementations, input_sets, keeping_buffers

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_CPU = Sizes(T=64, P=128, L=64, S=16, D=768, H=12)
SIZES, DTYPE = (PAPER, torch.bfloat16) if DEVICE.type == "cuda" else (ON_CPU, torch.float32)


def parametrised(*names: str) -> Callable[[Any], Any]:
    """Parametrises a benchmark over cases by name, their implementations and both directions."""
    rows = []
    for case in map(case_of, names):
        directions = ("forward", "backward") if case.differentiable else ("forward",)
        compiled = DEVICE.type == "cuda"
        for implementation, direction in itertools.product(implementations(case, compiled=compiled), directions):
            identity = f"{case.name}-{direction}-{implementation}".replace(" ", "_")
            rows.append(pytest.param(case.name, implementation, direction, id=identity))
    return pytest.mark.parametrize(("name", "implementation", "direction"), rows)


@functools.cache
def checked(name: str) -> None:
    """Refuses to time an op that is wrong."""
    check(case_of(name), SIZES, DTYPE, DEVICE)


def bench(benchmark: Any, name: str, implementation: str, direction: str) -> None:
    """Times one implementation of one op in one direction."""
    case = case_of(name)
    checked(name)
    sets = input_sets(case, SIZES, DTYPE, DEVICE)
    function = implementations(case, compiled=implementation == "torch.compile")[implementation]
    with keeping_buffers():
        calls = (forward_calls if direction == "forward" else backward_calls)(function, sets)
        turn = itertools.cycle(calls)

        def once() -> None:
            next(turn)()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()

        work = case.work(SIZES, torch.empty((), dtype=DTYPE).element_size())[direction == "backward"]
        benchmark.group = f"{name} {direction}"
        benchmark.extra_info.update(device=str(DEVICE), dtype=str(DTYPE), bytes=work.bytes, flops=work.flops)
        benchmark.pedantic(once, warmup_rounds=3, rounds=20)
