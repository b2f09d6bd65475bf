"""patch_embed: bGPT's one-hot patch projection as a gather-sum of S weight rows a patch, and one of its position.

Shape letters: P patches, S bytes a patch, D width, L positions, V = 257 tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bgpt_fast import _C
from bgpt_fast.config import VOCAB_SIZE
from bgpt_fast.kernels.common.autograd import refuse_second_derivative
from bgpt_fast.kernels.common.checks import check_tensor
from bgpt_fast.kernels.patch_embed.reference import (
    patch_embed_backward_reference,
    patch_embed_position_backward_reference,
    patch_embed_reference,
)

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_library = torch.library.Library("bgpt_fast", "FRAGMENT")
_library.define(
    "patch_embed(Tensor patches, Tensor weight, Tensor bias, Tensor? position_weight=None, Tensor? positions=None)"
    " -> Tensor"
)
_library.define("patch_embed_backward(Tensor dy, Tensor patches) -> Tensor")
_library.define("patch_embed_position_backward(Tensor dy, Tensor positions, int length) -> Tensor")


def patch_embed(
    patches: Tensor,
    weight: Tensor,
    bias: Tensor,
    position_weight: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """Embeds patches: y[p] = bias + Σ_s weight[257·s + patches[p, s]] + position_weight[positions[p]].

    A row of the result depends on that patch alone, whatever shares the call. It is summed in fp32 in the order
    written and rounded once; in float32 on the CPU that is bit for bit `patch_embed` without positions, plus the row.

    Gradients are deterministic. On a GPU those of `weight` and `position_weight` are products with one-hot tiles: a NaN
    or an infinity in column d of the incoming gradient makes that column of the whole table NaN (as in the product
    with a one-hot matrix), where the CPU in float32 and bfloat16 keeps it to the rows it belongs to.

    Args:
        patches: int16 [P, S] tokens 0…256.
        weight: float [S·257, D]: for each of the S bytes of a patch, a row for each token.
        bias: float [D], dtype and device of `weight`.
        position_weight: float [L, D], dtype and device of `weight`; None for no positions.
        positions: int64 [P], 0…L−1; given exactly when `position_weight` is.

    Returns:
        float [P, D], dtype and device of `weight`.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or device, a token outside 0…256 or a position outside 0…L−1 (both
            checked on the CPU; the GPU kernel adds nothing for such a token or position).

    Source: arXiv 2402.19155, section 3.1.
    """
    check_tensor("patch_embed", "patches", patches, dtypes=(torch.int16,), shape=("P", "S"))
    check_tensor("patch_embed", "weight", weight, dtypes=_DTYPES, device=patches.device)
    check_tensor("patch_embed", "weight", weight, shape=(patches.shape[1] * VOCAB_SIZE, "D"))
    dtypes, (_, D), device = (weight.dtype,), weight.shape, patches.device
    check_tensor("patch_embed", "bias", bias, dtypes=dtypes, shape=(D,), device=device)
    if (position_weight is None) != (positions is None):
        given, missing = ("positions", "position_weight") if positions is not None else ("position_weight", "positions")
        raise ValueError(f"patch_embed: {missing}: expected a tensor because {given} was given, got None")
    if position_weight is not None:
        check_tensor("patch_embed", "position_weight", position_weight, dtypes=dtypes, shape=("L", D), device=device)
        check_tensor("patch_embed", "positions", positions, dtypes=(torch.int64,), shape=(len(patches),), device=device)
    return torch.ops.bgpt_fast.patch_embed(patches, weight, bias, position_weight, positions)


def _embed_cpu(
    patches: Tensor,
    weight: Tensor,
    bias: Tensor,
    position_weight: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    patches = patches.contiguous()
    if not _C.patches_in_range(patches.data_ptr(), patches.numel()):
        raise ValueError(f"patch_embed: patches: expected tokens 0…256, got {int(patches.min())}…{int(patches.max())}")
    if position_weight is not None and positions is not None:
        position_weight, positions, L = position_weight.contiguous(), positions.contiguous(), len(position_weight)
        if not _C.positions_in_range(positions.data_ptr(), positions.numel(), L):
            found = f"{int(positions.min())}…{int(positions.max())}"
            raise ValueError(f"patch_embed: positions: expected 0…{L - 1}, rows of position_weight, got {found}")
    if weight.dtype not in (torch.float32, torch.bfloat16):
        return patch_embed_reference(patches, weight, bias, position_weight, positions)
    weight, bias = weight.contiguous(), bias.contiguous()
    y = weight.new_empty(len(patches), weight.shape[1])
    _C.patch_embed(
        patches.data_ptr(),
        weight.data_ptr(),
        bias.data_ptr(),
        _address(position_weight),
        _address(positions),
        y.data_ptr(),
        patches.shape[0],
        patches.shape[1],
        weight.shape[1],
        weight.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return y


def _embed_cuda(
    patches: Tensor,
    weight: Tensor,
    bias: Tensor,
    position_weight: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    if weight.dtype == torch.float64:
        return patch_embed_reference(patches, weight, bias, position_weight, positions)
    patches, weight, bias = patches.contiguous(), weight.contiguous(), bias.contiguous()
    position_weight = None if position_weight is None else position_weight.contiguous()
    positions = None if positions is None else positions.contiguous()
    y = weight.new_empty(len(patches), weight.shape[1])
    with torch.cuda.device(weight.device):
        _C.patch_embed_cuda(
            patches.data_ptr(),
            weight.data_ptr(),
            bias.data_ptr(),
            _address(position_weight),
            _address(positions),
            y.data_ptr(),
            patches.shape[0],
            patches.shape[1],
            weight.shape[1],
            0 if position_weight is None else len(position_weight),
            {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}[weight.dtype],
            torch.cuda.current_stream(weight.device).cuda_stream,
        )
    return y


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _backward_cpu(dy: Tensor, patches: Tensor) -> Tensor:
    if dy.dtype not in (torch.float32, torch.bfloat16):
        return patch_embed_backward_reference(dy, patches)
    dy32, patches = dy.float().contiguous(), patches.contiguous()
    rows = dy32.new_zeros(patches.shape[1] * VOCAB_SIZE, dy.shape[1])
    _C.patch_embed_backward(
        dy32.data_ptr(),
        patches.data_ptr(),
        rows.data_ptr(),
        patches.shape[0],
        patches.shape[1],
        dy.shape[1],
        torch.get_num_threads(),
    )
    return rows.to(dy.dtype)


def _backward_cuda(dy: Tensor, patches: Tensor) -> Tensor:
    if dy.dtype == torch.float64:
        return patch_embed_backward_reference(dy, patches)
    from bgpt_fast.kernels.patch_embed.triton_kernels import patch_embed_backward

    return patch_embed_backward(dy, patches)


def _position_backward_cpu(dy: Tensor, positions: Tensor, length: int) -> Tensor:
    # On the CPU index_add adds to a row in the order of p, with any number of threads.
    exact = dy.to(torch.promote_types(dy.dtype, torch.float32))
    return exact.new_zeros(length, dy.shape[1]).index_add_(0, positions, exact).to(dy.dtype)


def _position_backward_cuda(dy: Tensor, positions: Tensor, length: int) -> Tensor:
    if dy.dtype == torch.float64:
        return patch_embed_position_backward_reference(dy, positions, length)
    from bgpt_fast.kernels.patch_embed.triton_kernels import patch_embed_position_backward

    return patch_embed_position_backward(dy, positions, length)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    patches, _, _, position_weight, positions = inputs
    ctx.save_for_backward(patches, positions)
    ctx.length = 0 if position_weight is None else len(position_weight)


def _backward(ctx, dy: Tensor):  # type: ignore[no-untyped-def]
    patches, positions = ctx.saved_tensors
    ops, needed = torch.ops.bgpt_fast, ctx.needs_input_grad
    dweight = ops.patch_embed_backward(dy, patches) if needed[1] else None
    dbias = dy.sum(0) if needed[2] else None
    if positions is None:
        return None, dweight, dbias, None, None
    dposition = ops.patch_embed_position_backward(dy, positions, ctx.length) if needed[3] else None
    return None, dweight, dbias, dposition, None


_library.impl("patch_embed", patch_embed_reference, "CompositeExplicitAutograd")
_library.impl("patch_embed", _embed_cpu, "CPU")
if _C.with_cuda:
    _library.impl("patch_embed", _embed_cuda, "CUDA")
_library.impl("patch_embed_backward", patch_embed_backward_reference, "CompositeExplicitAutograd")
_library.impl("patch_embed_backward", _backward_cpu, "CPU")
_library.impl("patch_embed_backward", _backward_cuda, "CUDA")
_library.impl("patch_embed_position_backward", patch_embed_position_backward_reference, "CompositeExplicitAutograd")
_library.impl("patch_embed_position_backward", _position_backward_cpu, "CPU")
_library.impl("patch_embed_position_backward", _position_backward_cuda, "CUDA")
torch.library.register_fake(
    "bgpt_fast::patch_embed",
    lambda patches, weight, bias, position_weight=None, positions=None: weight.new_empty(
        patches.shape[0], weight.shape[1]
    ),
)
torch.library.register_fake(
    "bgpt_fast::patch_embed_backward",
    lambda dy, patches: dy.new_empty(patches.shape[1] * VOCAB_SIZE, dy.shape[1]),
)
torch.library.register_fake(
    "bgpt_fast::patch_embed_position_backward", lambda dy, positions, length: dy.new_empty(length, dy.shape[1])
)
torch.library.register_autograd("bgpt_fast::patch_embed", _backward, setup_context=_setup_context)
refuse_second_derivative("bgpt_fast::patch_embed_backward")
refuse_second_derivative("bgpt_fast::patch_embed_position_backward")
