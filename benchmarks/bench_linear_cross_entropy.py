"""linear_cross_entropy beside torch's linear layer and cross-entropy.

pytest benchmarks/bench_linear_cross_entropy.py
"""

from __future__ import annotations

import pytest
import torch
from op_bench import bench_op
from suite import Bench


@pytest.mark.ops("linear_cross_entropy")
def test_linear_cross_entropy(bench: Bench, name: str, implementation: str, direction: str, dtype: torch.dtype) -> None:
    bench_op(bench, name, implementation, direction, dtype)
