"""patch_embed beside embedding_bag.

pytest benchmarks/bench_patch_embed.py
"""

from __future__ import annotations

from typing import Any

from op_bench import bench, parametrised


@parametrised("patch_embed")
def test_patch_embed(benchmark: Any, name: str, implementation: str, direction: str) -> None:
    bench(benchmark, name, implementation, direction)
