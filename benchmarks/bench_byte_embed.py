"""byte_embed beside embedding, concatenation and addition.

pytest benchmarks/bench_byte_embed.py
"""

from __future__ import annotations

import pytest
import torch
from op_bench import bench_op
from suite import Bench


@pytest.mark.ops("byte_embed")
def test_byte_embed(bench: Bench, name: str, implementation: str, direction: str, dtype: torch.dtype) -> None:
    bench_op(bench, name, implementation, direction, dtype)
