"""patch_embed: bGPT's one-hot patch projection as a gather-sum of S weight rows a patch.

Shape letters: P patches, S bytes a patch, D width, V = 257 tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bgpt_fast import _C
from bgpt_fast.config import VOCAB_SIZE
from bgpt_fast.kernels.common.autograd import refuse_second_derivative
from bgpt_fast.kernels.common.checks import check_tensor
from bgpt_fast.kernels.patch_embed.reference import patch_embed_reference

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_library = torch.library.Library("bgpt_fast", "FRAGMENT")
_library.define("patch_embed(Tensor patches, Tensor weight, Tensor bias) -> Tensor")
_library.define("patch_embed_backward(Tensor dy, Tensor patches) -> Tensor")


def patch_embed(patches: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Embeds patches: y[p] = bias + Σ_s weight[:, 257·s + patches[p, s]], with no one-hot in memory.

    A row of the result depends on that patch alone, whatever shares the call. Fastest when `weight.t()` is contiguous,
    as `PatchLevelDecoder` keeps it.

    Args:
        patches: int16 [P, S] tokens 0…256.
        weight: float [D, S·257], any strides.
        bias: float [D], dtype and device of `weight`.

    Returns:
        float [P, D], dtype and device of `weight`.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or device, or a token outside 0…256 (checked on the CPU; the GPU
            kernel adds nothing for such a token).

    Source: arXiv 2402.19155, section 3.1.
    """
    check_tensor("patch_embed", "patches", patches, dtypes=(torch.int16,), shape=("P", "S"))
    check_tensor("patch_embed", "weight", weight, dtypes=_DTYPES, device=patches.device)
    check_tensor("patch_embed", "weight", weight, shape=("D", patches.shape[1] * VOCAB_SIZE))
    check_tensor("patch_embed", "bias", bias, dtypes=(weight.dtype,), shape=(weight.shape[0],), device=patches.device)
    return torch.ops.bgpt_fast.patch_embed(patches, weight, bias)


def _embed_reference(patches: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return patch_embed_reference(patches, weight, bias)


def _embed_cpu(patches: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    patches = patches.contiguous()
    if not _C.patches_in_range(patches.data_ptr(), patches.numel()):
        raise ValueError(f"patch_embed: patches: expected tokens 0…256, got {int(patches.min())}…{int(patches.max())}")
    if weight.dtype not in (torch.float32, torch.bfloat16):
        return patch_embed_reference(patches, weight, bias)
    rows, bias = weight.t().contiguous(), bias.contiguous()
    y = weight.new_empty(len(patches), weight.shape[0])
    _C.patch_embed(
        patches.data_ptr(),
        rows.data_ptr(),
        bias.data_ptr(),
        y.data_ptr(),
        patches.shape[0],
        patches.shape[1],
        weight.shape[0],
        weight.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return y


def _embed_backward_reference(dy: Tensor, patches: Tensor) -> Tensor:
    """Row sums of `dy` by token, a one-hot product a slot: deterministic, and P·257 of memory at a time."""
    slots = [
        torch.nn.functional.one_hot(patches[:, s].long(), VOCAB_SIZE).to(dy.dtype).t() @ dy
        for s in range(patches.shape[1])
    ]
    return torch.cat(slots).t()


def _embed_backward_cpu(dy: Tensor, patches: Tensor) -> Tensor:
    if dy.dtype not in (torch.float32, torch.bfloat16):
        return _embed_backward_reference(dy, patches)
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
    return rows.to(dy.dtype).t()


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(inputs[0])


def _backward(ctx, dy: Tensor):  # type: ignore[no-untyped-def]
    (patches,) = ctx.saved_tensors
    dweight = torch.ops.bgpt_fast.patch_embed_backward(dy, patches) if ctx.needs_input_grad[1] else None
    return None, dweight, dy.sum(0) if ctx.needs_input_grad[2] else None


_library.impl("patch_embed", _embed_reference, "CompositeExplicitAutograd")
_library.impl("patch_embed", _embed_cpu, "CPU")
_library.impl("patch_embed_backward", _embed_backward_reference, "CompositeExplicitAutograd")
_library.impl("patch_embed_backward", _embed_backward_cpu, "CPU")
torch.library.register_fake(
    "bgpt_fast::patch_embed", lambda patches, weight, bias: weight.new_empty(patches.shape[0], weight.shape[0])
)
torch.library.register_fake(
    "bgpt_fast::patch_embed_backward",
    lambda dy, patches: dy.new_empty(patches.shape[1] * VOCAB_SIZE, dy.shape[1]).t(),
)
torch.library.register_autograd("bgpt_fast::patch_embed", _backward, setup_context=_setup_context)
refuse_second_derivative("bgpt_fast::patch_embed_backward")

if _C.with_cuda:

    def _embed_cuda(patches: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if weight.dtype == torch.float64:
            return patch_embed_reference(patches, weight, bias)
        patches, rows, bias = patches.contiguous(), weight.t().contiguous(), bias.contiguous()
        y = weight.new_empty(len(patches), weight.shape[0])
        with torch.cuda.device(weight.device):
            _C.patch_embed_cuda(
                patches.data_ptr(),
                rows.data_ptr(),
                bias.data_ptr(),
                y.data_ptr(),
                patches.shape[0],
                patches.shape[1],
                weight.shape[0],
                {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}[weight.dtype],
                torch.cuda.current_stream(weight.device).cuda_stream,
            )
        return y

    _library.impl("patch_embed", _embed_cuda, "CUDA")
