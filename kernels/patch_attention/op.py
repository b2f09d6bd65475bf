"""patch_attention: causal attention within each of the documents that lie end to end in one packed batch.

The one seam between the engine and attention libraries. Half-precision tensors on an NVIDIA GPU go to torch's built-in
FlashAttention for packed sequences (`varlen_attn`; not yet run on a GPU); everything else to SDPA, over groups of
documents of about equal length: with causal attention, padding at a document's end is never seen by its real patches.

Shape letters: P patches, H heads, d channels a head, B documents.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor
from torch.nn import functional as F

from bgpt_fast.kernels.common.checks import check_tensor

_PADDING = 1.25  # a group's longest document may be this many times its shortest


def patch_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, *, dropout: float = 0.0
) -> Tensor:
    """Causal multi-head attention within each document, softmax(q kᵀ / √d) v.

    Args:
        q, k, v: float [P, H, d] of one dtype and device; strides are free.
        cu_seqlens: int32 [B+1], where each document starts, and P.
        max_seqlen: patches of the longest document.
        dropout: probability with which an attention weight is dropped.

    Returns:
        float [P, H, d].

    Raises:
        TypeError, ValueError: a wrong dtype, shape or device.

    Source: arXiv 2402.19155, section 3; the packed layout is FlashAttention's (arXiv 2205.14135).
    """
    check_tensor("patch_attention", "q", q, shape=("P", "H", "d"))
    for name, tensor in (("k", k), ("v", v)):
        check_tensor("patch_attention", name, tensor, dtypes=(q.dtype,), shape=tuple(q.shape), device=q.device)
    check_tensor("patch_attention", "cu_seqlens", cu_seqlens, dtypes=(torch.int32,), shape=("B+1",), device=q.device)
    if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and dropout == 0.0:
        return _varlen_flash(q, k, v, cu_seqlens, max_seqlen)
    return _grouped_sdpa(q, k, v, cu_seqlens, dropout)


def _varlen_flash(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # torch 2.11 says is_causal, later ones a window that is open to the left.
    takes_window = "window_size" in inspect.signature(varlen_attn).parameters
    causal = {"window_size": (-1, 0)} if takes_window else {"is_causal": True}
    return varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, **causal)


def _grouped_sdpa(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, dropout: float) -> Tensor:
    P, H, d = q.shape
    starts = cu_seqlens[:-1].long()
    lengths = cu_seqlens.diff().long()
    if len(lengths) == 0:
        return torch.empty_like(q)
    by_length, order = lengths.sort()
    if int(by_length[0]) == int(by_length[-1]):
        shape = (len(lengths), int(by_length[0]), H, d)
        y = _causal(q.reshape(shape), k.reshape(shape), v.reshape(shape), dropout)
        return y.reshape(P, H, d)
    outputs, places = [], []
    sizes = by_length.tolist()
    first = 0
    while first < len(sizes):
        last = first
        while last < len(sizes) and sizes[last] <= _PADDING * sizes[first]:
            last += 1
        longest = sizes[last - 1]
        steps = torch.arange(longest, device=q.device)
        group, group_lengths = order[first:last], by_length[first:last]
        # Past a document's end the last patch stands in; causality keeps it from every real query.
        rows = starts[group, None] + torch.minimum(steps[None], group_lengths[:, None] - 1)
        y = _causal(q[rows], k[rows], v[rows], dropout)
        real = steps[None] < group_lengths[:, None]
        outputs.append(y[real])
        places.append(rows[real])
        first = last
    return torch.empty_like(q).index_copy(0, torch.cat(places), torch.cat(outputs))


def _causal(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """SDPA on [B, L, H, d]."""
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, dropout_p=dropout
    )
    return y.transpose(1, 2)
