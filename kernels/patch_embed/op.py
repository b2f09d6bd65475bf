"""patch_embed: bGPT's one-hot patch projection as a sum of S gathered weight rows per patch, plus a position row.

Shape letters: P patches, S bytes a patch, D width, L positions, V tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bgpt_fast import _C
from bgpt_fast.config import VOCAB_SIZES
from bgpt_fast.kernels.common.checks import FLOATS, check_tensor
from bgpt_fast.kernels.common.register import Op, Triton, register
from bgpt_fast.kernels.patch_embed.reference import (
    patch_embed_backward_reference,
    patch_embed_position_backward_reference,
    patch_embed_reference,
)

_CPU_KERNELS = (torch.float32, torch.bfloat16)
_BEST_ISA = 2  # the widest instruction set to use, where the processor has it


def patch_embed(
    patches: Tensor,
    weight: Tensor,
    bias: Tensor,
    position_weight: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """Embeds patches: y[p] = bias + Σ_s weight[V·s + patches[p, s]] + position_weight[positions[p]].

    A row of the result depends only on its patch and position. It is summed in fp32 in the order written and rounded
    once; in float32 on the CPU that is bit for bit `patch_embed` without positions, plus the position's row.

    Gradients are deterministic. On a GPU those of `weight` and `position_weight` are products with one-hot tiles: a NaN
    or an infinity in column d of the incoming gradient makes that column of the whole table NaN (as in the product
    with a one-hot matrix), where the CPU in float32 and bfloat16 keeps it to the rows it belongs to.

    Args:
        patches: int16 [P, S] tokens 0…V−1.
        weight: float [S·V, D], V 128 or 257: for each of the S bytes of a patch, a row for each token.
        bias: float [D], dtype and device of `weight`.
        position_weight: float [L, D], dtype and device of `weight`; None for no positions.
        positions: int64 [P], 0…L−1; required if `position_weight` is given, otherwise None.

    Returns:
        float [P, D], dtype and device of `weight`.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or device, a token outside 0…V−1 or a position outside 0…L−1 (both
            checked on the CPU; the GPU kernel adds nothing for such a token or position).

    Source: arXiv 2402.19155, section 3.1.
    """
    check_tensor("patch_embed", "patches", patches, dtypes=(torch.int16,), shape=("P", "S"))
    check_tensor("patch_embed", "weight", weight, dtypes=FLOATS, device=patches.device)
    check_tensor("patch_embed", "weight", weight, shape=("V", "D"))
    S = patches.shape[1]
    if all(len(weight) != S * V for V in VOCAB_SIZES):  # not `in`, which is wrong of symbolic sizes in torch.compile
        raise ValueError(
            f"patch_embed: weight: expected shape [{S}·V, D] with V of {VOCAB_SIZES}, got {list(weight.shape)}"
        )
    dtypes, (_, D), device = (weight.dtype,), weight.shape, patches.device
    check_tensor("patch_embed", "bias", bias, dtypes=dtypes, shape=(D,), device=device)
    if (position_weight is None) != (positions is None):
        present, missing = "position_weight", "positions"
        if position_weight is None:
            present, missing = missing, present
        raise ValueError(f"patch_embed: {missing}: expected a tensor because {present} is one, got None")
    if position_weight is not None:
        check_tensor("patch_embed", "position_weight", position_weight, dtypes=dtypes, shape=("L", D), device=device)
        check_tensor(
            "patch_embed", "positions", positions, dtypes=(torch.int64,), shape=(patches.shape[0],), device=device
        )
    return torch.ops.bgpt_fast.patch_embed(patches, weight, bias, position_weight, positions)


def _forward_cpu(patches: Tensor, weight: Tensor, bias: Tensor, *position: Tensor | None) -> Tensor:
    position_weight, positions = position or (None, None)
    patches = patches.contiguous()
    V = _vocab_size(patches, weight)
    if not _C.patches_in_range(patches.data_ptr(), patches.numel(), V):
        limits = f"{int(patches.min())}…{int(patches.max())}"
        raise ValueError(f"patch_embed: patches: expected tokens 0…{V - 1}, got {limits}")
    if position_weight is not None and positions is not None:
        positions, L = positions.contiguous(), len(position_weight)
        if not _C.positions_in_range(positions.data_ptr(), positions.numel(), L):
            limits = f"{int(positions.min())}…{int(positions.max())}"
            raise ValueError(f"patch_embed: positions: expected 0…{L - 1}, rows of position_weight, got {limits}")
    tensors = patches, weight, bias, position_weight, positions
    if weight.dtype not in _CPU_KERNELS:
        return patch_embed_reference(*tensors)
    return _call(_C.patch_embed, tensors, weight.dtype == torch.bfloat16, torch.get_num_threads(), _BEST_ISA)


def _forward_cuda(patches: Tensor, weight: Tensor, bias: Tensor, *position: Tensor | None) -> Tensor:
    position_weight, positions = position or (None, None)
    tensors = patches, weight, bias, position_weight, positions
    if weight.dtype == torch.float64:
        return patch_embed_reference(*tensors)
    with torch.cuda.device(weight.device):
        return _call(
            _C.patch_embed_cuda,
            tensors,
            0 if position_weight is None else len(position_weight),
            {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}[weight.dtype],
            torch.cuda.current_stream(weight.device).cuda_stream,
        )


def _call(kernel: Callable[..., None], tensors: tuple[Tensor | None, ...], *arguments: int) -> Tensor:
    """Passes the addresses of contiguous tensors to a kernel of the extension; None becomes the address 0."""
    patches, weight, *rest = (None if tensor is None else tensor.contiguous() for tensor in tensors)
    assert patches is not None
    assert weight is not None
    (P, S), D = patches.shape, weight.shape[1]
    y = weight.new_empty(P, D)
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in (patches, weight, *rest, y)]
    kernel(*addresses, P, S, D, _vocab_size(patches, weight), *arguments)
    return y


def _vocab_size(patches: Tensor, weight: Tensor) -> int:
    return len(weight) // max(patches.shape[1], 1)


def _backward_cpu(dy: Tensor, patches: Tensor, vocab_size: int) -> Tensor:
    if dy.dtype not in _CPU_KERNELS:
        return patch_embed_backward_reference(dy, patches, vocab_size)
    dy, patches = dy.contiguous(), patches.contiguous()
    (P, S), D = patches.shape, dy.shape[1]
    dweight = dy.new_zeros(S * vocab_size, D)
    addresses = dy.data_ptr(), patches.data_ptr(), dweight.data_ptr()
    is_bf16, threads = dy.dtype == torch.bfloat16, torch.get_num_threads()
    _C.patch_embed_backward(*addresses, P, S, D, vocab_size, is_bf16, threads, _BEST_ISA)
    return dweight


def _position_backward_cpu(dy: Tensor, positions: Tensor, length: int) -> Tensor:
    # On the CPU index_add adds to a row in the order of p, with any number of threads.
    exact = dy.to(torch.promote_types(dy.dtype, torch.float32))
    return exact.new_zeros(length, dy.shape[1]).index_add_(0, positions, exact).to(dy.dtype)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    patches, weight, _, position_weight, positions = inputs
    ctx.save_for_backward(patches, positions)
    ctx.vocab_size = _vocab_size(patches, weight)
    ctx.length = 0 if position_weight is None else len(position_weight)


def _backward(ctx, dy: Tensor):  # type: ignore[no-untyped-def]
    patches, positions = ctx.saved_tensors
    ops, needed = torch.ops.bgpt_fast, ctx.needs_input_grad
    dweight = ops.patch_embed_backward(dy, patches, ctx.vocab_size) if needed[1] else None
    dbias = dy.sum(0) if needed[2] else None
    if positions is None:
        return None, dweight, dbias, None, None
    dposition = ops.patch_embed_position_backward(dy, positions, ctx.length) if needed[3] else None
    return None, dweight, dbias, dposition, None


OPS = (
    Op(
        "patch_embed(Tensor patches, Tensor weight, Tensor bias, Tensor? position_weight, Tensor? positions) -> Tensor",
        reference=patch_embed_reference,
        cpu=_forward_cpu,
        cuda=_forward_cuda if _C.with_cuda else None,
        fake=lambda patches, weight, *_: weight.new_empty(patches.shape[0], weight.shape[1]),
        setup_context=_setup_context,
        backward=_backward,
    ),
    Op(
        "patch_embed_backward(Tensor dy, Tensor patches, int vocab_size) -> Tensor",
        reference=patch_embed_backward_reference,
        cpu=_backward_cpu,
        cuda=Triton("patch_embed", "patch_embed_backward", patch_embed_backward_reference),
        fake=lambda dy, patches, vocab_size: dy.new_empty(patches.shape[1] * vocab_size, dy.shape[1]),
    ),
    Op(
        "patch_embed_position_backward(Tensor dy, Tensor positions, int length) -> Tensor",
        reference=patch_embed_position_backward_reference,
        cpu=_position_backward_cpu,
        cuda=Triton("patch_embed", "patch_embed_position_backward", patch_embed_position_backward_reference),
        fake=lambda dy, positions, length: dy.new_empty(length, dy.shape[1]),
    ),
)
_library = register(*OPS)
