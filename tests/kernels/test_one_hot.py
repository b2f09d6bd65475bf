"""The one-hot tiles that the embedding tables' gradients share: sums of rows by token, and by byte and position."""

from __future__ import annotations

import pytest
import torch
from support.ops import BF16, DEVICE, F16, F32, assert_accurate
from torch import Tensor

from bgpt_fast.kernels.common.one_hot import _steps_a_split, byte_row_sums, one_hot_sums

DTYPES = [F32, F16, BF16]
# Rows, slots, width, tokens: one of everything, around a step of 32 rows, slots that meet within a block, two blocks of
# columns, and so many rows that they are split.
SHAPES = [(1, 1, 1, 1), (15, 1, 16, 300), (16, 2, 40, 257), (17, 3, 24, 130), (33, 1, 257, 20), (1500, 1, 16, 20)]


def sample(rows: int, S: int, D: int, V: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows + S + D + V)
    tokens = torch.randint(0, V, (rows, S), generator=generator)
    return tokens.to(DEVICE), torch.randn(rows, D, generator=generator).to(dtype).to(DEVICE)


def plain(tokens: Tensor, dy: Tensor, V: int) -> Tensor:
    return torch.stack([torch.nn.functional.one_hot(slot, V).to(dy.dtype).t() @ dy for slot in tokens.long().unbind(1)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    tokens, dy = sample(*shape, dtype)
    V = shape[-1]
    exact = plain(tokens, dy.double(), V)
    for result in (dtype, torch.float32):
        same = plain(tokens, dy.to(result), V)
        assert_accurate([one_hot_sums(tokens, dy, V, result)], [same], [exact], ulps=1)


def test_float32_rows_are_not_rounded() -> None:
    dy = torch.tensor([[1 + 2**-23, 2**-100, 3e38]], device=DEVICE)
    sums = one_hot_sums(torch.tensor([[1]], device=DEVICE), dy, 2, torch.float32)
    assert torch.equal(sums[0, 1], dy[0])
    assert (sums[0, 0] == 0).all()


def test_tokens_out_of_range_add_nothing() -> None:
    tokens, dy = sample(20, 2, 8, 140)
    tokens[3, 0], tokens[4, 1], tokens[5, 0], tokens[6, 1] = -1, 140, 2**32 + 3, -(2**32)
    slots = [(slot[:, None], (slot >= 0) & (slot < 140)) for slot in tokens.unbind(1)]
    exact = torch.stack([plain(slot[real], dy.double()[real], 140)[0] for slot, real in slots])
    torch.testing.assert_close(one_hot_sums(tokens, dy, 140, torch.float32).double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
def test_what_is_not_finite_stays_visible_in_its_column(dtype: torch.dtype, value: float) -> None:
    tokens, dy = sample(20, 1, 8, 5, dtype)
    dy[7, 2] = value
    sums = one_hot_sums(tokens, dy, 5, dtype)
    assert not sums[0, tokens[7, 0], 2].isfinite()
    assert torch.equal(sums.isnan(), plain(tokens, dy, 5).isnan())
    assert sums[..., [0, 1, 3, 4, 5, 6, 7]].isfinite().all()


def test_large_values() -> None:
    tokens, dy = sample(40, 1, 8, 5)
    for dtype in DTYPES:
        large = (1e4 * dy).to(dtype)
        same, exact = plain(tokens, large.float(), 5), plain(tokens, large.double(), 5)
        assert_accurate([one_hot_sums(tokens, large, 5, torch.float32)], [same], [exact], ulps=1)


def test_bit_equal_over_runs() -> None:
    tokens, dy = sample(700, 1, 16, 20)
    assert _steps_a_split(22, 1, 20 * 16) < 22  # so partial sums are added
    sums = one_hot_sums(tokens, dy, 20, torch.float32)
    for _ in range(3):
        assert torch.equal(one_hot_sums(tokens, dy, 20, torch.float32), sums)
    dy[0, 0] += 1e-3  # the negative control
    assert not torch.equal(one_hot_sums(tokens, dy, 20, torch.float32), sums)


def test_any_strides_and_empty() -> None:
    tokens, dy = sample(18, 3, 12, 150)
    wide, columns = torch.zeros(18, 6, dtype=torch.int16, device=DEVICE), dy.t().contiguous().t()
    wide[:, ::2] = tokens
    expected = one_hot_sums(tokens, dy, 150, torch.float32)
    assert torch.equal(one_hot_sums(wide[:, ::2], columns, 150, torch.float32), expected)
    for rows, S, D, V in [(0, 2, 4, 150), (3, 0, 4, 150), (3, 2, 0, 150), (0, 1, 4, 0)]:
        tokens, dy = torch.zeros(rows, S, dtype=torch.int64, device=DEVICE), torch.ones(rows, D, device=DEVICE)
        sums = one_hot_sums(tokens, dy, V, torch.float32)
        assert sums.shape == (S, V, D)
        assert not sums.any()


def test_narrow_tables_of_several_slots_are_refused() -> None:
    tokens, dy = sample(4, 2, 8, 20)
    with pytest.raises(ValueError, match="at least 64 tokens a slot, got 20"):
        one_hot_sums(tokens, dy, 20, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 16, 40), (5, 3, 20), (17, 2, 260)], ids=str)
def test_bytes_and_positions(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    T, S, D = shape
    patches, _ = sample(T, S, D, 257)
    dx = torch.randn(T, S, D, generator=torch.Generator().manual_seed(1)).to(dtype).to(DEVICE)
    sums = byte_row_sums(patches.short(), dx, 257)
    tokens, rows = patches[:, :-1].reshape(-1, 1), dx[:, 1:].flatten(0, 1)
    same, exact = ([plain(tokens, rows.to(wide), 257)[0], dx.to(wide).sum(0)] for wide in (F32, torch.float64))
    assert_accurate(sums, same, exact, ulps=1)


@pytest.mark.slow
def test_splits_cover_all_rows_with_none_empty() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        steps, blocks, size = (int(2 ** (24 * torch.rand((), generator=generator))) for _ in range(3))
        share = _steps_a_split(steps, blocks, size)
        splits = -(-steps // share)
        assert 1 <= splits <= 64
        assert (splits - 1) * share < steps <= splits * share
