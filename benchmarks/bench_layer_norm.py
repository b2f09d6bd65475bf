"""layer_norm and add_layer_norm beside torch's own LayerNorm.

pytest benchmarks/bench_layer_norm.py
"""

from __future__ import annotations

from typing import Any

from op_bench import bench, parametrised


@parametrised("layer_norm", "add_layer_norm")
def test_layer_norm(benchmark: Any, name: str, implementation: str, direction: str) -> None:
    bench(benchmark, name, implementation, direction)
