"""byte_attention, alone and with its projection, beside SDPA.

pytest benchmarks/bench_byte_attention.py
"""

from __future__ import annotations

from typing import Any

from op_bench import bench, parametrised


@parametrised("byte_attention", "byte_attention_projected")
def test_byte_attention(benchmark: Any, name: str, implementation: str, direction: str) -> None:
    bench(benchmark, name, implementation, direction)
