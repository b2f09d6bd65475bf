"""patch_embed beside embedding_bag.

pytest benchmarks/bench_patch_embed.py
"""

from __future__ import annotations

import pytest
import torch
from op_bench import bench_op
from suite import Bench


@pytest.mark.ops("patch_embed")
def test_patch_embed(bench: Bench, name: str, implementation: str, direction: str, dtype: torch.dtype) -> None:
    bench_op(bench, name, implementation, direction, dtype)
