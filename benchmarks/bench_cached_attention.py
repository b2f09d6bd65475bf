"""cached_attention beside SDPA over the same cache.

pytest benchmarks/bench_cached_attention.py
"""

from __future__ import annotations

from typing import Any

from op_bench import bench, parametrised


@parametrised("cached_attention")
def test_cached_attention(benchmark: Any, name: str, implementation: str, direction: str) -> None:
    bench(benchmark, name, implementation, direction)
