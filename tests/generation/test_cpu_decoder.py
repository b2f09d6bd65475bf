"""byte_decode: right against the model, and a row's bits and bytes that nothing but the row decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bgpt_fast import _C, BGPT, BGPTConfig
from bgpt_fast.generation.fused import CpuDecoder, PackedModel
from bgpt_fast.generation.packed import PRECISIONS, Decoded, PackedCache, PackedTransformer
from bgpt_fast.generation.sampling import Sampling, choose

SHAPES = {
    "plain": BGPTConfig(patch_length=20, hidden_size=64, patch_num_layers=2, byte_num_layers=2),
    "odd": BGPTConfig(
        patch_size=5,
        patch_length=20,
        hidden_size=33,
        patch_num_layers=1,
        byte_num_layers=2,
        num_heads=3,
        byte_num_heads=1,
    ),
    "one head a channel": BGPTConfig(
        patch_size=1, patch_length=20, hidden_size=8, patch_num_layers=1, byte_num_layers=1, num_heads=8
    ),
    "over a block of links": BGPTConfig(
        patch_size=3, patch_length=20, hidden_size=272, patch_num_layers=1, byte_num_layers=1, num_heads=4
    ),
}
CONFIG = SHAPES["plain"]
Decode = Callable[..., Decoded]


def random_model(config: BGPTConfig, seed: int = 0) -> BGPT:
    torch.manual_seed(seed)
    model = BGPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3).add_(0.05 * torch.randn_like(parameter))
    return model


def packed(config: BGPTConfig, precision: str = "float32", isa: int = 2, seed: int = 0) -> PackedModel:
    """A random model, packed."""
    model = PackedModel(random_model(config, seed), precision)
    model.patch_decoder.isa = model.byte_decoder.transformer.isa = isa
    return model


def rows(config: BGPTConfig, count: int, seed: int = 0) -> dict[str, Tensor]:
    """Patches to write: some bytes given, cut at all lengths."""
    stream = torch.Generator().manual_seed(seed)
    S = config.patch_size
    room = torch.randint(1, S + 1, (count,), generator=stream)
    given = torch.randint(0, 257, (count, S), generator=stream, dtype=torch.int16)
    written = torch.arange(S) >= (room * torch.rand(count, generator=stream)).long()[:, None]
    return {
        "features": torch.randn(count, config.hidden_size, generator=stream),
        "given": given.masked_fill(written, -1),
        "room": room,
        "indices": torch.randint(0, 2**62, (count,), generator=stream).to(torch.uint64),
        "starts": torch.randint(0, 2**40, (count,), generator=stream).to(torch.uint64),
    }


def part(of: dict[str, Tensor], which: Tensor) -> dict[str, Tensor]:
    # uint64 cannot be indexed by a tensor: by way of int64.
    return {
        name: value.view(torch.int64)[which].view(torch.uint64) if value.dtype == torch.uint64 else value[which]
        for name, value in of.items()
    }


def teacher_forced(model: PackedModel, features: Tensor, patches: Tensor) -> Tensor:
    N, S = patches.shape
    numbers = torch.arange(N).to(torch.uint64)
    decoded = model.byte_decoder.decode(features, patches, torch.full((N,), S), numbers, numbers, return_logits=True)
    assert torch.equal(decoded.tokens, patches)
    assert decoded.logits is not None
    return decoded.logits


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_values(name: str, precision: str) -> None:
    """Against the model in float64: fp32 errs no more than twice as much as the model's own fp32, bf16 as its bf16."""
    config = SHAPES[name]
    stream = torch.Generator().manual_seed(1)
    patches = torch.randint(0, 257, (7, config.patch_size), generator=stream, dtype=torch.int16)
    model = random_model(config)
    features = torch.randn(7, config.hidden_size, generator=stream)
    found = teacher_forced(PackedModel(model, precision), features, patches)
    with torch.no_grad():
        exact = random_model(config).double().byte_level_decoder.logits(features.double(), patches)
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        plain = model.to(dtype).byte_level_decoder.logits(features.to(dtype), patches)
    spread = exact.std()
    allowed = {"float32": 2 * (plain - exact).abs().max() + 1e-6 * spread, "bfloat16": 2 * (plain - exact).abs().max()}
    # Eight bits: a scale for each output, so some 1/254 of the largest weight of a column a weight.
    assert (found - exact).abs().max() <= allowed.get(precision, 0.1 * spread + 2 * (plain - exact).abs().max())


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_instruction_set_and_number_of_threads_gives_the_same_bits(name: str, precision: str) -> None:
    config, before = SHAPES[name], torch.get_num_threads()
    call = rows(config, 9)
    patches = torch.randint(
        0, 257, (19, config.patch_size), dtype=torch.int16, generator=torch.Generator().manual_seed(2)
    )
    found = []
    try:
        for isa, threads in ((0, 1), (1, 3), (2, 2), (2, 1)):
            torch.set_num_threads(threads)
            model = packed(config, precision, isa)
            features = CpuDecoder(model, 1, 20).features(patches, torch.zeros(19, dtype=torch.int64), torch.arange(19))
            found.append((features, model.byte_decoder.decode(**call, temperature=0.8, seed=1, return_logits=True)))
    finally:
        torch.set_num_threads(before)
    for features, decoded in found[1:]:
        torch.testing.assert_close(features, found[0][0], rtol=0, atol=0)
        assert torch.equal(decoded.tokens, found[0][1].tokens)
        torch.testing.assert_close(decoded.logits, found[0][1].logits, rtol=0, atol=0, equal_nan=True)


def rows_are_alone(decode: Decode, sizes: tuple[int, ...], count: int = 64) -> bool:
    """Are logits and bytes equal in batches of all sizes, in any order, beside rows that stop early?"""
    call = rows(CONFIG, count)
    whole = decode(**call)
    assert whole.logits is not None
    same = True
    for size in sizes:
        for seed in (0, 1):
            order = torch.arange(count)
            if seed:
                order = torch.randperm(count, generator=torch.Generator().manual_seed(size))
            found = [decode(**part(call, which)) for which in order.split(size)]
            same &= torch.equal(torch.cat([decoded.tokens for decoded in found]), whole.tokens[order])
            same &= torch.equal(torch.cat([decoded.counts for decoded in found]), whole.counts[order])
            bits = [decoded.logits.view(torch.int32) for decoded in found if decoded.logits is not None]
            same &= torch.equal(torch.cat(bits), whole.logits.view(torch.int32)[order])
    return same


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_do_not_see_each_other(precision: str) -> None:
    model = packed(CONFIG, precision)
    sampling = {"temperature": 0.9, "top_k": 100, "top_p": 0.99, "seed": 5}
    assert rows_are_alone(
        lambda **call: model.byte_decoder.decode(**call, **sampling, return_logits=True), (1, 2, 3, 7, 33)
    )
    # More rows than a chunk of the byte decoder has, and than a tile.
    many = rows(CONFIG, 150)
    for which in (torch.arange(150)[3:140], torch.tensor([149])):
        apart = model.byte_decoder.decode(**part(many, which), **sampling)
        assert torch.equal(apart.tokens, model.byte_decoder.decode(**many, **sampling).tokens[which])


def test_rounding_that_depends_on_the_batch_is_noticed() -> None:
    model = packed(CONFIG)

    def broken(**call: Any) -> Decoded:
        """A last bit of a feature goes astray where rows are many."""
        if len(call["features"]) > 4:
            call["features"] = call["features"] * (1 + 2e-7)
        return model.byte_decoder.decode(**call, return_logits=True)

    assert not rows_are_alone(broken, (1, 7))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_prefill_equals_patch_by_patch_in_any_slot(precision: str) -> None:
    config = BGPTConfig(patch_length=300, hidden_size=32, patch_num_layers=2, byte_num_layers=1, num_heads=2)
    model, T = packed(config, precision), 281  # more than a chunk has
    patches = torch.randint(0, 257, (T, 16), dtype=torch.int16, generator=torch.Generator().manual_seed(3))
    slots, places = torch.full((T,), 2), torch.arange(T)
    whole = CpuDecoder(model, 3, 288).features(patches, slots, places)
    single = CpuDecoder(model, 1, 288)
    one = torch.zeros(1, dtype=torch.int64)
    steps = [single.features(patches[t : t + 1], one, places[t : t + 1]) for t in range(T)]
    torch.testing.assert_close(torch.cat(steps), whole, rtol=0, atol=0)
    crowded = CpuDecoder(model, 2, 288)
    both = crowded.features(patches.repeat(2, 1), torch.tensor([1, 0]).repeat_interleave(T), places.repeat(2))
    torch.testing.assert_close(both, whole.repeat(2, 1), rtol=0, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.0},
        {"temperature": 0.6, "top_k": 5},
        {"temperature": 1.3, "top_p": 0.7},
        {"temperature": 0.9, "top_k": 300, "top_p": 0.95},
        {"temperature": 1.1, "top_k": 40, "top_p": 0.5},
        {"temperature": 1e-3, "top_k": 1},
    ],
)
def test_choices_are_those_of_sampling(options: dict[str, Any]) -> None:
    """The same draws from the same logits as `generation.sampling.choose`."""
    call = rows(CONFIG, 40, seed=4)
    call["given"].fill_(-1)
    decoded = packed(CONFIG).byte_decoder.decode(**call, **options, seed=2**63 + 1, return_logits=True)
    assert decoded.logits is not None
    for s in range(CONFIG.patch_size):
        open_ = (s < decoded.counts).nonzero().flatten()
        if not len(open_):
            break
        expected = choose(
            decoded.logits[open_, s],
            Sampling(**options, seed=2**63 + 1),
            call["indices"].view(torch.int64)[open_].tolist(),
            (call["starts"].view(torch.int64)[open_] + s).tolist(),
        )
        assert decoded.tokens[open_, s].tolist() == expected


def test_draws_follow_the_probabilities() -> None:
    """20,000 first bytes from one feature: chi-squared over the bins that expect more than 5."""
    model, N = (
        packed(BGPTConfig(patch_size=1, patch_length=4, hidden_size=8, patch_num_layers=1, byte_num_layers=1)),
        20_000,
    )
    call = {
        "features": torch.ones(N, 8),
        "given": torch.full((N, 1), -1, dtype=torch.int16),
        "room": torch.ones(N, dtype=torch.int64),
        "indices": torch.arange(N).to(torch.uint64),
        "starts": torch.zeros(N, dtype=torch.int64).to(torch.uint64),
    }
    decoded = model.byte_decoder.decode(**call, temperature=1.0, seed=8, return_logits=True)
    assert decoded.logits is not None
    counts = torch.bincount(decoded.tokens.flatten().long(), minlength=257).double()

    def chi_squared(temperature: float) -> float:
        expected = N * (decoded.logits[0, 0].double() / temperature).softmax(0)  # type: ignore[index]
        enough = expected > 5
        return float(((counts - expected)[enough].square() / expected[enough]).sum() / enough.sum())

    assert chi_squared(1.0) < 1.5
    assert chi_squared(0.8) > 1.5  # draws at another temperature are noticed


def test_a_row_ends_at_eop_at_its_room_and_never_on_given_bytes() -> None:
    config = CONFIG
    model = random_model(config)
    with torch.no_grad():
        base = model.byte_level_decoder.base.transformer
        base.ln_f.weight.zero_()
        base.ln_f.bias.copy_(base.wte.weight[256] * 100)
    decode = PackedModel(model, "float32").byte_decoder.decode
    given = torch.full((3, 16), -1, dtype=torch.int16)
    given[1, :4] = torch.tensor([5, 256, 7, 8])
    given[2, :] = 9
    numbers = torch.arange(3).to(torch.uint64)
    decoded = decode(torch.zeros(3, 64), given, torch.tensor([16, 16, 11]), numbers, numbers)
    assert decoded.counts.tolist() == [1, 5, 11]
    assert decoded.tokens[:, :11].tolist() == [[256] * 11, [5, 256, 7, 8] + [256] * 7, [9] * 11]
    none = decode(torch.zeros(0, 64), given[:0], torch.zeros(0, dtype=torch.int64), numbers[:0], numbers[:0])
    assert none.tokens.shape == (0, 16)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_damage_is_told_of_its_row_alone(precision: str) -> None:
    call = rows(CONFIG, 5)
    call["features"][3, 7] = torch.nan
    decode = packed(CONFIG, precision).byte_decoder.decode
    counts = decode(**call).counts
    assert (counts < 0).tolist() == [False, False, False, True, False]
    damaged = random_model(CONFIG)
    with torch.no_grad():
        damaged.byte_level_decoder.base.transformer.h[1].mlp.c_fc.weight[3, 5] = torch.inf
    call = rows(CONFIG, 5)
    assert (PackedModel(damaged, precision).byte_decoder.decode(**call).counts == -1).all()


def test_wrong_arguments_are_named() -> None:
    model = packed(CONFIG)
    decode, call = model.byte_decoder.decode, rows(CONFIG, 3)
    for name, value, error, message in (
        ("features", torch.zeros(3, 65), ValueError, r"features: expected shape \[N, 64\], got \[3, 65\]"),
        ("features", torch.zeros(3, 64).double(), TypeError, "features: expected dtype float32, got float64"),
        ("given", torch.zeros(3, 16), TypeError, "given: expected dtype int16"),
        ("given", torch.full((3, 16), 257, dtype=torch.int16), ValueError, "given: expected -1 to 256, got 257"),
        ("given", torch.full((3, 16), -2, dtype=torch.int16), ValueError, "given: expected -1 to 256, got -2"),
        ("room", torch.zeros(3, dtype=torch.int64), ValueError, "room: expected 1 to 16, got 0"),
        ("room", torch.full((3,), 17), ValueError, "room: expected 1 to 16, got 17"),
        ("indices", torch.zeros(3, dtype=torch.int64), TypeError, "indices: expected dtype uint64"),
        ("starts", torch.zeros(2, dtype=torch.uint64), ValueError, r"starts: expected shape \[3\], got \[2\]"),
    ):
        with pytest.raises(error, match=message):
            decode(**{**call, name: value})
    x, cache, zero = torch.zeros(1, 64), PackedCache(model.patch_decoder, 2, 16), torch.zeros(1, dtype=torch.int64)
    for slot, position, name in ((2, 0, "slots"), (-1, 0, "slots"), (0, 16, "positions"), (0, -1, "positions")):
        with pytest.raises(IndexError, match=f"{name}: expected 0 to"):
            model.patch_decoder.features(x, cache, zero + slot, zero + position)
    with pytest.raises(IndexError, match="positions: expected 0 to 19, got 20"):
        model.patch_decoder.features(x, PackedCache(model.patch_decoder, 1, 64), zero, zero + 20)
    assert model.patch_decoder.features(x[:0], cache, zero[:0], zero[:0]).shape == (0, 64)
    other = packed(SHAPES["odd"]).patch_decoder
    with pytest.raises(ValueError, match="cache: expected one that was made for this transformer"):
        model.patch_decoder.features(x, PackedCache(other, 1, 16), zero, zero)
    with pytest.raises(ValueError, match="expected at least 1 slot of 1 token, got 0 of 4"):
        PackedCache(model.patch_decoder, 0, 4)
    with pytest.raises(ValueError, match="layers: expected at least one"):
        PackedTransformer([], (x, x), x, heads=1, eps=1e-5)
    with pytest.raises(ValueError, match=r"precision: expected one of .*, got 'int4'"):
        PackedModel(random_model(CONFIG), "int4")
    assert decode(**call).counts.min() > 0, "the process goes on"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_defaults_of_torch_are_not_those_of_results(precision: str) -> None:
    """What C++ writes into has the width and the place that C++ thinks it has."""
    model, call = packed(CONFIG, precision), rows(CONFIG, 3)
    expected = model.byte_decoder.decode(**call, return_logits=True)
    try:
        for dtype, device in ((torch.float64, "cpu"), (torch.bfloat16, "cpu"), (torch.float32, "meta")):
            torch.set_default_dtype(dtype)
            with torch.device(device):
                found = model.byte_decoder.decode(**call, return_logits=True)
            assert found.logits is not None
            torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=0, equal_nan=True)
            assert torch.equal(found.tokens, expected.tokens)
            assert torch.equal(found.counts, expected.counts)
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_processor_has_what_the_figures_say() -> None:
    assert isinstance(_C.has_bf16_dot(), bool)
    weights = {precision: packed(CONFIG, precision).nbytes for precision in PRECISIONS}
    assert weights["float32"] == 2 * weights["bfloat16"] == 4 * weights["int8"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rate", [0.0, 0.2, 1.0])
def test_guesses_change_neither_tokens_nor_logits(precision: str, rate: float) -> None:
    """More rows than a chunk has, with guesses of all lengths of which a share is wrong."""
    decode, call = packed(CONFIG, precision).byte_decoder.decode, rows(CONFIG, 140, seed=6)
    sampling = {"temperature": 0.9, "top_p": 0.99, "seed": 5, "return_logits": True}
    plain = decode(**call, **sampling)
    stream = torch.Generator().manual_seed(7)
    wrong = torch.rand(plain.tokens.shape, generator=stream) < rate
    noise = torch.randint(0, 257, plain.tokens.shape, dtype=torch.int16, generator=stream)
    lengths = torch.randint(0, 17, (140, 1), generator=stream)
    drafts = torch.where(wrong, noise, plain.tokens).masked_fill(torch.arange(16) >= lengths, -1)
    guessed = decode(**call, drafts=drafts, **sampling)
    assert torch.equal(guessed.tokens, plain.tokens)
    assert torch.equal(guessed.counts, plain.counts)
    torch.testing.assert_close(guessed.logits, plain.logits, rtol=0, atol=0, equal_nan=True)
    # Verified only: the same up to the first wrong guess, or to the token behind the last one.
    verified = decode(**call, drafts=drafts, verify=torch.ones(140, dtype=torch.bool), **sampling)
    known = torch.where(call["given"] >= 0, call["given"], drafts)
    for n in range(140):
        count = int(plain.counts[n])
        right = next((s for s in range(16) if s >= count or known[n, s] != plain.tokens[n, s]), 16)
        assert int(verified.counts[n]) == min(count, right + 1)
        assert torch.equal(verified.tokens[n, : verified.counts[n]], plain.tokens[n, : verified.counts[n]])
    with pytest.raises(ValueError, match="drafts: expected -1 to 256, got 257"):
        decode(**call, drafts=drafts.clone().fill_(257))
    with pytest.raises(TypeError, match="verify: expected dtype bool"):
        decode(**call, drafts=drafts, verify=torch.ones(140))
