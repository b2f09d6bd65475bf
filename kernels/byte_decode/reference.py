"""byte_decode in plain torch: the layers of the whole patch are recomputed for each byte.

Shape letters: N patches, S bytes a patch, D width, V tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bgpt_fast.config import EOP
from bgpt_fast.kernels.byte_decode.sampling import Sampling, choose


def byte_decode_reference(
    features: Tensor,
    prefix_tokens: Tensor,
    max_tokens: Tensor,
    rng_streams: Tensor,
    byte_offsets: Tensor,
    sampling: Tensor,
    drafts: Tensor | None,
    verify: Tensor | None,
    weights: list[Tensor],
    heads: int,
    eps: float,
    eop: int,
    fill: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments and results are those of the registered op: `sampling` from `Sampling.to_tensor`, streams and offsets
    as int64 with the bits of uint64, weights in the order of `ByteDecoderWeights.tensors`."""
    N, S = prefix_tokens.shape
    tokens = torch.full_like(prefix_tokens, fill)
    counts, next_tokens = torch.zeros_like(max_tokens), torch.zeros_like(max_tokens)
    active = torch.ones_like(max_tokens, dtype=torch.uint8)
    logits = features.new_full((N, S, len(weights[-2])), torch.nan)
    call = prefix_tokens, max_tokens, rng_streams, byte_offsets, sampling
    for s in range(S):
        rows = active.bool()
        embeddings = torch.cat([features[:, None], F.embedding(tokens[:, :s].long(), weights[-2])], 1)
        logits[rows, s] = _last_logits(embeddings[rows], weights, heads, eps)
        byte_decode_accept_reference(logits[:, s], *call, tokens, counts, next_tokens, active, s, eop)
    if verify is not None and drafts is not None:
        # A verified row ends after its first wrong draft, or after the token that follows its last draft.
        expected = torch.where(prefix_tokens >= 0, prefix_tokens, drafts)
        right = (expected == tokens).long().cumprod(1).sum(1)
        counts = torch.where(verify, torch.minimum(counts, right + 1), counts)
    return tokens, counts, logits


def byte_decode_accept_reference(
    logits: Tensor,
    prefix_tokens: Tensor,
    max_tokens: Tensor,
    rng_streams: Tensor,
    byte_offsets: Tensor,
    sampling: Tensor,
    tokens: Tensor,
    counts: Tensor,
    next_tokens: Tensor,
    active: Tensor,
    position: int,
    eop: int = EOP,
) -> None:
    """The same arguments as `byte_decode_accept`."""
    is_finite = logits.isfinite().all(1)
    counts[active.bool() & ~is_finite] = -1
    rows = (active.bool() & is_finite).nonzero().flatten()
    streams, offsets = (values[rows].view(torch.uint64).tolist() for values in (rng_streams, byte_offsets))
    positions = [offset + position for offset in offsets]
    chosen = torch.tensor(choose(logits[rows], Sampling.from_tensor(sampling), streams, positions), device="cpu").to(
        rows
    )
    prefix = prefix_tokens[rows, position].long()
    accepted = torch.where(prefix >= 0, prefix, chosen)
    tokens[rows, position], next_tokens[rows], counts[rows] = accepted.to(tokens.dtype), accepted, position + 1
    active.zero_()
    active[rows] = ((position + 1 < max_tokens[rows]) & ((prefix >= 0) | (accepted != eop))).to(active.dtype)


def _last_logits(x: Tensor, weights: list[Tensor], heads: int, eps: float) -> Tensor:
    """Logits float32 [N, V] at the last position of inputs [N, s, D]; linear layers compute in their weights' dtype."""
    *layers, ln_f_weight, ln_f_bias, wpe, _, head = weights
    x, shape = x + wpe[: x.shape[1]], x.shape[-1:]
    for i in range(0, len(layers), 12):
        ln_1_weight, ln_1_bias, attn, attn_bias, proj, proj_bias, *mlp = layers[i : i + 12]
        qkv = _linear(F.layer_norm(x, shape, ln_1_weight, ln_1_bias, eps), attn, attn_bias)
        q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + _linear(attended, proj, proj_bias)
        ln_2_weight, ln_2_bias, fc, fc_bias, mlp_proj, mlp_proj_bias = mlp
        hidden = _linear(F.layer_norm(x, shape, ln_2_weight, ln_2_bias, eps), fc, fc_bias)
        x = x + _linear(F.gelu(hidden, approximate="tanh"), mlp_proj, mlp_proj_bias)
    return _linear(F.layer_norm(x[:, -1], shape, ln_f_weight, ln_f_bias, eps), head, None)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x.to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype)).float()
