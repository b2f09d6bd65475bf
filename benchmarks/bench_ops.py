"""Forward and backward of every op in op_cases.py, compared with its reference and baselines; and invariant_linear.

pytest benchmarks/bench_ops.py -k "layer_norm and forward"
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from benchmarks.baselines import OF_OPS, missing
from benchmarks.names import OURS
from benchmarks.op_cases import CASES, Maker, Sizes, Work, case_of
from benchmarks.op_measure import call_of, check, implementations, reusable_buffers
from benchmarks.suite import Bench
from bgpt_fast.kernels.invariant_linear.op import invariant_linear
from bgpt_fast.training.allocator import reused_memory

_BEYOND_CACHE = 100 << 20
"""Total bytes of the weights that calls cycle through, so that each is read from memory, not from a cache."""


def parameters(device: torch.device, dtypes: Mapping[str, torch.dtype]) -> list[Any]:
    """The parameters (name, implementation, direction, dtype) of all cases; missing baselines are marked as skipped."""
    rows = []
    for case, (dtype_name, dtype) in itertools.product(CASES, dtypes.items()):
        if dtype not in case.dtypes:
            continue
        reasons: dict[str, str | None] = dict.fromkeys(implementations(case, compiled=device.type == "cuda"))
        reasons |= {baseline: missing(baseline, device) for baseline in OF_OPS.get(case.name, ())}
        directions = ("forward", "backward") if case.differentiable else ("forward",)
        for (implementation, reason), direction in itertools.product(reasons.items(), directions):
            marks = [] if reason is None else [pytest.mark.skip(reason=f"{implementation}: {reason}")]
            identity = f"{case.name}-{direction}-{dtype_name}-{implementation}".replace(" ", "_")
            rows.append(pytest.param(case.name, implementation, direction, dtype, id=identity, marks=marks))
    return rows


@functools.cache
def _checked(name: str, sizes: Sizes, dtype: torch.dtype, device: torch.device) -> None:
    """Raises if the op is wrong, so that it is not timed."""
    check(case_of(name), sizes, dtype, device)


@pytest.mark.ops
def test_op(bench: Bench, name: str, implementation: str, direction: str, dtype: torch.dtype) -> None:
    case, sizes = case_of(name), bench.scale.ops
    _checked(name, sizes, dtype, bench.device)
    functions = implementations(case, compiled=implementation == "torch.compile") | OF_OPS.get(name, {})
    arguments = case.inputs(Maker(sizes, dtype, bench.device, seed=0))
    # A training run on a CPU keeps freed memory: without it the system's pages are a part of the time, and which
    # implementation pays for them is chance.
    memory = reused_memory() if bench.device.type == "cpu" else contextlib.nullcontext()
    with reusable_buffers(), memory:
        bench(
            call_of(functions[implementation], arguments, backward=direction == "backward"),
            f"{name} {direction}",
            implementation=OURS if implementation == "op" else implementation,
            dtype=dtype,
            work=case.work(sizes, dtype.itemsize)[direction == "backward"],
            kind="op",
        )


@pytest.mark.parametrize("rows", [1, 16, 64, 512])
@pytest.mark.parametrize("implementation", [OURS, "F.linear"])
def test_invariant_linear(bench: Bench, implementation: str, rows: int) -> None:
    """Reads the weights from memory, not from a cache, as in generation."""
    K, N = bench.scale.ops.D, 4 * bench.scale.ops.D
    x, bias = torch.randn(rows, K, device=bench.device), torch.randn(N, device=bench.device)
    count = _BEYOND_CACHE // (4 * K * N) if bench.scale.seconds else 1
    weights = [torch.randn(K, N, device=bench.device) for _ in range(count)]

    def linear(weight: torch.Tensor) -> torch.Tensor:
        return invariant_linear(x, weight, bias) if implementation == OURS else F.linear(x, weight.t(), bias)

    torch.testing.assert_close(linear(weights[0]), torch.addmm(bias, x, weights[0]), rtol=1e-4, atol=1e-3)
    turn = itertools.cycle(weights)
    bench(
        lambda: linear(next(turn)),
        f"invariant_linear, {rows} {'row' if rows == 1 else 'rows'}",
        implementation=implementation,
        work=Work(4 * (K * N + rows * (K + N)), 2 * rows * K * N),
        kind="op",
    )
