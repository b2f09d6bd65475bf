"""byte_embed beside embedding, concatenation and addition.

pytest benchmarks/bench_byte_embed.py
"""

from __future__ import annotations

from typing import Any

from op_bench import bench, parametrised


@parametrised("byte_embed")
def test_byte_embed(benchmark: Any, name: str, implementation: str, direction: str) -> None:
    bench(benchmark, name, implementation, direction)
