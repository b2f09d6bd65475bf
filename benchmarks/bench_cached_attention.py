"""cached_attention beside SDPA over the same cache.

pytest benchmarks/bench_cached_attention.py
"""

from __future__ import annotations

import pytest
import torch
from op_bench import bench_op
from suite import Bench


@pytest.mark.ops("cached_attention")
def test_cached_attention(bench: Bench, name: str, implementation: str, direction: str, dtype: torch.dtype) -> None:
    bench_op(bench, name, implementation, direction, dtype)
