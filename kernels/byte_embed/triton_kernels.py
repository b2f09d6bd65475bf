"""byte_embed on a GPU, in one pass each way. Not yet run on a GPU.

Forward: a program writes 16 rows (a patch at the paper's size) in pieces of BLOCK_D columns; BLOCK_D divides D where it
can (768 = 3 · 256), so no lane idles, and four warps hold 32 elements a thread, loaded and stored 16 bytes at a time.
Byte s − 1 of the flat patches is the token of flat row r = t·S + s when s > 0, so no index but r % S is computed. Both
tables stay in L2 (395 KB and 25 KB in bf16). A patch reads its feature and 2 S bytes from HBM and writes S rows: 26 KB
in bf16 at D = 768, 6.1 ns predicted at 4.3 TB/s (100 µs for 16,384 patches), with one addition an element.

Backward: dwte and dwpe by one pass of `kernels/common/one_hot.py` over all rows (a position is a second label of its
row, in the padding of the 257 tokens), dfeatures a strided copy of 1/16 of dx.

Shape letters: T patches, S bytes a patch, D width, V tokens.
"""

from __future__ import annotations

import itertools

import torch
import triton
import triton.language as tl
from torch import Tensor

from bgpt_fast.config import VOCAB_SIZE, VOCAB_SIZES
from bgpt_fast.kernels.common.launch import DTYPE_NAMES, CompileCase, cdiv, next_power_of_2, on_device
from bgpt_fast.kernels.common.one_hot import byte_row_sums, one_hot_compile_cases

_BLOCK_ROWS = 16
_WARPS = 4


@triton.jit(do_not_specialize=["rows"])
def _byte_embed_fwd_kernel(  # type: ignore[no-untyped-def]
    features,
    patches,
    wte,
    wpe,
    x,
    rows,
    S: tl.constexpr,
    D: tl.constexpr,
    V: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    real = row < rows
    s = row % S
    token = tl.load(patches + row - 1, mask=real & (s > 0), other=-1).to(tl.int64)
    is_first = (real & (s == 0))[:, None]
    is_byte = (real & (token >= 0) & (token < V))[:, None]
    for start in tl.static_range(0, D, BLOCK_D):
        d = (start + tl.arange(0, BLOCK_D))[None, :]
        feature = tl.load(features + (row // S)[:, None] * D + d, mask=is_first & (d < D), other=0.0).to(tl.float32)
        byte = tl.load(wte + token[:, None] * D + d, mask=is_byte & (d < D), other=0.0).to(tl.float32)
        position = tl.load(wpe + s[:, None] * D + d, mask=real[:, None] & (d < D), other=0.0).to(tl.float32)
        sums = tl.where(is_first, feature, byte) + position
        tl.store(x + row[:, None] * D + d, sums.to(x.dtype.element_ty), mask=real[:, None] & (d < D))


def byte_embed_forward(features: Tensor, patches: Tensor, wte: Tensor, wpe: Tensor) -> Tensor:
    """x [T, S, D] of features [T, D], patches int16 [T, S], wte [V, D], wpe [≥ S, D]; a wrong token adds nothing."""
    T, S = patches.shape
    D = features.shape[1]
    x = features.new_empty(T, S, D)
    if x.numel() == 0:
        return x
    features, patches, wte, wpe = features.contiguous(), patches.contiguous(), wte.contiguous(), wpe.contiguous()
    with on_device(x):
        _byte_embed_fwd_kernel[(cdiv(T * S, _BLOCK_ROWS),)](
            features,
            patches,
            wte,
            wpe,
            x,
            T * S,
            S=S,
            D=D,
            V=len(wte),
            BLOCK_ROWS=_BLOCK_ROWS,
            BLOCK_D=_block_d(D),
            num_warps=_WARPS,
        )
    return x


def byte_embed_backward(dx: Tensor, patches: Tensor, positions: int, vocab_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """dfeatures [T, D] in dx's dtype, dwte float32 [V, D] and dwpe float32 [positions, D], of dx [T, S, D]."""
    _, S, D = dx.shape
    dwte, by_position = byte_row_sums(patches, dx, vocab_size)
    dwpe = by_position.new_zeros(positions, D)
    dwpe[:S] = by_position
    return dx[:, 0].clone(memory_format=torch.contiguous_format), dwte.clone(), dwpe


def _block_d(D: int) -> int:
    """The widest piece of at most 256 columns that divides D; where that is narrow, pieces with a masked end."""
    even = min(256, D & -D)
    return even if even >= 64 else min(256, next_power_of_2(D))


def compile_cases() -> list[CompileCase]:
    """Every compilation that the two launchers can choose at realistic sizes."""
    cases = []
    for V, (dtype, short) in itertools.product(VOCAB_SIZES, DTYPE_NAMES.items()):
        op, widths = ("", (128, 192, 768, 1024)) if V == VOCAB_SIZE else (f" v{V}", (768, 1280))
        for table in sorted({short, "fp32"}):
            for D in widths:
                types = {"features": f"*{short}", "patches": "*i16", "wte": f"*{table}", "wpe": f"*{table}"}
                types |= {"x": f"*{short}", "rows": "i32"}
                blocks = {"BLOCK_ROWS": _BLOCK_ROWS, "BLOCK_D": _block_d(D)}
                constants = {"S": 16, "D": D, "V": V, **blocks}
                cases.append(
                    CompileCase(
                        f"byte_embed_fwd{op} {short} tables {table} d{D}",
                        _byte_embed_fwd_kernel,
                        types,
                        constants,
                        {"num_warps": _WARPS},
                        frozenset({"rows"}),
                        ("ld.global.v4|ld.global.v2.b64", "st.global.v4|st.global.v2.b64"),
                    )
                )
        cases += one_hot_compile_cases(f"byte_embed_bwd{op}", dtype, widths, tokens="*i16", S=16, V=V, is_bytes=True)
    return cases
