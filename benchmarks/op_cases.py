"""Every op with its inputs, its reference, its peers and its least work: the one list behind all benchmarks of ops.

Shape letters: T patches of the byte decoder, N = T·S rows, P patches of the patch decoder, L patches of a document,
S bytes a patch, D width, H heads, d = D / H, V = 257 tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bgpt_fast.config import VOCAB_SIZE
from bgpt_fast.kernels.bias_gelu.op import bias_gelu
from bgpt_fast.kernels.bias_gelu.reference import bias_gelu_reference
from bgpt_fast.kernels.byte_attention.op import byte_attention, byte_attention_projected
from bgpt_fast.kernels.byte_attention.reference import byte_attention_reference
from bgpt_fast.kernels.byte_embed.op import byte_embed
from bgpt_fast.kernels.byte_embed.reference import byte_embed_reference
from bgpt_fast.kernels.cached_attention.op import cached_attention
from bgpt_fast.kernels.cached_attention.reference import cached_attention_reference
from bgpt_fast.kernels.layer_norm.op import add_layer_norm, layer_norm
from bgpt_fast.kernels.layer_norm.reference import add_reference, layer_norm_reference
from bgpt_fast.kernels.linear_cross_entropy.op import linear_cross_entropy
from bgpt_fast.kernels.linear_cross_entropy.reference import linear_cross_entropy_reference
from bgpt_fast.kernels.patch_attention.op import patch_attention
from bgpt_fast.kernels.patch_attention.reference import patch_attention_reference
from bgpt_fast.kernels.patch_embed.op import patch_embed
from bgpt_fast.kernels.patch_embed.reference import patch_embed_reference

Function = Callable[..., Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True)
class Sizes:
    """The shape letters; P is a multiple of L."""

    T: int
    P: int
    L: int
    S: int
    D: int
    H: int


PAPER = Sizes(T=4096, P=8192, L=512, S=16, D=768, H=12)
SMALL = Sizes(T=7, P=18, L=6, S=16, D=64, H=4)


class Maker:
    """Seeded inputs on a device."""

    def __init__(self, sizes: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        self.sizes, self.dtype, self.device = sizes, dtype, device
        self._generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, std: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        """A leaf of N(0, std²) that wants a gradient, in the activations' dtype unless another is given."""
        values = torch.randn(shape, generator=self._generator, device=self.device) * std
        return values.to(dtype or self.dtype).requires_grad_()

    def tokens(self, *shape: int) -> Tensor:
        """int16 tokens 0…256."""
        drawn = torch.randint(VOCAB_SIZE, shape, generator=self._generator, device=self.device)
        return drawn.to(torch.int16)

    def vector(self, std: float = 1.0) -> Tensor:
        """A float32 [D] master weight, as training keeps them beside half-precision activations."""
        return self.normal(self.sizes.D, std=std, dtype=torch.promote_types(self.dtype, torch.float32))


@dataclass(frozen=True)
class Work:
    """The least that one direction must do: bytes through memory (each input read once, each output written once) and
    floating-point operations in matrix products."""

    bytes: int
    flops: int = 0


@dataclass(frozen=True)
class OpCase:
    """One op at work.

    Args:
        name: of the op's function.
        room: its folder in kernels/.
        inputs: makes the arguments; the floating-point ones want gradients.
        op, reference: take those arguments and compute the same.
        peers: the best of the libraries, likewise.
        work: (sizes, bytes of an activation element) → forward and backward.
        on_gpu: False for what only the CPU has a fast path for.
        own_kernel: False where a library's kernel serves on a GPU, which promises neither gradients of the same bits at
            every call nor, in float32, that a CUDA graph can hold it.
        differentiable: whether there is a backward; where the inputs want no gradient there is none to run.
        dtypes: of the activations.
    """

    name: str
    room: str
    inputs: Callable[[Maker], tuple[object, ...]]
    op: Function
    reference: Function
    peers: Mapping[str, Function]
    work: Callable[[Sizes, int], tuple[Work, Work]]
    on_gpu: bool = True
    own_kernel: bool = True
    differentiable: bool = True
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)


def _rows(sizes: Sizes, element: int, columns: int = 1) -> int:
    """Bytes of the byte decoder's activations [N, columns·D]."""
    return sizes.T * sizes.S * sizes.D * columns * element


_EPS = 1e-5


def _layer_norm_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return layer_norm_reference(x, weight, bias, _EPS, x.dtype)[0]


def _add_layer_norm_reference(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    total = add_reference(x, residual, 0.0, 0)
    return _layer_norm_reference(total, weight, bias), total


def _layer_norm_peer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias.to(x.dtype), _EPS)


def _add_layer_norm_peer(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    total = x + residual
    return _layer_norm_peer(total, weight, bias), total


def _gelu_peer(x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias.to(x.dtype), approximate="tanh")


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of [B, L, H, d] each."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def _projection(x: Tensor, weight: Tensor, bias: Tensor, heads: int) -> Tensor:
    qkv = F.linear(x, weight.t().to(x.dtype), bias.to(x.dtype))
    return qkv.view(*x.shape[:2], 3, heads, x.shape[2] // heads)


def _documents(maker: Maker) -> tuple[object, ...]:
    sizes = maker.sizes
    q, k, v = (maker.normal(sizes.P, sizes.H, sizes.D // sizes.H) for _ in range(3))
    starts = torch.arange(0, sizes.P + 1, sizes.L, dtype=torch.int32, device=maker.device)
    return q, k, v, starts, sizes.L


def _sdpa_documents(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, length: int) -> Tensor:
    return _sdpa(*(t.view(-1, length, *t.shape[1:]) for t in (q, k, v))).reshape(q.shape)


def _patch_attention_work(sizes: Sizes, element: int) -> tuple[Work, Work]:
    tensor = sizes.P * sizes.D * element
    flops = 4 * sizes.P * (sizes.L + 1) // 2 * sizes.D
    return Work(4 * tensor, flops), Work(8 * tensor, 5 * flops // 2)  # five products where the forward has two


def _byte_attention_flops(sizes: Sizes) -> int:
    return 4 * sizes.T * sizes.S * (sizes.S + 1) // 2 * sizes.D


def _projected_inputs(maker: Maker) -> tuple[object, ...]:
    """Without gradients, since the fused kernel is for inference."""
    T, S, D = maker.sizes.T, maker.sizes.S, maker.sizes.D
    tensors = (maker.normal(T, S, D), maker.normal(D, 3 * D, std=1 / math.sqrt(D)), maker.normal(3 * D))
    return *(tensor.detach() for tensor in tensors), maker.sizes.H


def _projected_work(sizes: Sizes, element: int) -> tuple[Work, Work]:
    rows, weight = _rows(sizes, element), 3 * sizes.D**2 * element
    product = 2 * sizes.T * sizes.S * 3 * sizes.D**2
    return Work(2 * rows + weight, product + _byte_attention_flops(sizes)), Work(0)


def _head_work(sizes: Sizes, element: int) -> tuple[Work, Work]:
    rows, weight = _rows(sizes, element), VOCAB_SIZE * sizes.D * element
    nats = 4 * sizes.T * sizes.S
    product = 2 * sizes.T * sizes.S * VOCAB_SIZE * sizes.D
    return Work(rows + weight + nats, product), Work(2 * rows + 2 * weight + nats, 2 * product)


def _patch_embed_inputs(maker: Maker) -> tuple[object, ...]:
    sizes = maker.sizes
    weight = maker.normal(sizes.S * VOCAB_SIZE, sizes.D, std=0.1)
    positions = torch.arange(sizes.P, device=maker.device) % sizes.L
    return maker.tokens(sizes.P, sizes.S), weight, maker.normal(sizes.D), maker.normal(sizes.L, sizes.D), positions


def _embedding_bag(patches: Tensor, weight: Tensor, bias: Tensor, position_weight: Tensor, positions: Tensor) -> Tensor:
    slots = VOCAB_SIZE * torch.arange(patches.shape[1], device=patches.device)
    return F.embedding_bag(patches + slots, weight, mode="sum") + bias + F.embedding(positions, position_weight)


def _patch_embed_work(sizes: Sizes, element: int) -> tuple[Work, Work]:
    tables = (sizes.S * VOCAB_SIZE + sizes.L + 1) * sizes.D * element
    total = tables + sizes.P * (sizes.D * element + 2 * sizes.S + 8)
    return Work(total), Work(total)  # a gradient row and the tokens in, the tables' gradients out


def _byte_embed_inputs(maker: Maker) -> tuple[object, ...]:
    sizes = maker.sizes
    features, patches = maker.normal(sizes.T, sizes.D), maker.tokens(sizes.T, sizes.S)
    wide = torch.promote_types(maker.dtype, torch.float32)
    tables = (maker.normal(rows, sizes.D, dtype=wide) for rows in (VOCAB_SIZE, sizes.S + 1))
    return features, patches, *tables


def _byte_embed_peer(features: Tensor, patches: Tensor, wte: Tensor, wpe: Tensor) -> Tensor:
    wte, wpe = wte.to(features.dtype), wpe.to(features.dtype)
    rows = torch.cat([features[:, None], F.embedding(patches[:, :-1].long(), wte)], dim=1)
    return rows + wpe[: patches.shape[1]]


def _byte_embed_work(sizes: Sizes, element: int) -> tuple[Work, Work]:
    rows, features = _rows(sizes, element), sizes.T * sizes.D * element
    tables = (VOCAB_SIZE + sizes.S) * sizes.D * max(element, 4)
    total = features + tables + 2 * sizes.T * sizes.S + rows
    return Work(total), Work(total)


def _cache_inputs(maker: Maker) -> tuple[object, ...]:
    """One new token in each of 64 slots that are full but for it."""
    sizes, slots = maker.sizes, min(64, maker.sizes.T)
    shape = (slots, sizes.H, sizes.D // sizes.H, sizes.L)
    qkv = maker.normal(slots, 3 * sizes.D, dtype=torch.float32).detach()
    keys = maker.normal(*shape, dtype=torch.float32).detach()
    values = maker.normal(*shape, dtype=torch.float32).detach().transpose(2, 3).contiguous()
    places = torch.arange(slots, device=maker.device)
    return qkv, keys, values, places, torch.full_like(places, sizes.L - 1)


def _cache_peer(qkv: Tensor, keys: Tensor, values: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
    B, H, d, _ = keys.shape
    q, k, v = qkv.view(B, 3, H, d).unbind(1)
    keys[slots, :, :, positions] = k
    values[slots, :, positions] = v
    return F.scaled_dot_product_attention(q[:, :, None], keys.transpose(2, 3), values)[:, :, 0].reshape(B, H * d)


def _cache_work(sizes: Sizes, element: int) -> tuple[Work, Work]:
    slots = min(64, sizes.T)
    return Work(4 * (2 * slots * sizes.L * sizes.D + 4 * slots * sizes.D), 4 * slots * sizes.L * sizes.D), Work(0)


def _cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(x, weight).float(), targets.long(), reduction="none")


_HEAD_PEERS: dict[str, Function] = {"F.cross_entropy(F.linear)": _cross_entropy}
if hasattr(F, "linear_cross_entropy"):  # newer than torch 2.11
    _HEAD_PEERS["F.linear_cross_entropy"] = lambda x, weight, targets: F.linear_cross_entropy(
        x, weight, targets.long(), reduction="none"
    )

CASES = (
    OpCase(
        name="layer_norm",
        room="layer_norm",
        inputs=lambda make: (make.normal(make.sizes.T * make.sizes.S, make.sizes.D), make.vector(), make.vector()),
        op=layer_norm,
        reference=_layer_norm_reference,
        peers={"F.layer_norm": _layer_norm_peer},
        work=lambda sizes, element: (Work(_rows(sizes, element, 2)), Work(_rows(sizes, element, 3))),
    ),
    OpCase(
        name="add_layer_norm",
        room="layer_norm",
        inputs=lambda make: (
            *(make.normal(make.sizes.T * make.sizes.S, make.sizes.D) for _ in range(2)),
            make.vector(),
            make.vector(),
        ),
        op=add_layer_norm,
        reference=_add_layer_norm_reference,
        peers={"add, F.layer_norm": _add_layer_norm_peer},
        work=lambda sizes, element: (Work(_rows(sizes, element, 4)), Work(_rows(sizes, element, 4))),
    ),
    OpCase(
        name="bias_gelu",
        room="bias_gelu",
        inputs=lambda make: (
            make.normal(make.sizes.T * make.sizes.S, 4 * make.sizes.D),
            make.normal(4 * make.sizes.D, dtype=torch.promote_types(make.dtype, torch.float32)),
        ),
        op=bias_gelu,
        reference=bias_gelu_reference,
        peers={"F.gelu(x + bias)": _gelu_peer},
        work=lambda sizes, element: (Work(_rows(sizes, element, 8)), Work(_rows(sizes, element, 12))),
    ),
    OpCase(
        name="byte_attention",
        room="byte_attention",
        inputs=lambda make: (make.normal(make.sizes.T, make.sizes.S, 3, make.sizes.H, make.sizes.D // make.sizes.H),),
        op=byte_attention,
        reference=byte_attention_reference,
        peers={"SDPA": lambda qkv: _sdpa(*qkv.unbind(2))},
        work=lambda sizes, element: (
            Work(_rows(sizes, element, 4), _byte_attention_flops(sizes)),
            Work(_rows(sizes, element, 7), 5 * _byte_attention_flops(sizes) // 2),
        ),
    ),
    OpCase(
        name="byte_attention_projected",
        room="byte_attention",
        inputs=_projected_inputs,
        op=byte_attention_projected,
        reference=lambda *arguments: byte_attention_reference(_projection(*arguments)),
        peers={"F.linear, SDPA": lambda *arguments: _sdpa(*_projection(*arguments).unbind(2))},
        work=_projected_work,
        differentiable=False,
    ),
    OpCase(
        name="patch_attention",
        room="patch_attention",
        inputs=_documents,
        op=patch_attention,
        reference=lambda q, k, v, cu_seqlens, length: patch_attention_reference(q, k, v, cu_seqlens),
        peers={"SDPA of equal lengths": _sdpa_documents},
        work=_patch_attention_work,
        own_kernel=False,
    ),
    OpCase(
        name="linear_cross_entropy",
        room="linear_cross_entropy",
        inputs=lambda make: (
            make.normal(make.sizes.T * make.sizes.S, make.sizes.D),
            make.normal(VOCAB_SIZE, make.sizes.D, std=0.05),
            make.tokens(make.sizes.T * make.sizes.S),
        ),
        op=linear_cross_entropy,
        reference=lambda *arguments: linear_cross_entropy_reference(*arguments)[0],
        peers=_HEAD_PEERS,
        work=_head_work,
    ),
    OpCase(
        name="patch_embed",
        room="patch_embed",
        inputs=_patch_embed_inputs,
        op=patch_embed,
        reference=patch_embed_reference,
        peers={"F.embedding_bag": _embedding_bag},
        work=_patch_embed_work,
    ),
    OpCase(
        name="byte_embed",
        room="byte_embed",
        inputs=_byte_embed_inputs,
        op=byte_embed,
        reference=byte_embed_reference,
        peers={"embedding, cat, add": _byte_embed_peer},
        work=_byte_embed_work,
    ),
    OpCase(
        name="cached_attention",
        room="cached_attention",
        inputs=_cache_inputs,
        op=cached_attention,
        reference=cached_attention_reference,
        peers={"SDPA": _cache_peer},
        work=_cache_work,
        on_gpu=False,
        differentiable=False,
        dtypes=(torch.float32,),
    ),
)


def case_of(name: str) -> OpCase:
    """The case of that name."""
    return next(case for case in CASES if case.name == name)
