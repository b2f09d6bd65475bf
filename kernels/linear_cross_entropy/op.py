"""linear_cross_entropy: the LM head, softmax and cross-entropy fused, without storing the logits.

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

    The logits are computed in tiles (on the CPU in chunks of rows) and recomputed in the backward pass: a third more
    arithmetic, but no N·V of memory. The GPU's are never rounded below float32; the CPU's are rounded to the dtype of
    `x`, as `F.linear` rounds them. On the GPU a row's result depends only on that row. For the logits themselves,
    which generation needs, use `invariant_linear`.

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
    return torch.ops.bgpt_fast.linear_cross_entropy(x, weight, targets)[0]


def _sums_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _forward_cpu(x: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    if len(x) and (targets.min() < 0 or targets.max() >= len(weight)):
        tokens = f"{int(targets.min())}…{int(targets.max())}"
        raise ValueError(f"linear_cross_entropy: targets: expected tokens 0…{len(weight) - 1}, got {tokens}")
    nats, lse = (torch.empty(len(x), dtype=_sums_dtype(x), device=x.device) for _ in range(2))
    targets = targets.long().contiguous()
    for at in range(0, len(x), _CPU_ROWS):
        rows = slice(at, at + _CPU_ROWS)
        logits, own = cpu_product(x[rows], weight.t()), targets[rows]
        if x.dtype not in _NATIVE:
            wide = logits.to(lse.dtype)
            lse[rows] = wide.logsumexp(1)
            nats[rows] = lse[rows] - wide.gather(1, own[:, None])[:, 0]
            continue
        results = nats[rows].data_ptr(), lse[rows].data_ptr()
        (N, V), is_bf16, threads = logits.shape, logits.dtype == torch.bfloat16, torch.get_num_threads()
        _C.cross_entropy(logits.data_ptr(), own.data_ptr(), *results, N, V, is_bf16, threads, _BEST_ISA)
    return nats, lse


def _backward_cpu(dnats: Tensor, x: Tensor, weight: Tensor, targets: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dweight = torch.zeros(weight.shape, dtype=lse.dtype, device=x.device)
    targets, dnats = targets.long().contiguous(), dnats.contiguous()
    for at in range(0, len(x), _CPU_ROWS):
        rows = slice(at, at + _CPU_ROWS)
        dlogits = cpu_product(x[rows], weight.t())
        # Not exp(logits − lse): the rounding of lse does not affect a softmax.
        _logits_to_gradient(dlogits, targets[rows], dnats[rows])
        dx[rows] = cpu_product(dlogits, weight)
        dweight += cpu_product(dlogits.t(), x[rows])
    return dx, dweight.to(weight.dtype)


def _logits_to_gradient(logits: Tensor, targets: Tensor, dnats: Tensor) -> None:
    """Replaces logits by their gradient."""
    if logits.dtype not in _NATIVE:
        gradient = logits.to(dnats.dtype).softmax(1)
        minus_one = torch.full((len(logits), 1), -1, dtype=dnats.dtype, device=dnats.device)
        logits.copy_(gradient.scatter_add_(1, targets[:, None], minus_one).mul_(dnats[:, None]))
        return
    (N, V), is_bf16, threads = logits.shape, logits.dtype == torch.bfloat16, torch.get_num_threads()
    addresses = logits.data_ptr(), targets.data_ptr(), dnats.data_ptr()
    _C.cross_entropy_backward(*addresses, N, V, is_bf16, threads, _BEST_ISA)


def _forward_fake(x: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], dtype=_sums_dtype(x)), x.new_empty(x.shape[0], dtype=_sums_dtype(x))


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # no tensor of zeros for lse


def _backward(ctx: Any, dnats: Tensor | None, _: None) -> tuple[Tensor | None, Tensor | None, None]:
    if dnats is None:
        return None, None, None
    dx, dweight = torch.ops.bgpt_fast.linear_cross_entropy_backward(dnats, *ctx.saved_tensors)
    return dx, dweight, None


OPS = (
    Op(
        "linear_cross_entropy(Tensor x, Tensor weight, Tensor targets) -> (Tensor nats, Tensor lse)",
        reference=linear_cross_entropy_reference,
        cpu=_forward_cpu,
        cuda=Triton("linear_cross_entropy", "linear_cross_entropy_forward", linear_cross_entropy_reference),
        fake=_forward_fake,
        setup_context=_setup_context,
        backward=_backward,
    ),
    Op(
        "linear_cross_entropy_backward(Tensor dnats, Tensor x, Tensor weight, Tensor targets, Tensor lse)"
        " -> (Tensor dx, Tensor dweight)",
        reference=linear_cross_entropy_backward_reference,
        cpu=_backward_cpu,
        cuda=Triton("linear_cross_entropy", "linear_cross_entropy_backward", linear_cross_entropy_backward_reference),
        fake=lambda dnats, x, weight, targets, lse: (x.new_empty(x.shape), weight.new_empty(weight.shape)),
    ),
)
_library = register(*OPS)
