"""byte_decode: decodes the bytes of a batch of patches one by one, each chosen from the byte decoder's logits.

Shape letters: N patches, S bytes a patch, D width, V tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from bgpt_fast import _C
from bgpt_fast.config import EOP, VOCAB_SIZE, VOCAB_SIZES
from bgpt_fast.kernels.byte_decode.packed import PackedByteDecoder
from bgpt_fast.kernels.byte_decode.reference import byte_decode_accept_reference, byte_decode_reference
from bgpt_fast.kernels.byte_decode.sampling import Sampling
from bgpt_fast.kernels.common.checks import check_tensor
from bgpt_fast.kernels.common.launch import on_device
from bgpt_fast.kernels.common.register import Op, register

PERSISTENT_MAX_ROWS: int = _C.persistent_rows
"""Maximum number of patches in one launch of the CUDA kernel."""


class ByteDecoderWeights(Protocol):
    """Weights of the byte decoder as plain tensors on one device."""

    @property
    def width(self) -> int:
        """D."""

    @property
    def patch_size(self) -> int:
        """S."""

    @property
    def vocab_size(self) -> int:
        """V."""

    eop: int
    """The token at which a row ends."""
    fill: int
    """The token of the positions after a row's end."""
    heads: int
    eps: float

    def tensors(self) -> list[Tensor]:
        """12 tensors per layer in the order of `Layer`, with linear weights [outputs, inputs]; the final norm's weight
        and bias; wpe [positions, D]; wte [V, D]; the head [V, D]. Linear weights and the head are float32 or bfloat16,
        the others float32; all are contiguous and aligned to 16 bytes."""


class ByteDrafter(NamedTuple):
    """A smaller byte decoder that drafts on the CPU.

    Args:
        weights: packed, of the same S.
        features: float32 [N, its D], its patch decoder's feature of the patch before each.
    """

    weights: PackedByteDecoder
    features: Tensor


class Decoded(NamedTuple):
    """What `byte_decode` returns.

    tokens: int16 [N, S]; `fill` at every position after the row's end.
    counts: int64 [N], tokens up to the row's end, including any `eop`; -1 where logits were NaN or infinite.
    logits: float32 [N, S, V], NaN where nothing was computed; None unless they were requested.
    drafted: int64 [N, 2], number of tokens that `drafter` proposed, and of those that were right; None without it.
    """

    tokens: Tensor
    counts: Tensor
    logits: Tensor | None
    drafted: Tensor | None = None


def byte_decode(
    weights: PackedByteDecoder | ByteDecoderWeights,
    features: Tensor,
    prefix_tokens: Tensor,
    max_tokens: Tensor,
    rng_streams: Tensor,
    byte_offsets: Tensor,
    sampling: Sampling | None = None,
    drafts: Tensor | None = None,
    verify: Tensor | None = None,
    *,
    drafter: ByteDrafter | None = None,
    return_logits: bool = False,
) -> Decoded:
    """Decodes one patch a row, until the model chooses `weights.eop`, `max_tokens` is reached or the patch is full.

    On the CPU everything runs in one C++ call on packed weights, and a row's bits depend only on that row: not on the
    other rows, the number of threads or the instruction set. On an NVIDIA GPU a persistent kernel decodes up to
    PERSISTENT_MAX_ROWS rows per launch, and a row's bits depend only on that row there too. Plain weights on other
    devices use the reference.

    Args:
        weights: packed on the CPU; plain tensors on any device.
        features: float32 [N, D], the patch decoder's feature of the patch before each.
        prefix_tokens: int16 [N, S]: tokens that are known, then -1 from the first position to decode.
        max_tokens: int64 [N], 1 … S: the number of tokens at which a row ends.
        rng_streams: uint64 [N], the number of each row's random stream.
        byte_offsets: uint64 [N], the patch's byte offset in its file, which is the position in the random stream.
        sampling: how bytes are chosen; None means the most likely byte.
        drafts: int16 [N, S], guesses at the tokens after the prefix, then -1; with packed weights they are verified in
            one pass. They do not change the tokens.
        verify: bool [N], True: a row ends after its first wrong draft, or after the token that follows the last draft.
        drafter: with packed weights, drafts the tokens that `drafts` does not, by the row's own random numbers, as long
            as it is confident; it does not change the tokens.
        return_logits: also return the logits.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or value, or an option that the device does not have.
    """
    device, N, S = features.device, len(features), weights.patch_size
    V = weights.vocab_size
    tokens_limits = -1, V - 1
    draft_features, draft_width = (None, 0) if drafter is None else (drafter.features, drafter.weights.width)
    for name, tensor, dtype, shape, limits in (
        ("features", features, torch.float32, ("N", weights.width), None),
        ("prefix_tokens", prefix_tokens, torch.int16, (N, S), tokens_limits),
        ("max_tokens", max_tokens, torch.int64, (N,), (1, S)),
        ("rng_streams", rng_streams, torch.uint64, (N,), None),
        ("byte_offsets", byte_offsets, torch.uint64, (N,), None),
        ("drafts", drafts, torch.int16, (N, S), tokens_limits),
        ("verify", verify, torch.bool, (N,), None),
        ("drafter.features", draft_features, torch.float32, (N, draft_width), None),
    ):
        if tensor is None:
            continue
        check_tensor("byte_decode", name, tensor, dtypes=(dtype,), shape=shape, device=device)
        # Reading values would synchronise with a GPU.
        if limits is not None and device.type == "cpu" and N:
            low, high = int(tensor.min()), int(tensor.max())
            if low < limits[0] or high > limits[1]:
                raise ValueError(f"byte_decode: {name}: expected {limits[0]} to {limits[1]}, got {low} to {high}")
    handle, tensors, eps = 0, [], 0.0
    if isinstance(weights, PackedByteDecoder):
        if device.type != "cpu":
            raise ValueError(f"byte_decode: features: expected the CPU, where the packed weights are, got {device}")
        handle = weights.handle
        if drafter is not None and (drafter.weights.patch_size, drafter.weights.vocab_size) != (S, V):
            raise ValueError(
                f"byte_decode: drafter: expected patches of {S} bytes and {V} tokens, got "
                f"{drafter.weights.patch_size} and {drafter.weights.vocab_size}"
            )
    else:
        tensors, eps = weights.tensors(), weights.eps
        if drafter is not None:
            raise ValueError("byte_decode: drafter: expected None, or packed weights, which it drafts for")
        if device.type == "cuda" and not (drafts is None and verify is None and not return_logits):
            raise ValueError("byte_decode: drafts, verify, return_logits: expected none of them on a GPU")
        if device.type == "cuda" and not persistent_supports(weights):
            raise ValueError(f"byte_decode: weights: expected a shape that the GPU kernel takes, got {_shape(weights)}")
    tokens, counts, logits, drafted = torch.ops.bgpt_fast.byte_decode(
        features,
        prefix_tokens,
        max_tokens,
        rng_streams.view(torch.int64),
        byte_offsets.view(torch.int64),
        (sampling or Sampling()).to_tensor(),
        drafts,
        verify,
        tensors,
        handle,
        weights.heads,
        eps,
        V,
        weights.eop,
        weights.fill,
        return_logits,
        draft_features,
        0 if drafter is None else drafter.weights.handle,
    )
    return Decoded(tokens, counts, logits if return_logits else None, None if drafter is None else drafted)


def persistent_supports(weights: ByteDecoderWeights) -> bool:
    """Whether the CUDA kernel supports a model of this shape, such as the paper's: V is 257; widths are multiples of 8;
    layers, positions and widths are within the limits of `csrc/byte_decode/persistent.h`."""
    return weights.vocab_size == VOCAB_SIZE and _C.persistent_supports(*_shape(weights))


def byte_decode_accept(
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
    """Chooses the tokens at one position of all active rows from their logits: one step of `byte_decode`.

    It never synchronises with the host, so a CUDA graph can capture it.

    Args:
        logits: float32 [N, V], contiguous, V one of VOCAB_SIZES.
        prefix_tokens: int16 [N, S], as `byte_decode` has it.
        max_tokens: int64 [N].
        rng_streams: int64 [N], the bits of the unsigned numbers that `byte_decode` takes.
        byte_offsets: int64 [N], as rng_streams.
        sampling: int64 [4], from `Sampling.to_tensor`.
        tokens: int16 [N, S]; the position's token is written.
        counts: int64 [N]; set to position + 1, or to -1 where logits are NaN or infinite.
        next_tokens: int64 [N]; the token, for the embedding of the next input.
        active: uint8 [N]; set to 0 where a row ends. Rows with 0 are left unchanged.
        position: 0 … S-1.
        eop: the token that ends a row.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or device.
    """
    N, S = prefix_tokens.shape
    arguments = (
        ("logits", logits, torch.float32, (N, "V")),
        ("prefix_tokens", prefix_tokens, torch.int16, (N, S)),
        ("max_tokens", max_tokens, torch.int64, (N,)),
        ("rng_streams", rng_streams, torch.int64, (N,)),
        ("byte_offsets", byte_offsets, torch.int64, (N,)),
        ("sampling", sampling, torch.int64, (4,)),
        ("tokens", tokens, torch.int16, (N, S)),
        ("counts", counts, torch.int64, (N,)),
        ("next_tokens", next_tokens, torch.int64, (N,)),
        ("active", active, torch.uint8, (N,)),
    )
    for name, tensor, dtype, shape in arguments:
        check_tensor("byte_decode_accept", name, tensor, dtypes=(dtype,), shape=shape, device=logits.device)
        if not tensor.is_contiguous():
            raise ValueError(f"byte_decode_accept: {name}: expected a contiguous tensor, got {list(tensor.stride())}")
    if not 0 <= position < S:
        raise ValueError(f"byte_decode_accept: position: expected 0 to {S - 1}, got {position}")
    if logits.shape[1] not in VOCAB_SIZES:
        raise ValueError(f"byte_decode_accept: logits: expected [N, V] with V of {VOCAB_SIZES}, got {logits.shape[1]}")
    torch.ops.bgpt_fast.byte_decode_accept(*(tensor for _, tensor, *_ in arguments), position, eop)


class _Call(NamedTuple):
    """The arguments of the registered op."""

    features: Tensor
    prefix_tokens: Tensor
    max_tokens: Tensor
    rng_streams: Tensor
    byte_offsets: Tensor
    sampling: Tensor
    drafts: Tensor | None
    verify: Tensor | None
    weights: list[Tensor]
    packed: int
    heads: int
    eps: float
    vocab_size: int
    eop: int
    fill: int
    return_logits: bool
    draft_features: Tensor | None = None
    drafter: int = 0

    def new_results(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        N, S = self.prefix_tokens.shape
        logits_shape = (N if self.return_logits else 0, S, self.vocab_size)
        return (
            self.prefix_tokens.new_full((N, S), self.fill),
            self.max_tokens.new_empty(N),
            self.features.new_full(logits_shape, torch.nan),
            self.max_tokens.new_zeros((N, 2)),
        )


def _reference(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = _Call(*arguments)
    tokens, counts, logits = byte_decode_reference(*call[:9], call.heads, call.eps, call.eop, call.fill)
    return tokens, counts, logits if call.return_logits else logits[:0].clone(), counts.new_zeros((len(counts), 2))


def _cpu(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = _Call(*arguments)
    if not call.packed:
        return _reference(*arguments)
    decoder, sampling = PackedByteDecoder.of(call.packed), Sampling.from_tensor(call.sampling)
    drafter = PackedByteDecoder.of(call.drafter) if call.drafter else None
    tokens, counts, logits, drafted = call.new_results()
    drafts = call.prefix_tokens if call.drafts is None else call.drafts
    inputs = call.features, call.prefix_tokens, drafts, call.verify, *call[2:5], call.draft_features
    contiguous = [None if tensor is None else tensor.contiguous() for tensor in inputs]
    features, prefix_tokens, draft_tokens, verify, max_tokens, rng_streams, byte_offsets, draft_features = (
        0 if tensor is None else tensor.data_ptr() for tensor in contiguous
    )
    decoder.packed.decode(
        features,
        len(call.features),
        prefix_tokens,
        draft_tokens,
        verify,
        max_tokens,
        rng_streams,
        byte_offsets,
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
        sampling.seed,
        call.eop,
        call.fill,
        tokens.data_ptr(),
        counts.data_ptr(),
        logits.data_ptr() if call.return_logits else 0,
        0 if drafter is None else drafter.packed.address,
        draft_features,
        drafted.data_ptr(),
        torch.get_num_threads(),
        decoder.transformer.isa,
    )
    return tokens, counts, logits, drafted


def _cuda(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = _Call(*arguments)
    weights, sampling = call.weights, Sampling.from_tensor(call.sampling)
    tokens, counts, logits, drafted = call.new_results()
    inputs = [tensor.contiguous() for tensor in call[:5]]
    (N, D), S = call.features.shape, call.prefix_tokens.shape[1]
    shape = D, call.heads, weights[9].numel(), S, len(weights) // 12
    workspace = call.features.new_empty(_C.persistent_workspace_size(*shape, min(N, PERSISTENT_MAX_ROWS)))
    arrived = call.max_tokens.new_empty(1, dtype=torch.int32)
    for first in range(0, N, PERSISTENT_MAX_ROWS):
        rows = slice(first, first + PERSISTENT_MAX_ROWS)
        features, prefix_tokens, max_tokens, rng_streams, byte_offsets = (t[rows].data_ptr() for t in inputs)
        with on_device(call.features):
            _C.byte_decode_cuda(
                *shape,
                call.eps,
                int(weights[-1].dtype == torch.bfloat16),
                [tensor.data_ptr() for tensor in weights],
                features,
                len(counts[rows]),
                prefix_tokens,
                max_tokens,
                rng_streams,
                byte_offsets,
                sampling.temperature,
                sampling.top_k,
                sampling.top_p,
                sampling.seed,
                tokens[rows].data_ptr(),
                counts[rows].data_ptr(),
                workspace.data_ptr(),
                arrived.data_ptr(),
                torch.cuda.current_stream(call.features.device).cuda_stream,
            )
    return tokens, counts, logits, drafted


def _accept_cpu(*arguments: Any) -> None:
    _C.byte_accept(*_accept_arguments(*arguments))


def _accept_cuda(*arguments: Any) -> None:
    logits = arguments[0]
    with on_device(logits):
        stream = torch.cuda.current_stream(logits.device).cuda_stream
        _C.byte_accept_cuda(*[*_accept_arguments(*arguments), stream])


def _accept_arguments(*arguments: Any) -> list[int]:
    *tensors, position, eop = arguments
    N, S = tensors[1].shape
    return [N, S, tensors[0].shape[1], position, eop, *(tensor.data_ptr() for tensor in tensors)]


def _shape(weights: ByteDecoderWeights) -> tuple[int, int, int, int, int]:
    """D, H, hidden width, S and layers, as the CUDA kernel has them."""
    tensors = weights.tensors()
    return weights.width, weights.heads, tensors[9].numel(), weights.patch_size, len(tensors) // 12


OPS = (
    Op(
        "byte_decode(Tensor features, Tensor prefix_tokens, Tensor max_tokens, Tensor rng_streams, Tensor byte_offsets,"
        " Tensor sampling, Tensor? drafts, Tensor? verify, Tensor[] weights, int packed, int heads, float eps,"
        " int vocab_size, int eop, int fill, bool return_logits, Tensor? draft_features=None, int drafter=0)"
        " -> (Tensor, Tensor, Tensor, Tensor)",
        reference=_reference,
        cpu=_cpu,
        cuda=_cuda,
        fake=lambda *arguments: _Call(*arguments).new_results(),
    ),
    Op(
        "byte_decode_accept(Tensor logits, Tensor prefix_tokens, Tensor max_tokens, Tensor rng_streams,"
        " Tensor byte_offsets, Tensor sampling, Tensor(a!) tokens, Tensor(b!) counts, Tensor(c!) next_tokens,"
        " Tensor(d!) active, int position, int eop) -> ()",
        reference=byte_decode_accept_reference,
        cpu=_accept_cpu,
        cuda=_accept_cuda,
        fake=lambda *arguments: None,
    ),
)
_library = register(*OPS)
