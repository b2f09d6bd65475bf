"""invariant_linear beside torch's F.linear, with weights that come from memory.

pytest benchmarks/bench_invariant_linear.py
"""

from __future__ import annotations

import functools

import pytest
import torch
from op_cases import Work
from optional_peers import OURS
from suite import Bench
from torch import Tensor
from torch.nn import functional as F

from bgpt_fast.kernels.invariant_linear.op import invariant_linear

_OUT_OF_CACHE = 100 << 20
"""Bytes of weights that are gone through before one is used again."""


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, weight.t(), bias)


@pytest.mark.parametrize("rows", [1, 16, 64, 512])
@pytest.mark.parametrize("implementation", [OURS, "F.linear"])
def test_invariant_linear(bench: Bench, implementation: str, rows: int) -> None:
    K, N = bench.scale.ops.D, 4 * bench.scale.ops.D
    x, bias = torch.randn(rows, K, device=bench.device), torch.randn(N, device=bench.device)
    count = _OUT_OF_CACHE // (4 * K * N) if bench.scale.seconds else 1
    weights = [torch.randn(K, N, device=bench.device) for _ in range(count)]
    torch.testing.assert_close(
        invariant_linear(x, weights[0], bias), _linear(x, weights[0], bias), rtol=1e-4, atol=1e-3
    )
    function = invariant_linear if implementation == OURS else _linear
    bench(
        [functools.partial(function, x, weight, bias) for weight in weights],
        f"invariant_linear, {rows} {'row' if rows == 1 else 'rows'}",
        implementation=implementation,
        work=Work(4 * (K * N + rows * (K + N)), 2 * rows * K * N),
        kind="op",
    )
