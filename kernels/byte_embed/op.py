"""byte_embed: the byte decoder's input: a patch's feature, then its bytes' embeddings, plus position embeddings.

Shape letters: T patches, S bytes a patch, D width, V tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bgpt_fast import _C
from bgpt_fast.config import VOCAB_SIZES
from bgpt_fast.kernels.byte_embed.reference import byte_embed_backward_reference, byte_embed_reference
from bgpt_fast.kernels.common.checks import FLOATS, check_tensor, or_float32
from bgpt_fast.kernels.common.register import Op, Triton, register

_CPU_KERNELS = (torch.float32, torch.bfloat16)
_BEST_ISA = 2  # the widest instruction set to use, where the processor has it


def byte_embed(features: Tensor, patches: Tensor, wte: Tensor, wpe: Tensor) -> Tensor:
    """The byte decoder's input: x[t, 0] = features[t] + wpe[0], x[t, s] = wte[patches[t, s − 1]] + wpe[s].

    Each sum is in fp32 and rounded once, and a patch's rows depend only on that patch. Gradients are deterministic and
    summed in fp32; a table's gradient has its dtype. On a GPU the tables' gradients are products with one-hot
    tiles: a NaN or an infinity in column d of the incoming gradient makes column d of both tables' gradients NaN, as in
    the product with a one-hot matrix; on the CPU only the rows of its token and position become NaN.

    Args:
        features: float [T, D], any strides.
        patches: int16 [T, S] tokens 0…V−1, S at least 1; the last byte of a patch is not embedded.
        wte: float [V, D], V 128 or 257, dtype of `features` or float32.
        wpe: float [≥ S, D], dtype of `wte`.

    Returns:
        float [T, S, D], contiguous, dtype and device of `features`.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or device, or a token outside 0…V−1 (checked on the CPU; the GPU
            kernel adds nothing for such a token).

    Source: arXiv 2402.19155, section 3 (the byte-level decoder's input).
    """
    check_tensor("byte_embed", "features", features, dtypes=FLOATS, shape=("T", "D"))
    (T, D), device = features.shape, features.device
    check_tensor("byte_embed", "patches", patches, dtypes=(torch.int16,), shape=(T, "S"), device=device)
    S = patches.shape[1]
    if S == 0:
        raise ValueError(f"byte_embed: patches: expected at least 1 byte a patch, got {list(patches.shape)}")
    check_tensor("byte_embed", "wte", wte, dtypes=or_float32(features.dtype), shape=("V", D), device=device)
    if len(wte) not in VOCAB_SIZES:
        raise ValueError(f"byte_embed: wte: expected a row for each of {VOCAB_SIZES} tokens, got {len(wte)}")
    check_tensor("byte_embed", "wpe", wpe, dtypes=(wte.dtype,), shape=("L", D), device=device)
    if len(wpe) < S:
        raise ValueError(f"byte_embed: wpe: expected at least {S} rows, one a byte of a patch, got {len(wpe)}")
    return torch.ops.bgpt_fast.byte_embed(features, patches, wte, wpe)


def _forward_cpu(features: Tensor, patches: Tensor, wte: Tensor, wpe: Tensor) -> Tensor:
    (T, S), D = patches.shape, features.shape[1]
    patches = patches.contiguous()
    if not _C.patches_in_range(patches.data_ptr(), patches.numel(), len(wte)):
        limits = f"{int(patches.min())}…{int(patches.max())}"
        raise ValueError(f"byte_embed: patches: expected tokens 0…{len(wte) - 1}, got {limits}")
    if features.dtype not in _CPU_KERNELS:
        return byte_embed_reference(features, patches, wte, wpe)
    x = features.new_empty(T, S, D)
    features, wte, wpe = features.contiguous(), wte.contiguous(), wpe.contiguous()
    inputs = features.data_ptr(), patches.data_ptr(), wte.data_ptr(), wpe.data_ptr()
    types = features.dtype == torch.bfloat16, wte.dtype == torch.bfloat16
    _C.byte_embed(*inputs, x.data_ptr(), T, S, D, *types, torch.get_num_threads(), _BEST_ISA)
    return x


def _backward_cpu(dx: Tensor, patches: Tensor, positions: int, vocab_size: int) -> tuple[Tensor, Tensor, Tensor]:
    if dx.dtype not in _CPU_KERNELS:
        return byte_embed_backward_reference(dx, patches, positions, vocab_size)
    T, S, D = dx.shape
    dx, patches = dx.contiguous(), patches.contiguous()
    dfeatures = dx.new_empty(T, D)
    dwte, dwpe = (dx.new_zeros(rows, D, dtype=torch.float32) for rows in (vocab_size, positions))
    inputs, outputs = (dx.data_ptr(), patches.data_ptr()), (dfeatures.data_ptr(), dwte.data_ptr(), dwpe.data_ptr())
    is_bf16, threads = dx.dtype == torch.bfloat16, torch.get_num_threads()
    _C.byte_embed_backward(*inputs, *outputs, T, S, D, is_bf16, threads, _BEST_ISA)
    return dfeatures, dwte, dwpe


def _backward_fake(dx: Tensor, patches: Tensor, positions: int, vocab_size: int) -> tuple[Tensor, Tensor, Tensor]:
    tables = torch.promote_types(dx.dtype, torch.float32)
    T, _, D = dx.shape
    dwte, dwpe = (dx.new_empty(rows, D, dtype=tables) for rows in (vocab_size, positions))
    return dx.new_empty(T, D), dwte, dwpe


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _, patches, wte, wpe = inputs
    ctx.save_for_backward(patches)
    ctx.dtype, ctx.positions, ctx.vocab_size = wte.dtype, len(wpe), len(wte)


def _backward(ctx, dx: Tensor):  # type: ignore[no-untyped-def]
    (patches,) = ctx.saved_tensors
    dfeatures, dwte, dwpe = torch.ops.bgpt_fast.byte_embed_backward(dx, patches, ctx.positions, ctx.vocab_size)
    return dfeatures, None, dwte.to(ctx.dtype), dwpe.to(ctx.dtype)


OPS = (
    Op(
        "byte_embed(Tensor features, Tensor patches, Tensor wte, Tensor wpe) -> Tensor",
        reference=byte_embed_reference,
        cpu=_forward_cpu,
        cuda=Triton("byte_embed", "byte_embed_forward", byte_embed_reference),
        fake=lambda features, patches, wte, wpe: features.new_empty(*patches.shape, features.shape[1]),
        setup_context=_setup_context,
        backward=_backward,
    ),
    Op(
        "byte_embed_backward(Tensor dx, Tensor patches, int positions, int vocab_size) -> (Tensor, Tensor, Tensor)",
        reference=byte_embed_backward_reference,
        cpu=_backward_cpu,
        cuda=Triton("byte_embed", "byte_embed_backward", byte_embed_backward_reference),
        fake=_backward_fake,
    ),
)
_library = register(*OPS)
