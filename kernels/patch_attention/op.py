"""patch_attention: causal attention within each document of a packed batch.

All attention libraries are called from here. Half-precision tensors on an NVIDIA GPU go to FlashAttention for packed
sequences: flash-attn 3, 4 or 2 where installed, else torch's own. On the CPU, batches of short
documents go to the C++ kernel of byte_attention. Everything else goes to SDPA, by groups of documents of similar
length that are padded to equal length; attention is causal, so no patch of a document sees the padding at its end. The
groups are planned on the CPU, once a batch where the caller passes `DocumentGroups`.
Generation, which has a cache of keys and values, uses `cached_attention`.

Shape letters: P patches, H heads, d channels a head, B documents.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bgpt_fast import _C
from bgpt_fast.device import to_device
from bgpt_fast.kernels.common.checks import FLOATS, check_tensor
from bgpt_fast.kernels.common.register import Op, register

_PACKAGES = (  # flash-attn 3, 4 and 2: module, and the major compute capabilities that it supports
    ("flash_attn_interface", (9,)),
    ("flash_attn.cute", (9, 10, 11)),
    ("flash_attn", (8, 9, 10, 11, 12)),
)
_PADDING = 1.25  # a group's longest document may be this many times its shortest


class DocumentGroups:
    """A batch's documents by similar length, for all layers; planned on the CPU when a layer first needs them.

    Args:
        cu_seqlens, max_seqlen: as in `patch_attention`.
        host_offsets: `cu_seqlens` on the CPU; None reads it, for which the host waits where it is on a GPU.
    """

    def __init__(self, cu_seqlens: Tensor, max_seqlen: int, host_offsets: Tensor | None = None) -> None:
        self._cu_seqlens, self._max_seqlen, self._host_offsets = cu_seqlens, max_seqlen, host_offsets
        self._groups: list[_Group] | None = None

    def of(self, P: int) -> list[_Group]:
        """The groups, on the device of `cu_seqlens`; raises ValueError if they do not have P patches."""
        if self._groups is None:
            offsets = self._cu_seqlens.cpu() if self._host_offsets is None else self._host_offsets
            _check_lengths(offsets, self._max_seqlen, P)
            self._groups = [group.to(self._cu_seqlens.device) for group in _groups(offsets)]
        return self._groups


def patch_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    dropout: float = 0.0,
    groups: DocumentGroups | None = None,
) -> Tensor:
    """Causal multi-head attention within each document, softmax(q kᵀ / √d) v.

    Args:
        q, k, v: float [P, H, d] of one dtype and device; any strides.
        cu_seqlens: int32 [B+1], the index of each document's first patch, then P.
        max_seqlen: number of patches in the longest document.
        dropout: probability with which an attention weight is dropped.
        groups: of the same batch, so that its layers share them; None plans them in this call, where needed.

    The lengths are checked where `cu_seqlens` is read on the host anyway, so not on the FlashAttention path.

    Returns:
        float [P, H, d].

    Raises:
        TypeError, ValueError: a wrong dtype, shape or device, or lengths that do not fit.

    Source: arXiv 2402.19155, section 3; the packed layout is FlashAttention's (arXiv 2205.14135).
    """
    check_tensor("patch_attention", "q", q, dtypes=FLOATS, shape=("P", "H", "d"), nonempty="H and d")
    for name, tensor in (("k", k), ("v", v)):
        check_tensor("patch_attention", name, tensor, dtypes=(q.dtype,), shape=tuple(q.shape), device=q.device)
    check_tensor("patch_attention", "cu_seqlens", cu_seqlens, dtypes=(torch.int32,), shape=("B+1",), device=q.device)
    if not 0.0 <= dropout <= 1.0:
        raise ValueError(f"patch_attention: dropout: expected a probability, got {dropout}")
    if q.is_cuda and dropout == 0.0 and _flash_takes(q):
        return _varlen_flash(q, k, v, cu_seqlens, max_seqlen)
    is_short = 0 < max_seqlen <= _C.short_attention_max_length and dropout == 0.0
    if is_short and not q.is_cuda and q.dtype in (torch.float32, torch.bfloat16):
        return torch.ops.bgpt_fast.short_documents_attention(q, k, v, cu_seqlens, max_seqlen)
    if q.device.type == "cpu" and dropout == 0.0:
        return torch.ops.bgpt_fast.documents_attention(q, k, v, cu_seqlens, max_seqlen)[0]
    return _grouped_sdpa(q, k, v, (groups or DocumentGroups(cu_seqlens, max_seqlen)).of(len(q)), dropout)


def _flash_takes(q: Tensor) -> bool:
    """FlashAttention needs half precision, a multiple of 8 channels a head, and compute capability 8.0."""
    is_half = q.dtype in (torch.float16, torch.bfloat16)
    return is_half and q.shape[2] % 8 == 0 and q.shape[2] <= 256 and torch.cuda.get_device_capability(q.device)[0] >= 8


def _varlen_flash(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    package = _flash_package(torch.cuda.get_device_capability(q.device)[0]) if q.shape[2] <= 128 else None
    if package is None:
        y: Tensor = torch.ops.bgpt_fast.flash_documents_attention(q, k, v, cu_seqlens, max_seqlen)[0]
        return y
    return _package_flash(package, q, k, v, cu_seqlens, max_seqlen)


@functools.cache
def _flash_package(capability: int) -> Callable[..., object] | None:
    """The `flash_attn_varlen_func` of the first installed package that supports this major compute capability."""
    for name, generations in _PACKAGES:
        if capability in generations:
            try:
                return importlib.import_module(name).flash_attn_varlen_func
            except (ImportError, AttributeError):
                continue
    return None


def _package_flash(
    package: Callable[..., object], q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int
) -> Tensor:
    offsets = {"cu_seqlens_q": cu_seqlens, "cu_seqlens_k": cu_seqlens}
    lengths = {"max_seqlen_q": max_seqlen, "max_seqlen_k": max_seqlen}
    result = package(q, k, v, **offsets, **lengths, causal=True, deterministic=True)
    y = result[0] if isinstance(result, tuple) else result  # flash-attn 4 returns the log-sum-exp too
    assert isinstance(y, Tensor)
    return y


def _flash(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> tuple[Tensor, Tensor]:
    """torch's FlashAttention: y [P, H, d] and lse float32 [H, P].

    It is what `torch.nn.attention.varlen.varlen_attn` calls, without the three tensors that this fills with zeros in
    each layer.
    """
    offsets, lengths = (cu_seqlens, cu_seqlens), (max_seqlen, max_seqlen)
    y, lse, *_ = torch.ops.aten._flash_attention_forward(q, k, v, *offsets, *lengths, 0.0, True, False)
    return y, lse


def _flash_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, cu_seqlens: Tensor, max_seqlen: int
) -> tuple[Tensor, Tensor, Tensor]:
    # The state of the random numbers, which only dropout uses.
    state, unused = q.new_empty(2, dtype=torch.uint64), q.new_empty(0)
    offsets, lengths = (cu_seqlens, cu_seqlens), (max_seqlen, max_seqlen)
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
        dy, q, k, v, y, lse, *offsets, *lengths, 0.0, True, state, unused
    )
    return gradients


class _Group(NamedTuple):
    """Documents of similar length, padded to equal length; padding repeats a document's last patch.

    Attention is causal, so no patch of a document sees its padding.
    """

    rows: Tensor
    """int64 [documents, length]: the index of each patch."""
    is_padding: Tensor | None
    """bool [documents, length]; None where the documents are all of the batch, in order and of equal length."""
    real: Tensor | None
    """int64 [patches]: where `is_padding`, flattened, is False; None where `is_padding` is."""

    def padded(self, x: Tensor) -> Tensor:
        """[P, …] → [documents, length, …]."""
        return x.reshape(*self.rows.shape, *x.shape[1:]) if self.is_padding is None else x[self.rows]

    def unpadded(self, x: Tensor) -> Tensor:
        """[documents, length, …] → the real patches of the group [patches, …]."""
        # Not by the mask: a GPU would have to tell the host how many they are.
        flat = x.flatten(0, 1)
        return flat if self.real is None else flat.index_select(0, self.real)

    def to(self, device: torch.device) -> _Group:
        """The group on `device`; the host does not wait."""
        cpu = torch.device("cpu")
        rows = to_device(self.rows, cpu, device)
        if self.is_padding is None or self.real is None:
            return _Group(rows, None, None)
        return _Group(rows, to_device(self.is_padding, cpu, device), to_device(self.real, cpu, device))


def _groups(cu_seqlens: Tensor) -> list[_Group]:
    """The documents that have patches, by similar length; `cu_seqlens` and the result are on the CPU."""
    starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    lengths, starts = lengths[lengths > 0], starts[lengths > 0]
    by_length, order = lengths.sort()
    sizes = by_length.tolist()
    if sizes and sizes[0] == sizes[-1]:
        rows = torch.arange(len(sizes) * sizes[0], device="cpu")
        return [_Group(rows.view(len(sizes), sizes[0]), None, None)]
    groups = []
    first = 0
    while first < len(sizes):
        last = first
        while last < len(sizes) and sizes[last] <= _PADDING * sizes[first]:
            last += 1
        steps = torch.arange(sizes[last - 1], device="cpu")
        ends = by_length[first:last, None] - 1
        is_padding = steps > ends
        rows = starts[order[first:last], None] + torch.minimum(steps, ends)
        groups.append(_Group(rows, is_padding, (~is_padding).flatten().nonzero().flatten()))
        first = last
    return groups


def _in_order(groups: Sequence[_Group], parts: Sequence[Tensor], like: Tensor) -> Tensor:
    """The groups' patches at their places in the batch: a tensor of the shape and dtype of `like`."""
    if len(groups) == 1 and groups[0].is_padding is None:
        return parts[0].reshape(like.shape).to(like.dtype)
    rows = torch.cat([group.unpadded(group.rows) for group in groups])
    return torch.empty_like(like).index_copy(0, rows, torch.cat(list(parts)).to(like.dtype))


def _grouped_sdpa(q: Tensor, k: Tensor, v: Tensor, groups: Sequence[_Group], dropout: float) -> Tensor:
    if not groups:
        return torch.empty_like(q)
    parts = []
    for group in groups:
        y = _causal(group.padded(q), group.padded(k), group.padded(v), dropout)
        parts.append(group.unpadded(y))
    return _in_order(groups, parts, q)


def _causal(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """SDPA on [B, L, H, d]; on the CPU in float32, which is both faster there than half precision and more exact."""
    dtype = q.dtype
    if not q.is_cuda and dtype in (torch.bfloat16, torch.float16):
        q, k, v = q.float(), k.float(), v.float()
    # Autocast would make the tensors half precision again.
    with torch.autocast(q.device.type, enabled=False):
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, dropout_p=dropout
        )
    return y.transpose(1, 2).to(dtype)


def _documents(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> tuple[Tensor, Tensor]:
    """torch's FlashAttention for the CPU by groups of documents: y, and lse [P, H] for the backward pass."""
    _check_lengths(cu_seqlens, max_seqlen, len(q))
    groups, wide = _groups(cu_seqlens), _wide(q)
    lse = q.new_empty(q.shape[:2], dtype=wide)
    if not groups:
        return torch.empty(q.shape, dtype=q.dtype, device=q.device), lse
    ys, lses = [], []
    for group in groups:
        y, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *(group.padded(x).to(wide).transpose(1, 2) for x in (q, k, v)), 0.0, True
        )
        ys.append(group.unpadded(y.transpose(1, 2)))
        lses.append(group.unpadded(sums.transpose(1, 2)))
    return _in_order(groups, ys, q.contiguous()), _in_order(groups, lses, lse)


def _documents_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    groups, wide, like = _groups(cu_seqlens), _wide(q), q.contiguous()
    parts = []
    for group in groups:
        dys, *others, lses = (group.padded(x).to(wide).transpose(1, 2) for x in (dy, q, k, v, y, lse))
        if group.is_padding is not None:
            dys = dys.masked_fill(group.is_padding[:, None, :, None], 0)
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(dys, *others, lses, 0.0, True)
        parts.append([group.unpadded(gradient.transpose(1, 2)) for gradient in gradients])
    if not groups:
        return torch.empty_like(like), torch.empty_like(like), torch.empty_like(like)
    dq, dk, dv = (_in_order(groups, part, like) for part in zip(*parts, strict=True))
    return dq, dk, dv


def _wide(q: Tensor) -> torch.dtype:
    """The dtype of the CPU's sums: float32 is both faster there than half precision and more exact."""
    return torch.promote_types(q.dtype, torch.float32)


def _rows(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v with equal row strides and contiguous rows [H, d]; copied only where they are not so already."""
    _, H, d = q.shape
    fit = all(t.stride(2) == 1 and t.stride(1) == d and t.stride(0) == q.stride(0) for t in (q, k, v))
    return (q, k, v) if fit and q.stride(0) >= H * d else (q.contiguous(), k.contiguous(), v.contiguous())


def _check_lengths(cu_seqlens: Tensor, max_seqlen: int, P: int) -> None:
    """Raises where the lengths would make the C++ kernel read beyond its tensors."""
    lengths = cu_seqlens.diff()
    ends_fit = len(cu_seqlens) > 0 and int(cu_seqlens[0]) == 0 and int(cu_seqlens[-1]) == P
    if not ends_fit or (len(lengths) and not 0 <= int(lengths.min()) <= int(lengths.max()) <= max_seqlen):
        raise ValueError(
            f"patch_attention: cu_seqlens: expected to rise from 0 to {P} in steps of at most max_seqlen {max_seqlen}, "
            f"got {cu_seqlens.tolist()[:8]}…"
        )


def _short_documents(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    P, H, d = q.shape
    _check_lengths(cu_seqlens, max_seqlen, P)
    q, k, v = _rows(q, k, v)
    cu_seqlens = cu_seqlens.contiguous()
    y = q.new_empty(P, H, d)
    qs, ks, vs, ys = (t.data_ptr() for t in (q, k, v, y))
    B, offsets = len(cu_seqlens) - 1, cu_seqlens.data_ptr()
    is_bf16, threads = q.dtype == torch.bfloat16, torch.get_num_threads()
    _C.short_attention(qs, ks, vs, q.stride(0), ys, B, max_seqlen, offsets, H, d, is_bf16, threads)
    return y


def _short_documents_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int
) -> tuple[Tensor, Tensor, Tensor]:
    P, H, d = q.shape
    _check_lengths(cu_seqlens, max_seqlen, P)
    q, k, v = _rows(q, k, v)
    dy, cu_seqlens = dy.contiguous(), cu_seqlens.contiguous()
    dq, dk, dv = (q.new_empty(P, H, d) for _ in range(3))
    dys, qs, ks, vs, dqs, dks, dvs = (t.data_ptr() for t in (dy, q, k, v, dq, dk, dv))
    B, offsets = len(cu_seqlens) - 1, cu_seqlens.data_ptr()
    is_bf16, threads = q.dtype == torch.bfloat16, torch.get_num_threads()
    _C.short_attention_backward(
        dys, qs, ks, vs, q.stride(0), dqs, dks, dvs, H * d, B, max_seqlen, offsets, H, d, is_bf16, threads
    )
    return dq, dk, dv


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, ctx.max_seqlen = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, dy: Tensor):  # type: ignore[no-untyped-def]
    backward = torch.ops.bgpt_fast.short_documents_attention_backward
    return *backward(dy, *ctx.saved_tensors, ctx.max_seqlen), None, None


def _documents_setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, cu_seqlens, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # no tensor of zeros for lse
    ctx.save_for_backward(q, k, v, *output, cu_seqlens)


def _documents_gradient(ctx, dy: Tensor | None, _: None):  # type: ignore[no-untyped-def]
    if dy is None:
        return None, None, None, None, None
    return *torch.ops.bgpt_fast.documents_attention_backward(dy, *ctx.saved_tensors), None, None


def _documents_fake(q, k, v, cu_seqlens, max_seqlen):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=_wide(q))


def _flash_setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, cu_seqlens, ctx.max_seqlen = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # no tensor of zeros for lse
    ctx.save_for_backward(*tensors, *output, cu_seqlens)


def _flash_gradient(ctx, dy: Tensor | None, _: None):  # type: ignore[no-untyped-def]
    if dy is None:
        return None, None, None, None, None
    backward = torch.ops.bgpt_fast.flash_documents_attention_backward
    return *backward(dy, *ctx.saved_tensors, ctx.max_seqlen), None, None


def _flash_fake(q, k, v, cu_seqlens, max_seqlen):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)


OPS = (
    Op(
        "short_documents_attention(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, SymInt max_seqlen) -> Tensor",
        cpu=_short_documents,
        fake=lambda q, k, v, cu_seqlens, max_seqlen: q.new_empty(q.shape),
        setup_context=_setup_context,
        backward=_backward,
    ),
    Op(
        "short_documents_attention_backward(Tensor dy, Tensor q, Tensor k, Tensor v, Tensor cu_seqlens,"
        " SymInt max_seqlen) -> (Tensor, Tensor, Tensor)",
        cpu=_short_documents_backward,
        fake=lambda dy, q, k, v, cu_seqlens, max_seqlen: tuple(q.new_empty(q.shape) for _ in range(3)),
    ),
    Op(
        "documents_attention(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, SymInt max_seqlen)"
        " -> (Tensor y, Tensor lse)",
        cpu=_documents,
        fake=_documents_fake,
        setup_context=_documents_setup_context,
        backward=_documents_gradient,
    ),
    Op(
        "flash_documents_attention(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, SymInt max_seqlen)"
        " -> (Tensor y, Tensor lse)",
        cuda=_flash,
        fake=_flash_fake,
        setup_context=_flash_setup_context,
        backward=_flash_gradient,
    ),
    Op(
        "flash_documents_attention_backward(Tensor dy, Tensor q, Tensor k, Tensor v, Tensor y, Tensor lse,"
        " Tensor cu_seqlens, SymInt max_seqlen) -> (Tensor, Tensor, Tensor)",
        cuda=_flash_backward,
        fake=lambda dy, q, *_: tuple(q.new_empty(q.shape) for _ in range(3)),
    ),
    Op(
        "documents_attention_backward(Tensor dy, Tensor q, Tensor k, Tensor v, Tensor y, Tensor lse, Tensor cu_seqlens)"
        " -> (Tensor, Tensor, Tensor)",
        cpu=_documents_backward,
        fake=lambda dy, q, *_: tuple(q.new_empty(q.shape) for _ in range(3)),
    ),
)
_library = register(*OPS)
