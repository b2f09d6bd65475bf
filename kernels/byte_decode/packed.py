"""Weights packed for `byte_decode` on the CPU, and a GPT-2 that runs on new tokens with them.

Layers, norms, positions and attention run in C++ from weights that are packed once. A token's bits depend only on that
token and on the earlier tokens that it attends to: not on the rest of the batch, its index in it, the number of threads
or the instruction set.

Shape letters: T tokens, S bytes a patch, D width, F hidden width, V tokens.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bgpt_fast import _C
from bgpt_fast.config import EOP, VOCAB_SIZES
from bgpt_fast.kernels.common.checks import check_tensor

PRECISIONS = ("float32", "bfloat16", "int8")
"""How packed weights are stored: float32, summed as `invariant_linear` does; bfloat16, with inputs rounded to bfloat16
too; int8 with one scale per output, inputs in bfloat16. Keys and values are float32 with float32 weights, otherwise
bfloat16. Sums, norms and softmax are always float32."""

BYTE_DECODE_ROWS: int = _C.byte_decode_rows
"""Patches whose keys and values `byte_decode` holds in memory at the same time."""

_CPU = torch.device("cpu")


class Layer(NamedTuple):
    """The parameters of a GPT-2 layer in the order in which the C++ and CUDA code reads them.

    Linear weights are [inputs, outputs], as Conv1D stores them, for PackedTransformer; [outputs, inputs] for a GPU.
    """

    ln_1_weight: Tensor
    ln_1_bias: Tensor
    attn_weight: Tensor
    attn_bias: Tensor
    attn_proj_weight: Tensor
    attn_proj_bias: Tensor
    ln_2_weight: Tensor
    ln_2_bias: Tensor
    fc_weight: Tensor
    fc_bias: Tensor
    mlp_proj_weight: Tensor
    mlp_proj_bias: Tensor


class PackedCache:
    """Keys and values of `slots` sequences of up to `length` tokens; raises MemoryError where they do not fit."""

    def __init__(self, transformer: PackedTransformer, slots: int, length: int) -> None:
        if slots < 1 or length < 1:
            raise ValueError(f"PackedCache: expected at least 1 slot of 1 token, got {slots} of {length}")
        self.packed, self.transformer = _C.PackedCache(transformer.packed, slots, length), transformer


class PackedTransformer:
    """A packed copy of a GPT-2's layers, final norm and position embeddings.

    Args:
        layers: at least one, of any floating dtype, on the CPU.
        ln_f: weight and bias [D] of the final norm.
        wpe: position embeddings [positions, D].
        heads: number of attention heads, a divisor of D.
        eps: epsilon of the norms.
        precision: one of PRECISIONS.
        isa: the widest instruction set to use, 0 portable, 1 AVX2, 2 AVX-512; the processor's own if that is less.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or device.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        ln_f: tuple[Tensor, Tensor],
        wpe: Tensor,
        *,
        heads: int,
        eps: float,
        precision: str = "float32",
        isa: int = 2,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"byte_decode: precision: expected one of {PRECISIONS}, got {precision!r}")
        if isa not in (0, 1, 2):
            raise ValueError(f"byte_decode: isa: expected 0 (portable), 1 (AVX2) or 2 (AVX-512), got {isa!r}")
        if not layers:
            raise ValueError("byte_decode: layers: expected at least one, got none")
        wpe = _float32("wpe", wpe, ("positions", "D"))
        D, F = wpe.shape[1], layers[0].fc_bias.numel()
        if heads < 1 or D % heads:
            raise ValueError(f"byte_decode: heads: expected a divisor of the width {D}, got {heads}")
        shapes = Layer((D,), (D,), (D, 3 * D), (3 * D,), (D, D), (D,), (D,), (D,), (D, F), (F,), (F, D), (D,))  # type: ignore[arg-type]
        self.width, self.heads, self.precision, self.isa = D, heads, precision, isa
        self.packed = _C.PackedTransformer(D, heads, F, eps, PRECISIONS.index(precision))
        for layer in layers:
            rows = zip(Layer._fields, layer, shapes, strict=True)
            floats = [_float32(name, tensor, shape) for name, tensor, shape in rows]  # type: ignore[arg-type]
            self.packed.add_layer([tensor.data_ptr() for tensor in floats])
        weight, bias = (_float32(f"ln_f {name}", x, (D,)) for name, x in zip(("weight", "bias"), ln_f, strict=True))
        self.packed.finish(weight.data_ptr(), bias.data_ptr(), wpe.data_ptr(), len(wpe))

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights."""
        return self.packed.nbytes

    def features(self, x: Tensor, cache: PackedCache, slots: Tensor, positions: Tensor) -> Tensor:
        """Computes the final features of new tokens and writes their keys and values to the cache.

        Args:
            x: float32 [T, D], embeddings without position embeddings.
            cache: a cache that was made for this transformer.
            slots: int64 [T], each token's sequence.
            positions: int64 [T]. A token attends to positions 0 to its own in its slot; those must be in the cache, or
                in the same call in ascending order. A (slot, position) may appear once.

        Returns:
            float32 [T, D].

        Raises:
            TypeError, ValueError: a wrong dtype, shape or device, or another transformer's cache.
            IndexError: a slot or position outside the cache or the position embeddings.
        """
        if cache.transformer is not self:
            raise ValueError("byte_decode: cache: expected one that was made for this transformer, got another's")
        check_tensor("byte_decode", "x", x, dtypes=(torch.float32,), shape=("T", self.width), device=_CPU)
        for name, value in (("slots", slots), ("positions", positions)):
            check_tensor("byte_decode", name, value, dtypes=(torch.int64,), shape=(len(x),), device=_CPU)
        x, slots, positions = x.contiguous(), slots.contiguous(), positions.contiguous()
        y = torch.empty_like(x)
        addresses = (x.data_ptr(), slots.data_ptr(), positions.data_ptr(), len(x), y.data_ptr())
        if len(x):
            self.packed.features(cache.packed, *addresses, torch.get_num_threads(), self.isa)
        return y


class PackedByteDecoder:
    """A packed transformer with its token embeddings, which are also its head: the CPU weights of `byte_decode`.

    Args:
        transformer: with at least `patch_size` positions.
        wte: [V, D], copied; V is one of VOCAB_SIZES.
        patch_size: S.
        eop, fill: the token at which a patch ends, and the one of the positions after its end.
    """

    def __init__(
        self, transformer: PackedTransformer, wte: Tensor, patch_size: int, *, eop: int = EOP, fill: int = EOP
    ) -> None:
        wte = _float32("wte", wte, ("V", transformer.width))
        if len(wte) not in VOCAB_SIZES:
            raise ValueError(f"byte_decode: wte: expected a row for each of {VOCAB_SIZES} tokens, got {len(wte)}")
        self.transformer, self.patch_size, self.vocab_size = transformer, patch_size, len(wte)
        self.eop, self.fill = eop, fill
        self.width, self.heads = transformer.width, transformer.heads
        self.packed = _C.PackedByteDecoder(transformer.packed, wte.data_ptr(), len(wte), patch_size)
        self.handle = next(_handles)
        _decoders[self.handle] = self

    @staticmethod
    def of(handle: int) -> PackedByteDecoder:
        """The decoder with this handle, which is how an op's integer argument refers to it."""
        return _decoders[handle]


# An op accepts only tensors and numbers, so packed weights are passed as a number. A decoder is removed from the table
# when its last reference is dropped; numbers are never reused.
_handles = itertools.count(1)
_decoders: weakref.WeakValueDictionary[int, PackedByteDecoder] = weakref.WeakValueDictionary()


def _float32(name: str, tensor: Tensor, shape: tuple[int | str, ...]) -> Tensor:
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    check_tensor("byte_decode", name, tensor, dtypes=dtypes, shape=shape, device=_CPU)
    return tensor.detach().float().contiguous()
