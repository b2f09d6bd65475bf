"""linear_cross_entropy: the LM head, softmax and cross-entropy fused, on a GPU without storing the logits.

Shape letters: N rows, D width, V tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bgpt_fast import _C
from bgpt_fast.kernels.common.checks import FLOATS, check_tensor
from bgpt_fast.kernels.common.products import cpu_product
from bgpt_fast.kernels.common.register import Op, Triton, register
from bgpt_fast.kernels.linear_cross_entropy.reference import (
    linear_cross_entropy_backward_reference,
    linear_cross_entropy_reference,
)

_MAX_TOKENS = 512
_CPU_ROWS = 2048  # rows computed at a time: 1 or 2 MB of logits at V = 257, which stay in a cache
_NATIVE = (torch.float32, torch.bfloat16)
_BEST_ISA = 2  # the widest instruction set to use, where the processor has it


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Each row's cross-entropy in nats, logsumexp(x weightᵀ) − (x weightᵀ)[target].

    On the GPU the logits are computed in tiles and again in the backward pass: a third more arithmetic, but no N·V of
    memory, and they are never rounded below float32. On the CPU they are computed in chunks of rows, rounded to the
    dtype of `x` as `F.linear` rounds them, and kept for the backward pass where a gradient is recorded. On the GPU a
    row's result depends only on that row. For the logits themselves, which generation needs, use `invariant_linear`.

    Args:
        x: float [N, D], any strides.
        weight: float [V, D] of the dtype and device of `x`, V from 1 to 512; any strides.
        targets: int64 or int16 [N], tokens 0…V−1.

    Returns:
        float32 [N], float64 if `x` is.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or device, or a target outside 0…V−1 (checked on the CPU; the GPU
            kernel gives NaN for such a row).

    Source: arXiv 2402.19155, section 3.2 (the objective of the byte-level decoder).
    """
    op = "linear_cross_entropy"
    check_tensor(op, "x", x, dtypes=FLOATS, shape=("N", "D"), nonempty="D")
    check_tensor(op, "weight", weight, dtypes=(x.dtype,), shape=("V", x.shape[1]), device=x.device)
    check_tensor(op, "targets", targets, dtypes=(torch.int64, torch.int16), shape=(x.shape[0],), device=x.device)
    if not 1 <= weight.shape[0] <= _MAX_TOKENS:
        raise ValueError(f"{op}: weight: expected V from 1 to {_MAX_TOKENS}, got {list(weight.shape)}")
    save = x.device.type == "cpu" and torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return torch.ops.bgpt_fast.linear_cross_entropy(x, weight, targets, save)[0]


def _sums_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _forward_cpu(x: Tensor, weight: Tensor, targets: Tensor, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    if len(x) and (targets.min() < 0 or targets.max() >= len(weight)):
        tokens = f"{int(targets.min())}…{int(targets.max())}"
        raise ValueError(f"linear_cross_entropy: targets: expected tokens 0…{len(weight) - 1}, got {tokens}")
    nats, lse = (torch.empty(len(x), dtype=_sums_dtype(x), device=x.device) for _ in range(2))
    saved = x.new_empty(len(x) if save else 0, len(weight))
    targets = targets.long().contiguous()
    for at in range(0, len(x), _CPU_ROWS):
        rows = slice(at, at + _CPU_ROWS)
        logits, own = cpu_product(x[rows], weight.t(), out=saved[rows] if save else None), targets[rows]
        if x.dtype not in _NATIVE:
            wide = logits.to(lse.dtype)
            lse[rows] = wide.logsumexp(1)
            nats[rows] = lse[rows] - wide.gather(1, own[:, None])[:, 0]
            continue
        results = nats[rows].data_ptr(), lse[rows].data_ptr()
        (N, V), is_bf16, threads = logits.shape, logits.dtype == torch.bfloat16, torch.get_num_threads()
        _C.cross_entropy(logits.data_ptr(), own.data_ptr(), *results, N, V, is_bf16, threads, _BEST_ISA)
    return nats, lse, saved


def _backward_cpu(
    dnats: Tensor, x: Tensor, weight: Tensor, targets: Tensor, lse: Tensor, logits: Tensor
) -> tuple[Tensor, Tensor]:
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dweight = torch.zeros(weight.shape, dtype=lse.dtype, device=x.device)
    targets, dnats = targets.long().contiguous(), dnats.contiguous()
    for at in range(0, len(x), _CPU_ROWS):
        rows = slice(at, at + _CPU_ROWS)
        chunk = logits[rows] if len(logits) else cpu_product(x[rows], weight.t())
        # Not exp(logits − lse): the rounding of lse does not affect a softmax.
        dlogits = _gradient_of_logits(chunk, targets[rows], dnats[rows])
        cpu_product(dlogits, weight, out=dx[rows])
        dweight += cpu_product(dlogits.t(), x[rows])
    return dx, dweight.to(weight.dtype)


def _gradient_of_logits(logits: Tensor, targets: Tensor, dnats: Tensor) -> Tensor:
    if logits.dtype not in _NATIVE:
        gradient = logits.to(dnats.dtype).softmax(1)
        minus_one = torch.full((len(logits), 1), -1, dtype=dnats.dtype, device=dnats.device)
        return gradient.scatter_add_(1, targets[:, None], minus_one).mul_(dnats[:, None]).to(logits.dtype)
    gradient = torch.empty_like(logits)
    (N, V), is_bf16, threads = logits.shape, logits.dtype == torch.bfloat16, torch.get_num_threads()
    addresses = logits.data_ptr(), targets.data_ptr(), dnats.data_ptr(), gradient.data_ptr()
    _C.cross_entropy_backward(*addresses, N, V, is_bf16, threads, _BEST_ISA)
    return gradient


def _forward_reference(x: Tensor, weight: Tensor, targets: Tensor, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    return *linear_cross_entropy_reference(x, weight, targets), x.new_empty(len(x) if save else 0, len(weight))


def _backward_reference(
    dnats: Tensor, x: Tensor, weight: Tensor, targets: Tensor, lse: Tensor, _logits: Tensor
) -> tuple[Tensor, Tensor]:
    return linear_cross_entropy_backward_reference(dnats, x, weight, targets, lse)


def _forward_fake(x: Tensor, weight: Tensor, targets: Tensor, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    nats, lse = (x.new_empty(x.shape[0], dtype=_sums_dtype(x)) for _ in range(2))
    return nats, lse, x.new_empty(x.shape[0] if save else 0, weight.shape[0])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # no tensors of zeros for lse and the logits


def _backward(ctx: Any, dnats: Tensor | None, *_: None) -> tuple[Tensor | None, Tensor | None, None, None]:
    if dnats is None:
        return None, None, None, None
    dx, dweight = torch.ops.bgpt_fast.linear_cross_entropy_backward(dnats, *ctx.saved_tensors)
    return dx, dweight, None, None


OPS = (
    Op(
        "linear_cross_entropy(Tensor x, Tensor weight, Tensor targets, bool save)"
        " -> (Tensor nats, Tensor lse, Tensor logits)",
        reference=_forward_reference,
        cpu=_forward_cpu,
        cuda=Triton("linear_cross_entropy", "linear_cross_entropy_forward", _forward_reference),
        fake=_forward_fake,
        setup_context=_setup_context,
        backward=_backward,
    ),
    Op(
        "linear_cross_entropy_backward(Tensor dnats, Tensor x, Tensor weight, Tensor targets, Tensor lse,"
        " Tensor logits) -> (Tensor dx, Tensor dweight)",
        reference=_backward_reference,
        cpu=_backward_cpu,
        cuda=Triton("linear_cross_entropy", "linear_cross_entropy_backward", _backward_reference),
        fake=lambda dnats, x, weight, *_: (x.new_empty(x.shape), weight.new_empty(weight.shape)),
    ),
)
_library = register(*OPS)
