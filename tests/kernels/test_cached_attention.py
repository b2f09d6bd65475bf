"""cached_attention: equal to SDPA, and a token's bits do not depend on the other tokens of its call."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from support.ops import BF16, DEVICE, F32, F64, DrawnTests, assert_accurate, check_cases
from torch import Tensor
from torch.nn import functional as F

from bgpt_fast.kernels.cached_attention.op import cached_attention
from bgpt_fast.kernels.cached_attention.reference import cached_attention_reference
from bgpt_fast.kernels.cached_attention.triton_kernels import cached_attention_forward, compile_cases

# (H, d, L): channels and lengths of one, and around the vectors (8, 16), their blocks (32, 64) and the sums (16).
SHAPES = [(1, 1, 1), (3, 5, 7), (2, 16, 16), (2, 17, 33), (4, 64, 40), (1, 96, 130), (2, 40, 64)]

Attention = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def cache(B: int, H: int, d: int, L: int) -> tuple[Tensor, Tensor]:
    """Filled with NaN: positions that were not written must not be read."""
    return torch.full((B, H, d, L), torch.nan), torch.full((B, H, L, d), torch.nan)


def sample(H: int, d: int, lengths: list[int], seed: int = 0, spread: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """qkv, slots and positions of one sequence in each slot, packed."""
    stream = torch.Generator().manual_seed(seed)
    qkv = spread * torch.randn(sum(lengths), 3 * H * d, generator=stream)
    slots = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return qkv, slots, torch.cat([torch.arange(length) for length in lengths])


def sdpa(qkv: Tensor, H: int, slots: Tensor) -> Tensor:
    parts = []
    for slot in slots.unique():
        q, k, v = qkv[slots == slot].view(int((slots == slot).sum()), 3, H, -1).permute(1, 2, 0, 3)
        parts.append(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).flatten(1))
    return torch.cat(parts)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("isa", [0, 1, 2])
def test_equals_sdpa(shape: tuple[int, int, int], isa: int) -> None:
    H, d, L = shape
    qkv, slots, positions = sample(H, d, [L, max(1, L // 2), 1])
    y = cached_attention(qkv, *cache(3, H, d, L), slots, positions, isa=isa)
    torch.testing.assert_close(y, sdpa(qkv, H, slots), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_reference_and_writes_the_same_cache(shape: tuple[int, int, int]) -> None:
    H, d, L = shape
    qkv, slots, positions = sample(H, d, [L, max(1, L // 3)], seed=1)
    ours, plain = cache(2, H, d, L), cache(2, H, d, L)
    y = cached_attention(qkv, *ours, slots, positions)
    torch.testing.assert_close(y, cached_attention_reference(qkv, *plain, slots, positions), rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("isa", [0, 1, 2])
def test_a_slot_past_any_number_is_as_the_first(isa: int) -> None:
    """More slots than a machine word has bits, or a thread's share of tokens."""
    H, d, L, count = 2, 12, 9, 150
    qkv, slots, positions = sample(H, d, [L] * count, seed=6)
    qkv = qkv[:L].repeat(count, 1)
    keys, values = cache(count, H, d, L)
    y = cached_attention(qkv, keys, values, slots, positions, isa=isa).view(count, L, -1)
    torch.testing.assert_close(y[0], sdpa(qkv[:L], H, slots[:L]), rtol=1e-5, atol=1e-5)
    for tensor in (y, keys, values):
        assert torch.equal(tensor, tensor[:1].expand_as(tensor)), "the same tokens in each slot"
    # Token by token, as decoding calls it.
    again = cache(count, H, d, L)
    steps = [cached_attention(qkv[i::L], *again, slots[i::L], positions[i::L], isa=isa) for i in range(L)]
    assert torch.equal(torch.stack(steps, 1), y)
    assert torch.equal(again[0], keys)
    assert torch.equal(again[1], values)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_instruction_sets_agree(shape: tuple[int, int, int]) -> None:
    H, d, L = shape
    qkv, slots, positions = sample(H, d, [L, max(1, L // 2)], seed=2, spread=2.0)
    portable = cached_attention(qkv, *cache(2, H, d, L), slots, positions, isa=0)
    for isa in (1, 2):
        y = cached_attention(qkv, *cache(2, H, d, L), slots, positions, isa=isa)
        torch.testing.assert_close(y, portable, rtol=0, atol=0)


def tokens_are_independent(attention: Attention) -> bool:
    """Whether each token has the same bits in one packed call, in chunks, in another slot and beside other tokens."""
    H, d, L = 3, 24, 37
    qkv, slots, positions = sample(H, d, [37, 20, 1, 16], seed=3)
    whole = attention(qkv, *cache(4, H, d, L), slots, positions)
    same = True
    for size in (1, 2, 7, 30):
        keys, values = cache(4, H, d, L)
        parts = [
            attention(qkv[i : i + size], keys, values, slots[i : i + size], positions[i : i + size])
            for i in range(0, len(qkv), size)
        ]
        same &= torch.equal(torch.cat(parts), whole)
    order = torch.randperm(len(qkv), generator=torch.Generator().manual_seed(0))
    same &= torch.equal(attention(qkv[order], *cache(9, H, d, L), 8 - slots[order], positions[order]), whole[order])
    same &= torch.equal(attention(qkv, *cache(4, H, d, 64), slots, positions), whole)
    alone = slots == 1
    return same & torch.equal(attention(qkv[alone], *cache(2, H, d, L), slots[alone], positions[alone]), whole[alone])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("isa", [0, 1, 2])
def test_tokens_are_independent(threads: int, isa: int) -> None:
    torch.set_num_threads(threads)
    assert tokens_are_independent(lambda *arguments: cached_attention(*arguments, isa=isa))


def test_dependence_on_the_batch_is_noticed() -> None:
    def split_where_tokens_are_few(qkv: Tensor, keys: Tensor, values: Tensor, slots: Tensor, at: Tensor) -> Tensor:
        """The usual flash decoding: with few tokens, two halves of the keys are summed side by side, then joined."""
        y = cached_attention(qkv, keys, values, slots, at)
        if len(qkv) > 4:
            return y
        _, H, d, L = keys.shape
        scores = torch.einsum("thd,thdl->thl", qkv.view(-1, 3, H, d)[:, 0], keys[slots]) / d**0.5
        weights = scores.masked_fill((torch.arange(L) > at[:, None])[:, None], -torch.inf).softmax(-1)[..., None]
        terms = (weights * values[slots].nan_to_num()).view(len(qkv), H, L, d)
        return (terms[:, :, : L // 2].sum(2) + terms[:, :, L // 2 :].sum(2)).flatten(1)

    assert not tokens_are_independent(split_where_tokens_are_few)


def test_threads_change_nothing() -> None:
    H, d, L = 4, 64, 160
    qkv, slots, positions = sample(H, d, [160, 150], seed=4)
    torch.set_num_threads(1)
    expected = cached_attention(qkv, *cache(2, H, d, L), slots, positions)
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        y = cached_attention(qkv, *cache(2, H, d, L), slots, positions)
        torch.testing.assert_close(y, expected, rtol=0, atol=0)


class TestCachedAttention(DrawnTests):
    NAME = "cached_attention"

    @staticmethod
    def call(attention: Attention, qkv: Tensor, slots: Tensor, positions: Tensor, H: int, L: int) -> list[Tensor]:
        """Attention with a new cache, and the cache, of which unused positions count as 0."""
        keys, values = (tensor.to(qkv.dtype) for tensor in cache(int(slots.max()) + 1, H, qkv.shape[1] // (3 * H), L))
        y = attention(qkv, keys, values, slots, positions)
        return [y, keys.nan_to_num(), values.nan_to_num()]

    function = staticmethod(partial(call, cached_attention))
    plain = staticmethod(partial(call, cached_attention_reference))
    wrong_version = staticmethod(partial(call, lambda *a: cached_attention(*a) * 1.00001))

    def draw(self, stream: random.Random) -> list[Any]:
        H, d = stream.randint(1, 5), stream.choice([1, 5, 8, 16, 17, 31, 64])
        lengths = [stream.choice([1, 2, 7, 16, 17, 33, 65]) for _ in range(stream.randint(1, 5))]
        tokens = sample(H, d, lengths, seed=stream.randrange(2**30), spread=stream.choice([0.01, 1.0, 3.0]))
        return [*tokens, H, max(lengths) + stream.randint(0, 20)]


@pytest.mark.parametrize("spread", [1e-3, 1.0, 5.0, 100.0])
def test_error_is_at_most_twice_plain_float32(spread: float) -> None:
    H, d, L = 2, 64, 100
    qkv, slots, positions = sample(H, d, [L], seed=5, spread=spread)
    exact = sdpa(qkv.double(), H, slots)
    plain = (cached_attention_reference(qkv, *cache(1, H, d, L), slots, positions) - exact).abs().max()
    rounding = 8 * torch.finfo(torch.float32).eps * exact.abs().max()
    assert (cached_attention(qkv, *cache(1, H, d, L), slots, positions) - exact).abs().max() <= 2 * plain + rounding


def test_nan_reaches_only_the_tokens_that_attend_to_it() -> None:
    H, d, L = 2, 8, 20
    qkv, slots, positions = sample(H, d, [L, L], seed=6)
    clean = cached_attention(qkv, *cache(2, H, d, L), slots, positions)
    qkv[5] = torch.nan
    y = cached_attention(qkv, *cache(2, H, d, L), slots, positions)
    assert y[5:L].isnan().all()
    torch.testing.assert_close(torch.cat([y[:5], y[L:]]), torch.cat([clean[:5], clean[L:]]), rtol=0, atol=0)


def test_no_tokens_and_strided_tokens() -> None:
    keys, values = cache(2, 2, 8, 4)
    none = torch.zeros(0, dtype=torch.int64)
    assert cached_attention(torch.zeros(0, 48), keys, values, none, none).shape == (0, 16)
    assert keys.isnan().all()
    qkv, slots, positions = sample(2, 8, [4], seed=7)
    y = cached_attention(qkv.t().contiguous().t(), keys, values, slots, torch.stack([positions] * 2, 1)[:, 1])
    torch.testing.assert_close(y, sdpa(qkv, 2, slots), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lengths", [[0], [1], [3, 2], [5]])
def test_opcheck(lengths: list[int]) -> None:
    qkv, slots, positions = sample(2, 4, lengths)
    keys, values = (t.zero_() for t in cache(2, 2, 4, 6))
    torch.library.opcheck(torch.ops.bgpt_fast.cached_attention, (qkv, keys, values, slots, positions, 2, False))


def test_errors_name_what_is_wrong() -> None:
    H, d, L = 2, 4, 6
    qkv, slots, positions = sample(H, d, [3])
    keys, values = cache(1, H, d, L)
    with pytest.raises(TypeError, match="slots: expected dtype int64, got int32"):
        cached_attention(qkv, keys, values, slots.int(), positions)
    with pytest.raises(ValueError, match=r"values: expected shape \[1, 2, 6, 4\], got \[1, 2, 4, 6\]"):
        cached_attention(qkv, keys, keys, slots, positions)
    with pytest.raises(ValueError, match=r"qkv: expected shape \[T, 24\], got \[3, 23\]"):
        cached_attention(qkv[:, :23], keys, values, slots, positions)
    with pytest.raises(ValueError, match="keys: expected a contiguous cache"):
        cached_attention(qkv, keys.transpose(2, 3).contiguous().transpose(2, 3), values, slots, positions)
    with pytest.raises(ValueError, match="isa: expected 0"):
        cached_attention(qkv, keys, values, slots, positions, isa=-1)
    with pytest.raises(ValueError, match="call it under torch"):
        cached_attention(qkv.requires_grad_(), keys, values, slots, positions)
    qkv = qkv.detach()
    for bad in (-1, 6, 2**40):
        with pytest.raises(IndexError, match=f"positions: expected 0 to 5, the cache's size, got {bad}"):
            cached_attention(qkv, keys, values, slots, torch.tensor([0, 1, bad]))
    with pytest.raises(IndexError, match="slots: expected 0 to 0, the cache's size, got 1"):
        cached_attention(qkv, keys, values, torch.tensor([0, 0, 1]), positions)
    assert keys.isnan().all()
    torch.testing.assert_close(
        cached_attention(qkv, keys, values, slots, positions), sdpa(qkv, H, slots), rtol=1e-5, atol=1e-5
    )


# The Triton kernel, in the interpreter or on a GPU.
# (H, d, lengths): around a block of 32 positions, and channels that are no power of two.
KERNEL_SHAPES = [(1, 1, [1]), (2, 5, [3, 33]), (1, 16, [32, 1]), (1, 24, [65])]


def on_device(*tensors: Tensor) -> list[Tensor]:
    return [tensor.to(DEVICE) for tensor in tensors]


@pytest.mark.parametrize("shape", KERNEL_SHAPES, ids=str)
@pytest.mark.parametrize("cached", [F32, BF16], ids=str)
def test_the_kernels_values(shape: tuple[int, int, list[int]], cached: torch.dtype) -> None:
    H, d, lengths = shape
    qkv, slots, positions = on_device(*sample(*shape, seed=1, spread=3.0))
    qkv.view(len(qkv), 3, -1)[:, 1:] = qkv.view(len(qkv), 3, -1)[:, 1:].to(cached).float()  # as the cache rounds them

    def run(attention: Attention, dtype: torch.dtype, cache_dtype: torch.dtype) -> Tensor:
        buffers = on_device(*(t.to(cache_dtype) for t in cache(len(lengths), H, d, max(lengths) + 3)))
        return attention(qkv.to(dtype), *buffers, slots, positions)

    y = run(cached_attention_forward, F32, cached)
    plain, exact = (run(cached_attention_reference, dtype, dtype) for dtype in (F32, F64))
    assert_accurate([y], [plain], [exact])
    wrong = y.clone()
    wrong[-1, -1] += 1e-3
    with pytest.raises(AssertionError, match="error"):
        assert_accurate([wrong], [plain], [exact])


def test_the_kernels_tokens_are_independent() -> None:
    qkv, slots, positions = on_device(*sample(1, 16, [40, 7]))
    together = cached_attention_forward(qkv, *on_device(*cache(2, 1, 16, 48)), slots, positions)
    buffers = on_device(*cache(2, 1, 16, 48))
    parts = [
        cached_attention_forward(qkv[part], *buffers, slots[part], positions[part])
        for part in (slice(0, 39), slice(39, 40), slice(40, 47))
    ]
    assert torch.equal(torch.cat(parts), together)


@pytest.mark.parametrize("cached", [F32, BF16], ids=str)
def test_one_kernel_for_distinct_slots_has_the_bits_of_two(cached: torch.dtype) -> None:
    """Also in bfloat16, and in the cache that they write."""
    H, d, L, count = 2, 12, 9, 3
    qkv, slots, positions = on_device(*sample(H, d, [L] * count, seed=6))
    qkv = qkv.to(cached)
    two, one = (on_device(*(t.to(cached) for t in cache(count, H, d, L))) for _ in range(2))
    together = cached_attention_forward(qkv, *two, slots, positions)
    assert together.dtype == cached
    for i in range(L):
        y = cached_attention_forward(qkv[i::L], *one, slots[i::L], positions[i::L], distinct_slots=True)
        assert torch.equal(y, together[i::L])
    for mine, theirs in zip(one, two, strict=True):
        assert torch.equal(mine, theirs)


def test_no_tokens_are_no_launch() -> None:
    qkv, slots, positions = on_device(torch.empty(0, 12), *[torch.empty(0, dtype=torch.int64)] * 2)
    assert cached_attention_forward(qkv, *on_device(*cache(1, 1, 4, 4)), slots, positions).shape == (0, 4)


def test_compile_cases() -> None:
    check_cases(compile_cases())
