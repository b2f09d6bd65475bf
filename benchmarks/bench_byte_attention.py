"""byte_attention, alone and with its projection, beside SDPA.

pytest benchmarks/bench_byte_attention.py
"""

from __future__ import annotations

import pytest
import torch
from op_bench import bench_op
from suite import Bench


@pytest.mark.ops("byte_attention", "byte_attention_projected")
def test_byte_attention(bench: Bench, name: str, implementation: str, direction: str, dtype: torch.dtype) -> None:
    bench_op(bench, name, implementation, direction, dtype)
