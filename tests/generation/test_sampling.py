"""Choosing bytes: the right distribution, filters in the released order, independent random streams."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from bgpt_fast.kernels.byte_decode.sampling import Sampling, choose, philox, probabilities, uniform

LOGITS = torch.tensor([[0.3, 2.0, -1.0, 1.2, 0.9, -3.0]])


def random_logits(rows: int, seed: int = 0, width: int = 257) -> Tensor:
    return 3 * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def released(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """The released code's order in plain numpy: softmax, top-k, renormalise, top-p, renormalise, temperature."""
    rows = []
    for row in logits.double().numpy():
        p = np.exp(row - row.max())
        p /= p.sum()
        order = np.argsort(-p, kind="stable")
        if top_k:
            p[order[top_k:]] = 0
            p /= p.sum()
        if top_p < 1:
            over = np.cumsum(p[order]) > top_p
            p[order[1:][over[:-1]]] = 0
            p /= p.sum()
        p = np.where(p > 0, p, 0) ** (1 / temperature)
        rows.append(p / p.sum())
    return torch.from_numpy(np.array(rows))


@pytest.mark.parametrize("temperature", [1.0, 0.5, 1.7])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 1.0), (0, 0.7), (5, 1.0), (5, 0.7), (1, 0.3), (300, 2.0), (256, 0.999)]
)
def test_probabilities_are_the_released_ones(temperature: float, top_k: int, top_p: float) -> None:
    logits = random_logits(20)
    ours = probabilities(logits, Sampling(temperature, top_k, top_p))
    torch.testing.assert_close(ours, released(logits, temperature, top_k, top_p), rtol=1e-9, atol=1e-12)


def test_another_order_of_filters_gives_other_tokens() -> None:
    """Negative control: top-p before top-k, or after the temperature, would keep other tokens."""
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    remaining = probabilities(logits, Sampling(1.0, 2, 0.5))[0] > 0
    assert remaining.tolist() == [
        True,
        False,
        False,
        False,
    ]  # 0.4 is 0.57 of what top-k leaves; of all, 0.4 is not over 0.5
    remaining = probabilities(logits, Sampling(0.1, 0, 0.5))[0] > 0
    assert remaining.tolist() == [True, True, False, False]  # at temperature 0.1 the first alone would be over 0.5


@pytest.mark.parametrize(
    ("top_p", "remaining"),
    [(0.3, 1), (0.49, 1), (0.51, 2), (0.74, 2), (0.76, 3), (0.87, 3), (0.88, 4), (0.99, 4), (1.0, 4), (7.0, 4)],
)
def test_top_p_keeps_the_token_that_crosses(top_p: float, remaining: int) -> None:
    """The tokens' sums are 0.5, 0.75, 0.875 and 1."""
    logits = torch.tensor([[0.125, 0.5, 0.125, 0.25]]).log()
    likeliest = [1, 3, 0, 2]
    positive = probabilities(logits, Sampling(1.0, 0, top_p))[0] > 0
    assert positive[likeliest].tolist() == [True] * remaining + [False] * (4 - remaining)


def test_top_k_keeps_the_lowest_of_equal_tokens() -> None:
    for k in (1, 2, 3):
        p = probabilities(torch.zeros(2, 5), Sampling(1.0, k))
        assert p.tolist() == [[1 / k] * k + [0.0] * (5 - k)] * 2
    assert probabilities(torch.zeros(1, 5), Sampling(1.0, 0)).tolist() == [[0.2] * 5]


def test_greedy_takes_the_likeliest_and_the_lowest_of_equals() -> None:
    logits = random_logits(50)
    assert choose(logits, Sampling(), [0] * 50, [0] * 50) == logits.argmax(1).tolist()
    for size in (3, 16, 257):
        assert choose(torch.zeros(1, size), Sampling(), [0], [0]) == [0]
    tied = torch.zeros(1, 257)
    tied[0, [200, 31, 256]] = 1.0
    assert choose(tied, Sampling(0.0, 3, 0.2), [5], [6]) == [31]


def test_a_temperature_near_zero_is_greedy_except_for_ties() -> None:
    logits = random_logits(50)
    for temperature in (1e-3, 1e-30, 5e-324):
        assert choose(logits, Sampling(temperature), range(50), [0] * 50) == logits.argmax(1).tolist()
    tied = torch.zeros(400, 8)
    tied[:, [2, 5]] = 1.0
    tokens = np.array(choose(tied, Sampling(1e-30), range(400), [0] * 400))
    assert set(tokens.tolist()) == {2, 5}
    assert 150 < (tokens == 2).sum() < 250
    assert choose(logits, Sampling(1e30), range(50), [0] * 50) != logits.argmax(1).tolist()


def chi_square(tokens: list[int], expected: Tensor) -> float:
    counts = np.bincount(tokens, minlength=len(expected))
    expected_counts = expected.numpy() * len(tokens)
    assert counts[expected_counts == 0].sum() == 0
    return float(
        ((counts - expected_counts) ** 2 / np.where(expected_counts > 0, expected_counts, 1))[expected_counts > 0].sum()
    )


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.6, 0, 1.0), (1.5, 4, 1.0), (0.8, 5, 0.9)]
)
@pytest.mark.parametrize("varied", ["index", "position", "seed"])
def test_draws_follow_the_distribution(temperature: float, top_k: int, top_p: float, varied: str) -> None:
    """20,000 draws; 25.7 is the 99.99 % quantile of chi-square with 5 degrees of freedom, the maximum here."""
    count, sampling = 20_000, Sampling(temperature, top_k, top_p, seed=7)
    logits = LOGITS.expand(count, -1)
    if varied == "index":
        tokens = choose(logits, sampling, range(count), [3] * count)
    elif varied == "position":
        tokens = choose(logits, sampling, [3] * count, range(count))
    else:
        seeds = [Sampling(temperature, top_k, top_p, seed) for seed in range(2000)]
        tokens = [token for s in seeds for token in choose(LOGITS.expand(10, -1), s, range(10), [1] * 10)]
    expected = released(LOGITS, temperature, top_k, top_p)[0]
    assert chi_square(tokens, expected) < 25.7
    assert chi_square(tokens, released(LOGITS, temperature * 1.2, top_k, top_p)[0]) > 25.7


def test_a_row_does_not_depend_on_its_batch() -> None:
    logits, sampling = random_logits(67), Sampling(0.9, 100, 0.95, seed=1)
    whole = probabilities(logits, sampling)
    tokens = choose(logits, sampling, range(67), range(67, 134))
    for size in (1, 2, 3, 7, 16, 64):
        parts = [probabilities(part, sampling) for part in logits.split(size)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=0)
    for row in (0, 13, 66):
        assert choose(logits[row : row + 1], sampling, [row], [67 + row]) == [tokens[row]]
    order = list(reversed(range(67)))
    assert choose(logits[order], sampling, order, [67 + row for row in order]) == [tokens[row] for row in order]


def test_the_last_token_can_be_drawn_and_an_impossible_one_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.full((2, 4), -torch.inf)
    logits[0, :2] = 0.0
    logits[1, 1:3] = torch.tensor([0.3, 0.1])
    for draw, expected in ((0.0, [0, 1]), (1 - 2.0**-53, [1, 2])):
        monkeypatch.setattr(
            "bgpt_fast.kernels.byte_decode.sampling.uniform",
            lambda seed, indices, positions, draw=draw: np.full(2, draw),
        )
        assert choose(logits, Sampling(1.0), [0, 1], [0, 0]) == expected


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(counter: list[int], key: list[int], expected: list[int]) -> None:
    """The test vectors of Random123, the authors' library."""
    words = philox(tuple(np.array([c], np.uint64) for c in counter), tuple(np.uint64(k) for k in key))  # type: ignore[arg-type]
    assert [int(word[0]) for word in words] == expected


def test_uniform_numbers_depend_on_seed_stream_and_position() -> None:
    numbers = uniform(5, [0, 1, 2**64 - 1, 0], [0, 0, 7, 2**40])
    assert numbers.dtype == np.float64
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert len(set(numbers.tolist())) == 4
    assert uniform(5, [2**64 - 1], [7])[0] == numbers[2]
    assert uniform(6, [2**64 - 1], [7])[0] != numbers[2]
    assert uniform(2**64 - 1, [1], [2])[0] != uniform(2**32 - 1, [1], [2])[0]
    grid = uniform(0, np.arange(10_000) // 100, np.arange(10_000) % 100)
    assert abs(grid.mean() - 0.5) < 0.01
    assert len(np.unique(grid)) == 10_000


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"temperature": -0.1}, ValueError, "temperature: expected 0"),
        ({"temperature": float("nan")}, ValueError, "temperature: expected 0"),
        ({"temperature": float("inf")}, ValueError, "temperature: expected 0"),
        ({"temperature": "1"}, TypeError, "temperature: expected a number, got str"),
        ({"top_p": 0.0}, ValueError, "top_p: expected a number over 0"),
        ({"top_p": float("nan")}, ValueError, "top_p: expected a number over 0"),
        ({"top_k": -1}, ValueError, "top_k: expected 0"),
        ({"top_k": 2.0}, TypeError, "top_k: expected an int, got float"),
        ({"seed": -1}, ValueError, "seed: expected 0"),
        ({"seed": 2**64}, ValueError, "seed: expected 0"),
        ({"seed": True}, TypeError, "seed: expected an int, got bool"),
    ],
)
def test_errors_name_what_is_wrong(fields: dict[str, float], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Sampling(**fields)  # type: ignore[arg-type]
