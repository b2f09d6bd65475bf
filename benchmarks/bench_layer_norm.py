"""layer_norm and add_layer_norm beside torch's own LayerNorm.

pytest benchmarks/bench_layer_norm.py
"""

from __future__ import annotations

import pytest
import torch
from op_bench import bench_op
from suite import Bench


@pytest.mark.ops("layer_norm", "add_layer_norm")
def test_layer_norm(bench: Bench, name: str, implementation: str, direction: str, dtype: torch.dtype) -> None:
    bench_op(bench, name, implementation, direction, dtype)
