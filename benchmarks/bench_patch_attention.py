"""patch_attention of packed documents beside SDPA of as many of equal length.

pytest benchmarks/bench_patch_attention.py
"""

from __future__ import annotations

import pytest
import torch
from op_bench import bench_op
from suite import Bench


@pytest.mark.ops("patch_attention")
def test_patch_attention(bench: Bench, name: str, implementation: str, direction: str, dtype: torch.dtype) -> None:
    bench_op(bench, name, implementation, direction, dtype)
