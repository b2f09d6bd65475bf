"""bias_gelu beside torch's addition and GELU.

pytest benchmarks/bench_bias_gelu.py
"""

from __future__ import annotations

import pytest
import torch
from op_bench import bench_op
from suite import Bench


@pytest.mark.ops("bias_gelu")
def test_bias_gelu(bench: Bench, name: str, implementation: str, direction: str, dtype: torch.dtype) -> None:
    bench_op(bench, name, implementation, direction, dtype)
