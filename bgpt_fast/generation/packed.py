"""The sequential bytes of a batch of patches in one call of C++, and the packed layers that it runs on.

Layers, norms, positions, keys and values, head and sampling run in C++ on the CPU, from weights that are packed once.
Every token's bits depend on that token and on what it sees alone: not on what shares the call, its place in it, the
number of threads or the instruction set. On a GPU `persistent` and `graphed` take its place.

Shape letters: T tokens, N patches, S bytes a patch, D width, L positions a slot, B slots, V = 257.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bgpt_fast import _C
from bgpt_fast.kernels.common.checks import check_tensor

PRECISIONS = ("float32", "bfloat16", "int8")
"""What a packed weight is stored in: float32, added as `invariant_linear` does; bfloat16 with its inputs rounded to
bfloat16 too; int8 with a scale for each output, inputs in bfloat16. Keys and values are float32, or bfloat16 beside
bfloat16 and int8. Sums, norms and softmax are float32 everywhere."""


BYTE_DECODE_ROWS: int = _C.byte_decode_rows
"""Patches whose keys and values `decode` holds in memory at once."""


class Layer(NamedTuple):
    """A GPT-2 layer's parameters, in the order in which the kernels have them; here linear weights are [in, out], as
    Conv1D stores them."""

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


class Decoded(NamedTuple):
    """tokens: int16 [N, S], 256 behind the end; counts: int64 [N], tokens up to the end, or -1 where logits were NaN or
    infinite; logits: float32 [N, S, V], NaN where nothing was computed, or None."""

    tokens: Tensor
    counts: Tensor
    logits: Tensor | None


class PackedCache:
    """Room for the keys and values of `slots` sequences of up to `length` tokens; MemoryError where it does not fit."""

    def __init__(self, transformer: PackedTransformer, slots: int, length: int) -> None:
        if slots < 1 or length < 1:
            raise ValueError(f"PackedCache: expected at least 1 slot of 1 token, got {slots} of {length}")
        self.packed, self.transformer = _C.PackedCache(transformer.packed, slots, length), transformer


class PackedTransformer:
    """A GPT-2's layers, last norm and position embeddings, copied and packed for `precision`.

    Args:
        layers: at least one; any floating dtype, on the CPU.
        ln_f: weight and bias [D].
        wpe: [positions, D].
        heads: a divisor of D.
        eps: of the norms.
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
        """Runs new tokens, whose keys and values enter the cache.

        Args:
            x: float32 [T, D], embeddings without their positions.
            cache: of this transformer.
            slots: int64 [T].
            positions: int64 [T]; a token sees its slot's positions up to its own, which must be in the cache or come in
                the same call, in ascending order. A (slot, position) may appear once.

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
    """A transformer with token embeddings, which are its head too.

    Args:
        transformer: with at least `patch_size` positions.
        wte: [V, D], copied.
        patch_size: S.
    """

    def __init__(self, transformer: PackedTransformer, wte: Tensor, patch_size: int) -> None:
        wte = _float32("wte", wte, (257, transformer.width))
        self.transformer, self.patch_size = transformer, patch_size
        self.packed = _C.PackedByteDecoder(transformer.packed, wte.data_ptr(), patch_size)

    def decode(
        self,
        features: Tensor,
        given: Tensor,
        room: Tensor,
        indices: Tensor,
        starts: Tensor,
        *,
        drafts: Tensor | None = None,
        verify: Tensor | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        return_logits: bool = False,
    ) -> Decoded:
        """Writes a patch a row, each until the model ends the file, the row's room is used up or the patch is full.

        Args:
            features: float32 [N, D], of the patch before each.
            given: int16 [N, S]: tokens that stand whatever the model says, then -1 from where it writes.
            room: int64 [N], 1 … S: bytes after which a row is cut.
            indices: uint64 [N], each row's random stream.
            starts: uint64 [N]: bytes of the row's file before this patch, its place in the stream.
            drafts: int16 [N, S]: guesses at what it writes where nothing is given, -1 from where there is none. They go
                through in one pass, those behind the first wrong one for nothing; they change no token.
            verify: bool [N]: rows that end behind the first wrong guess, or behind the token after the last guess.
            temperature, top_k, top_p, seed: as `generation.sampling.Sampling`.
            return_logits: also give the logits of each position that was computed.

        Raises:
            TypeError, ValueError: a wrong dtype, shape or device, or a value out of range.
        """
        check_tensor(
            "byte_decode",
            "features",
            features,
            dtypes=(torch.float32,),
            shape=("N", self.transformer.width),
            device=_CPU,
        )
        N, S = len(features), self.patch_size
        check_tensor("byte_decode", "given", given, dtypes=(torch.int16,), shape=(N, S), device=_CPU)
        check_tensor("byte_decode", "room", room, dtypes=(torch.int64,), shape=(N,), device=_CPU)
        for name, value in (("indices", indices), ("starts", starts)):
            check_tensor("byte_decode", name, value, dtypes=(torch.uint64,), shape=(N,), device=_CPU)
        guesses = given if drafts is None else drafts
        check_tensor("byte_decode", "drafts", guesses, dtypes=(torch.int16,), shape=(N, S), device=_CPU)
        for name, value in (("given", given), ("drafts", guesses)):
            if N and (int(value.min()) < -1 or int(value.max()) > 256):
                raise ValueError(
                    f"byte_decode: {name}: expected -1 to 256, got {int(value.min())} to {int(value.max())}"
                )
        if verify is not None:
            check_tensor("byte_decode", "verify", verify, dtypes=(torch.bool,), shape=(N,), device=_CPU)
            verify = verify.contiguous()
        if N and (int(room.min()) < 1 or int(room.max()) > S):
            raise ValueError(f"byte_decode: room: expected 1 to {S}, got {int(room.min())} to {int(room.max())}")
        features, given, room = features.contiguous(), given.contiguous(), room.contiguous()
        indices, starts, guesses = indices.contiguous(), starts.contiguous(), guesses.contiguous()
        tokens = torch.empty(N, S, dtype=torch.int16, device=_CPU)
        counts = torch.empty(N, dtype=torch.int64, device=_CPU)
        logits = torch.full((N, S, 257), torch.nan, dtype=torch.float32, device=_CPU) if return_logits else None
        self.packed.decode(
            features.data_ptr(),
            N,
            given.data_ptr(),
            guesses.data_ptr(),
            0 if verify is None else verify.data_ptr(),
            room.data_ptr(),
            indices.data_ptr(),
            starts.data_ptr(),
            temperature,
            top_k,
            top_p,
            seed,
            tokens.data_ptr(),
            counts.data_ptr(),
            0 if logits is None else logits.data_ptr(),
            torch.get_num_threads(),
            self.transformer.isa,
        )
        return Decoded(tokens, counts, logits)


_CPU = torch.device("cpu")


def _float32(name: str, tensor: Tensor, shape: tuple[int | str, ...]) -> Tensor:
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    check_tensor("byte_decode", name, tensor, dtypes=dtypes, shape=shape, device=_CPU)
    return tensor.detach().float().contiguous()
