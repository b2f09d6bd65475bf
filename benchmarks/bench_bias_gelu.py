"""bias_gelu beside torch's addition and GELU.

pytest benchmarks/bench_bias_gelu.py
"""

from __future__ import annotations

from typing import Any

from op_bench import bench, parametrised


@parametrised("bias_gelu")
def test_bias_gelu(benchmark: Any, name: str, implementation: str, direction: str) -> None:
    bench(benchmark, name, implementation, direction)
