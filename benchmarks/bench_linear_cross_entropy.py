"""linear_cross_entropy beside torch's linear layer and cross-entropy.

pytest benchmarks/bench_linear_cross_entropy.py
"""

from __future__ import annotations

from typing import Any

from op_bench import bench, parametrised


@parametrised("linear_cross_entropy")
def test_linear_cross_entropy(benchmark: Any, name: str, implementation: str, direction: str) -> None:
    bench(benchmark, name, implementation, direction)
