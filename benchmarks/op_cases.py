"""Every op with its inputs, reference, baselines and minimum work: the one list for all benchmarks and checks of ops.

Shape letters: T patches of the byte decoder, N = T·S rows, P patches of the patch decoder, L patches of a document,
S bytes a patch, D width, H heads, d = D / H, V = 257 tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

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
from bgpt_fast.kernels.matrix_product.op import matrix_product
from bgpt_fast.kernels.matrix_product.reference import matrix_product_reference
from bgpt_fast.kernels.patch_attention.op import patch_attention
from bgpt_fast.kernels.patch_attention.reference import patch_attention_reference
from bgpt_fast.kernels.patch_embed.op import patch_embed
from bgpt_fast.kernels.patch_embed.reference import patch_embed_reference

Function = Callable[..., Tensor | tuple[Tensor, ...]]
_EPS = 1e-5


@dataclass(frozen=True)
class Sizes:
    """The shape letters; P is a multiple of L."""

    T: int
    P: int
    L: int
    S: int
    D: int
    H: int

    @property
    def N(self) -> int:
        return self.T * self.S


PAPER = Sizes(T=4096, P=8192, L=512, S=16, D=768, H=12)
SMALL = Sizes(T=7, P=18, L=6, S=16, D=64, H=4)


class Maker:
    """Seeded inputs on a device."""

    def __init__(self, sizes: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        self.sizes, self.dtype, self.device = sizes, dtype, device
        self.wide = torch.promote_types(dtype, torch.float32)
        self._generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, std: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        """A leaf tensor from N(0, std²) that requires a gradient; `dtype` None means that of the activations."""
        values = torch.randn(shape, generator=self._generator, device=self.device) * std
        return values.to(dtype or self.dtype).requires_grad_()

    def tokens(self, *shape: int) -> Tensor:
        """int16 tokens 0…256."""
        return torch.randint(VOCAB_SIZE, shape, generator=self._generator, device=self.device).to(torch.int16)

    def master(self, *shape: int, std: float = 1.0) -> Tensor:
        """A float32 master weight, as in training with half-precision activations."""
        return self.normal(*shape, std=std, dtype=self.wide)


@dataclass(frozen=True)
class Work:
    """The minimum work of one direction: bytes of memory traffic (each input read once, each output written once) and
    floating-point operations in matrix products."""

    bytes: int
    flops: int = 0


class OpCase:
    """One op with everything that a benchmark of it needs; each case is a subclass."""

    op: Function
    name: str
    """The name of `op`; `folder` is its folder in kernels/."""
    folder: str
    inputs: Callable[[Maker], tuple[Any, ...]]
    """The arguments; the floating-point ones require gradients if the op is differentiable."""
    reference: Function
    """Takes the arguments of `op` and computes the same; so do the `baselines`, the fastest library implementations."""
    baselines: ClassVar[dict[str, Function]]
    work: Callable[[Sizes, int], tuple[Work, Work]]
    """Work of forward and backward, given the bytes per activation element; 0 bytes where there is no backward."""
    on_gpu = True
    """False for an op whose only fast path is on the CPU."""
    own_kernel = True
    """False where a library kernel is used on a GPU: its gradients may differ in their last bits from call to call,
    and in float32 it may not be capturable in a CUDA graph."""
    differentiable = True
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)
    """Supported dtypes of the activations."""

    def __init_subclass__(cls) -> None:
        cls.name, cls.folder = cls.op.__name__, cls.op.__module__.split(".")[-2]


def _rows(sizes: Sizes, element: int, columns: int = 1) -> int:
    """Bytes of the byte decoder's activations [N, columns·D]."""
    return sizes.N * sizes.D * columns * element


def _torch_layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias.to(x.dtype), _EPS)


def _torch_add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    total = x + residual
    return _torch_layer_norm(total, weight, bias), total


class _LayerNorm(OpCase):
    op = staticmethod(layer_norm)
    baselines: ClassVar = {"F.layer_norm": _torch_layer_norm}

    def inputs(self, make: Maker) -> tuple[Any, ...]:
        return make.normal(make.sizes.N, make.sizes.D), make.master(make.sizes.D), make.master(make.sizes.D)

    def reference(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return layer_norm_reference(x, weight, bias, _EPS, x.dtype)[0]

    def work(self, sizes: Sizes, element: int) -> tuple[Work, Work]:
        return Work(_rows(sizes, element, 2)), Work(_rows(sizes, element, 3))


class _AddLayerNorm(OpCase):
    op = staticmethod(add_layer_norm)
    baselines: ClassVar = {"add, F.layer_norm": _torch_add_layer_norm}

    def inputs(self, make: Maker) -> tuple[Any, ...]:
        return make.normal(make.sizes.N, make.sizes.D), *_LayerNorm().inputs(make)

    def reference(self, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        total = add_reference(x, residual, 0.0, 0)
        return _LayerNorm().reference(total, weight, bias), total

    def work(self, sizes: Sizes, element: int) -> tuple[Work, Work]:
        return Work(_rows(sizes, element, 4)), Work(_rows(sizes, element, 4))


class _BiasGelu(OpCase):
    op, reference = staticmethod(bias_gelu), staticmethod(bias_gelu_reference)
    baselines: ClassVar = {"F.gelu(x + bias)": lambda x, bias: F.gelu(x + bias.to(x.dtype), approximate="tanh")}

    def inputs(self, make: Maker) -> tuple[Any, ...]:
        return make.normal(make.sizes.N, 4 * make.sizes.D), make.master(4 * make.sizes.D)

    def work(self, sizes: Sizes, element: int) -> tuple[Work, Work]:
        return Work(_rows(sizes, element, 8)), Work(_rows(sizes, element, 12))


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of [B, L, H, d] each."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


class _ByteAttention(OpCase):
    op, reference = staticmethod(byte_attention), staticmethod(byte_attention_reference)
    baselines: ClassVar = {"SDPA": lambda qkv: _sdpa(*qkv.unbind(2))}

    def inputs(self, make: Maker) -> tuple[Any, ...]:
        sizes = make.sizes
        return (make.normal(sizes.T, sizes.S, 3, sizes.H, sizes.D // sizes.H),)

    def work(self, sizes: Sizes, element: int) -> tuple[Work, Work]:
        flops = 4 * sizes.N * (sizes.S + 1) // 2 * sizes.D
        return Work(_rows(sizes, element, 4), flops), Work(_rows(sizes, element, 7), 5 * flops // 2)


def _projection(x: Tensor, weight: Tensor, bias: Tensor, heads: int) -> Tensor:
    qkv = F.linear(x, weight.t().to(x.dtype), bias.to(x.dtype))
    return qkv.view(*x.shape[:2], 3, heads, x.shape[2] // heads)


class _ByteAttentionProjected(OpCase):
    """For inference only, so without gradients."""

    op = staticmethod(byte_attention_projected)
    baselines: ClassVar = {"F.linear, SDPA": lambda *arguments: _sdpa(*_projection(*arguments).unbind(2))}
    differentiable = False

    def inputs(self, make: Maker) -> tuple[Any, ...]:
        T, S, D = make.sizes.T, make.sizes.S, make.sizes.D
        tensors = (make.normal(T, S, D), make.normal(D, 3 * D, std=1 / math.sqrt(D)), make.normal(3 * D))
        return *(tensor.detach() for tensor in tensors), make.sizes.H

    def reference(self, *arguments: Any) -> Tensor:
        return byte_attention_reference(_projection(*arguments))

    def work(self, sizes: Sizes, element: int) -> tuple[Work, Work]:
        product, attention = 6 * sizes.N * sizes.D**2, _ByteAttention().work(sizes, element)[0].flops
        return Work(2 * _rows(sizes, element) + 3 * sizes.D**2 * element, product + attention), Work(0)


def _sdpa_documents(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, length: int) -> Tensor:
    return _sdpa(*(t.view(-1, length, *t.shape[1:]) for t in (q, k, v))).reshape(q.shape)


class _PatchAttention(OpCase):
    op = staticmethod(patch_attention)
    baselines: ClassVar = {"SDPA of equal lengths": _sdpa_documents}
    own_kernel = False

    def inputs(self, make: Maker) -> tuple[Any, ...]:
        sizes = make.sizes
        q, k, v = (make.normal(sizes.P, sizes.H, sizes.D // sizes.H) for _ in range(3))
        return q, k, v, torch.arange(0, sizes.P + 1, sizes.L, dtype=torch.int32, device=make.device), sizes.L

    def reference(self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, length: int) -> Tensor:
        return patch_attention_reference(q, k, v, cu_seqlens)

    def work(self, sizes: Sizes, element: int) -> tuple[Work, Work]:
        tensor = sizes.P * sizes.D * element
        flops = 4 * sizes.P * (sizes.L + 1) // 2 * sizes.D
        return Work(4 * tensor, flops), Work(8 * tensor, 5 * flops // 2)  # five products, the forward has two


class _LinearCrossEntropy(OpCase):
    op = staticmethod(linear_cross_entropy)
    baselines: ClassVar = {
        "F.cross_entropy(F.linear)": lambda x, weight, targets: F.cross_entropy(
            F.linear(x, weight).float(), targets.long(), reduction="none"
        )
    }
    if hasattr(F, "linear_cross_entropy"):  # newer than torch 2.11
        baselines["F.linear_cross_entropy"] = lambda x, weight, targets: F.linear_cross_entropy(
            x, weight, targets.long(), reduction="none"
        )

    def inputs(self, make: Maker) -> tuple[Any, ...]:
        sizes = make.sizes
        return make.normal(sizes.N, sizes.D), make.normal(VOCAB_SIZE, sizes.D, std=0.05), make.tokens(sizes.N)

    def reference(self, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return linear_cross_entropy_reference(x, weight, targets)[0]

    def work(self, sizes: Sizes, element: int) -> tuple[Work, Work]:
        rows, weight, nats = _rows(sizes, element), VOCAB_SIZE * sizes.D * element, 4 * sizes.N
        product = 2 * sizes.N * VOCAB_SIZE * sizes.D
        return Work(rows + weight + nats, product), Work(2 * rows + 2 * weight + nats, 2 * product)


def _embedding_bag(patches: Tensor, weight: Tensor, bias: Tensor, position_weight: Tensor, positions: Tensor) -> Tensor:
    slots = VOCAB_SIZE * torch.arange(patches.shape[1], device=patches.device)
    return F.embedding_bag(patches + slots, weight, mode="sum") + bias + F.embedding(positions, position_weight)


class _PatchEmbed(OpCase):
    op, reference = staticmethod(patch_embed), staticmethod(patch_embed_reference)
    baselines: ClassVar = {"F.embedding_bag": _embedding_bag}

    def inputs(self, make: Maker) -> tuple[Any, ...]:
        sizes = make.sizes
        weight = make.normal(sizes.S * VOCAB_SIZE, sizes.D, std=0.1)
        positions = torch.arange(sizes.P, device=make.device) % sizes.L
        return make.tokens(sizes.P, sizes.S), weight, make.normal(sizes.D), make.normal(sizes.L, sizes.D), positions

    def work(self, sizes: Sizes, element: int) -> tuple[Work, Work]:
        tables = (sizes.S * VOCAB_SIZE + sizes.L + 1) * sizes.D * element
        total = tables + sizes.P * (sizes.D * element + 2 * sizes.S + 8)
        return Work(total), Work(total)  # a gradient row and the tokens in, the tables' gradients out


def _torch_byte_embed(features: Tensor, patches: Tensor, wte: Tensor, wpe: Tensor) -> Tensor:
    wte, wpe = wte.to(features.dtype), wpe.to(features.dtype)
    rows = torch.cat([features[:, None], F.embedding(patches[:, :-1].long(), wte)], dim=1)
    return rows + wpe[: patches.shape[1]]


class _ByteEmbed(OpCase):
    op, reference = staticmethod(byte_embed), staticmethod(byte_embed_reference)
    baselines: ClassVar = {"embedding, cat, add": _torch_byte_embed}

    def inputs(self, make: Maker) -> tuple[Any, ...]:
        sizes = make.sizes
        features, patches = make.normal(sizes.T, sizes.D), make.tokens(sizes.T, sizes.S)
        return features, patches, make.master(VOCAB_SIZE, sizes.D), make.master(sizes.S + 1, sizes.D)

    def work(self, sizes: Sizes, element: int) -> tuple[Work, Work]:
        tables = (VOCAB_SIZE + sizes.S) * sizes.D * max(element, 4)
        total = sizes.T * sizes.D * element + tables + 2 * sizes.N + _rows(sizes, element)
        return Work(total), Work(total)


def _sdpa_cached(qkv: Tensor, keys: Tensor, values: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
    B, H, d, _ = keys.shape
    q, k, v = qkv.view(B, 3, H, d).unbind(1)
    keys[slots, :, :, positions] = k
    values[slots, :, positions] = v
    return F.scaled_dot_product_attention(q[:, :, None], keys.transpose(2, 3), values)[:, :, 0].reshape(B, H * d)


class _CachedAttention(OpCase):
    """One new token in each of 64 slots, whose caches it fills."""

    op, reference = staticmethod(cached_attention), staticmethod(cached_attention_reference)
    baselines: ClassVar = {"SDPA": _sdpa_cached}
    on_gpu = differentiable = False
    dtypes = (torch.float32,)

    def inputs(self, make: Maker) -> tuple[Any, ...]:
        sizes, slots = make.sizes, min(64, make.sizes.T)
        shape = (slots, sizes.H, sizes.D // sizes.H, sizes.L)
        qkv, keys, values = (make.normal(*shape).detach() for shape in ((slots, 3 * sizes.D), shape, shape))
        indices = torch.arange(slots, device=make.device)
        values = values.transpose(2, 3).contiguous()
        return qkv, keys, values, indices, torch.full_like(indices, sizes.L - 1)

    def work(self, sizes: Sizes, element: int) -> tuple[Work, Work]:
        slots = min(64, sizes.T)
        return Work(4 * (2 * slots * sizes.L * sizes.D + 4 * slots * sizes.D), 4 * slots * sizes.L * sizes.D), Work(0)


class _MatrixProduct(OpCase):
    op = staticmethod(matrix_product)
    on_gpu = False
    dtypes = (torch.float32,)
    reference = staticmethod(matrix_product_reference)
    baselines: ClassVar = {"torch.addmm": lambda a, b, bias: torch.addmm(bias, a, b)}

    def inputs(self, make: Maker) -> tuple[Any, ...]:
        D = make.sizes.D
        return make.normal(make.sizes.N, D), make.normal(D, 3 * D, std=D**-0.5), make.normal(3 * D)

    def work(self, sizes: Sizes, element: int) -> tuple[Work, Work]:
        rows, weight = _rows(sizes, element), 3 * sizes.D**2 * element
        product = 6 * sizes.N * sizes.D**2
        return Work(4 * rows + weight, product), Work(5 * rows + 2 * weight, 2 * product)


CASES: tuple[OpCase, ...] = (
    _LayerNorm(),
    _AddLayerNorm(),
    _BiasGelu(),
    _ByteAttention(),
    _ByteAttentionProjected(),
    _PatchAttention(),
    _LinearCrossEntropy(),
    _PatchEmbed(),
    _ByteEmbed(),
    _CachedAttention(),
    _MatrixProduct(),
)


def case_of(name: str) -> OpCase:
    """The case of that name."""
    return next(case for case in CASES if case.name == name)
