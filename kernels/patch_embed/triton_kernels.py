"""patch_embed's gradients on a GPU: one-hot tiles on tensor cores. Not yet run on a GPU.

Both are the kernel of `kernels/common/one_hot.py`, which tells layout, tiling and predicted time. The weight's S slots
share dy: their tables are one axis of S·V labels, so a row of dy is read from HBM once and, at V = 257, from L2 33
times for all 4,112 labels, not 5 times for each of 16 slots. The forward's GPU kernel is
csrc/patch_embed/patch_embed.cu.

Shape letters: P patches, S bytes a patch, D width, L positions, V tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bgpt_fast.config import VOCAB_SIZE, VOCAB_SIZES
from bgpt_fast.kernels.common.launch import CompileCase
from bgpt_fast.kernels.common.one_hot import one_hot_compile_cases, one_hot_sums


def patch_embed_backward(dy: Tensor, patches: Tensor, vocab_size: int) -> Tensor:
    """The weight's gradient: dy float [P, D], patches int16 [P, S] → [S·V, D], dtype of dy."""
    return one_hot_sums(patches, dy, vocab_size, dy.dtype).flatten(0, 1)


def patch_embed_position_backward(dy: Tensor, positions: Tensor, length: int) -> Tensor:
    """The position table's gradient: dy float [P, D], positions int64 [P] → [length, D], dtype of dy."""
    return one_hot_sums(positions[:, None], dy, length, dy.dtype)[0]


def compile_cases() -> list[CompileCase]:
    """Every compilation that the two launchers can choose at realistic sizes."""
    cases = []
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        widths = (128, 192, 768, 1024)
        for V in VOCAB_SIZES:
            op, at = ("patch_embed_bwd", widths) if V == VOCAB_SIZE else (f"patch_embed_bwd v{V}", (768, 1280))
            cases += one_hot_compile_cases(op, dtype, at, tokens="*i16", S=16, V=V)
        cases += one_hot_compile_cases("patch_embed_position_bwd", dtype, widths, tokens="*i64", S=1, V=512)
    return cases
