"""Initial weights with which a bGPT already repeats registers from patch to patch and reads memory by address.

An initialisation, not another model: shapes, names and arithmetic are BGPT's, every weight is trained, and none is tied
or fixed. What is left to learn is what instructions do: all of the arithmetic, and where its results go.

Dimensions of the residual stream over patches: positions, then the bits of the patch's bytes, then those of the
instruction that was read from memory; the rest is free.

Letters: D width, S bytes a patch, H heads, d = D / H.
"""

from __future__ import annotations

import math

import torch
from paper_documents import FIRST_STATE, S
from torch import Tensor

from bgpt_fast import BGPT

_PER_OCTAVE = 4
_PAIRS = 32
"""Sines and cosines of positions: of periods 2, 2·2^(1/4), …"""
_ADDRESS_PAIRS = 24
_POSITIONS = 2 * _PAIRS
_BITS = 8
_FETCHED = _POSITIONS + _BITS * S
_FREE = _FETCHED + _BITS * 4
_AMPLITUDE = 0.35
"""Of bits in the residual stream, and of positions nearly."""
_NAMES = 21
"""Values that an operation or a register has."""
_INSTRUCTION = range(2, 6)
"""Places of the instruction in a state."""


@torch.no_grad()
def copy_and_fetch(model: BGPT, seed: int, *, copies: bool, fetches: bool) -> None:
    """Changes a fresh model's weights in place.

    Args:
        model: of at least 272 channels, patches of 16 bytes, 16 heads in the byte decoder, and heads of at least 49
            channels in the patch decoder, 4 or more.
        seed: of the directions that are drawn.
        copies: whether ACC and registers start as repeated from the patch before.
        fetches: whether state k starts with the instruction at address k.
    """
    if not (copies or fetches):
        return
    generator = torch.Generator().manual_seed(seed)
    _separate(model, generator)
    _decode(model, generator, copies, fetches)
    if fetches:
        _fetch(model)


def _separate(model: BGPT, generator: torch.Generator) -> None:
    """Positions and the bits of each byte of a patch get dimensions of their own.

    Operations and operands have a random direction each beside their bits, so that "operand 1 is register C" is one
    product with the residual stream, not a conjunction of four bits.
    """
    bits = _AMPLITUDE * _bits()
    embedding = model.patch_level_decoder.patch_embedding.weight.t()  # [D, S·257]
    positions = model.patch_level_decoder.base.wpe.weight
    angles = torch.arange(float(len(positions)))[:, None] * _frequencies(_PAIRS)
    positions.zero_()
    positions[:, :_POSITIONS] = 1.2 * _AMPLITUDE * torch.stack([angles.sin(), angles.cos()], 2).flatten(1)
    embedding[:_FREE] = 0
    for s in range(S):
        at = _POSITIONS + _BITS * s
        embedding[at : at + _BITS, 257 * s : 257 * (s + 1)] = bits.t()
    for s in _INSTRUCTION:
        shape = (len(embedding) - _FREE, _NAMES)
        embedding[_FREE:, 257 * s : 257 * s + _NAMES] = 0.15 * torch.randn(shape, generator=generator)
    # Heads that have nothing to read look at the extension patch, so that must be without bits.
    for s, byte in enumerate(b"bin"):
        at = _POSITIONS + _BITS * s
        positions[0, at : at + _BITS] = -bits[byte]


def _decode(model: BGPT, generator: torch.Generator, copies: bool, fetches: bool) -> None:
    """Head s of the byte decoder reads, at place s alone, the bits that byte s starts as.

    Those of PC and of what is not to be known start unknown. The bytes start at about 0.7 of the probability: a start
    that is certain is wrong where a byte changes, and is unlearned.
    """
    D, d = model.config.hidden_size, model.config.hidden_size // S
    # Orthogonal to the vector of ones too: LayerNorm takes the mean away, which heads would read as bits.
    noise = torch.randn(D - _FREE, _BITS + S + 1, generator=generator)
    directions = torch.linalg.qr(torch.cat([torch.ones(D - _FREE, 1), noise], 1))[0][:, 1:]
    bits, places = directions[:, :_BITS], directions[:, _BITS:]
    transformer = model.byte_level_decoder.base.transformer
    wte, wpe = transformer.wte.weight, transformer.wpe.weight
    wte[:, :_FREE] = 0
    wte[:, _FREE:] = 0.3 * wte[:, _FREE:] + 0.8 / math.sqrt(_BITS) * (_bits() @ bits.t())
    wpe.zero_()
    wpe[: S + 1, _FREE:] = 6.0 * places.t()
    attention = transformer.h[0].attn
    qkv, out = attention.c_attn.weight, attention.c_proj.weight
    qkv *= 0.1
    out *= 0.1
    at_feature = torch.full((S,), -0.3)
    at_feature[0] = 1.0
    for s in range(S):
        q, k, v = d * s, D + d * s, 2 * D + d * s
        at_place = torch.full((S,), -1.0)
        at_place[s] = 1.0
        qkv[:, [q, k]] = 0
        qkv[_FREE:, q] = 4 / 3 * places[:, :S] @ at_place
        qkv[_FREE:, k] = 4 / 3 * places[:, :S] @ at_feature
        source = _FETCHED + _BITS * (s - 2) if s in _INSTRUCTION else _POSITIONS + _BITS * s
        if s > 0 and (fetches if s in _INSTRUCTION else copies):
            qkv[:, v : v + _BITS] = 0
            qkv[source : source + _BITS, v : v + _BITS] = torch.eye(_BITS)
            out[d * s : d * (s + 1)] = 0
            out[d * s : d * s + _BITS, _FREE:] = 2.0 * bits.t()


def _fetch(model: BGPT) -> None:
    """Head r of the first layer reads slot r of memory patch k / 4 where k mod 4 is r, and else the extension patch.

    The address k of a state at position p is p − 65, its memory patch is at position 1 + k / 4: a quarter of a position
    has, at four times a frequency, the same phase, so that a rotation of each pair makes the one out of the other.
    """
    D, d = model.config.hidden_size, model.config.hidden_size // model.config.patch_heads
    attention = model.patch_level_decoder.base.h[0].attn
    weight, bias, out = attention.c_attn.weight, attention.c_attn.bias, attention.c_proj.weight
    frequencies = _frequencies(_ADDRESS_PAIRS)
    octaves = 2 * _PER_OCTAVE
    for r in range(4):
        q, k, v = d * r, D + d * r, 2 * D + d * r
        weight[:, q : q + d] = 0
        weight[:, k : k + d] = 0
        shift = frequencies * (1 - (FIRST_STATE + r) / 4)
        for i in range(_ADDRESS_PAIRS):
            pair = 2 * (i + octaves)
            turn = torch.tensor([[shift[i].cos(), -shift[i].sin()], [shift[i].sin(), shift[i].cos()]])
            weight[pair : pair + 2, q + 2 * i : q + 2 * i + 2] = 1.5 * turn
            weight[2 * i : 2 * i + 2, k + 2 * i : k + 2 * i + 2] = 1.5 * torch.eye(2)
        _look_away(weight, bias, q + 2 * _ADDRESS_PAIRS, k + 2 * _ADDRESS_PAIRS, r)
        slot = _POSITIONS + _BITS * 4 * r
        weight[:, v : v + _BITS * 4] = 0
        weight[slot : slot + _BITS * 4, v : v + _BITS * 4] = torch.eye(_BITS * 4)
        out[d * r : d * (r + 1)] = 0
        out[d * r : d * r + _BITS * 4, _FETCHED:_FREE] = 0.3 * torch.eye(_BITS * 4)


def _look_away(weight: Tensor, bias: Tensor, q: int, k: int, r: int) -> None:
    """Channels q and k: a query of 4 where p − 65 mod 4 is not r and of 0 where it is, a key at position 0."""
    scale = 1.4  # of a sine behind the first LayerNorm
    angle = math.pi / 2 * (FIRST_STATE + r)
    half, quarter = 0, 2 * _PER_OCTAVE
    # cos(π (p − a)) and cos(π / 2 (p − a)) by the sum of angles.
    weight[half + 1, q] = -math.cos(2 * angle) / scale
    weight[quarter, q] = -2 * math.sin(angle) / scale
    weight[quarter + 1, q] = -2 * math.cos(angle) / scale
    bias[q] = 3.0
    weight[1 : 2 * 3 * _PER_OCTAVE : 2, k] = 3.0 / scale


def _frequencies(pairs: int) -> Tensor:
    return math.pi * 2.0 ** (-torch.arange(pairs) / _PER_OCTAVE)


def _bits() -> Tensor:
    """float32 [257, 8], ±1 for the bits of a byte; zeros for the end-of-patch token."""
    value = torch.arange(256)[:, None]
    bits = ((value >> torch.arange(_BITS)) & 1) * 2.0 - 1.0
    return torch.cat([bits, torch.zeros(1, _BITS)])
