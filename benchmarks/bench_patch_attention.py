"""patch_attention of packed documents beside SDPA of as many of equal length.

pytest benchmarks/bench_patch_attention.py
"""

from __future__ import annotations

from typing import Any

from op_bench import bench, parametrised


@parametrised("patch_attention")
def test_patch_attention(benchmark: Any, name: str, implementation: str, direction: str) -> None:
    bench(benchmark, name, implementation, direction)
