"""byte_decode: equal to the model and the reference; a row's bits and bytes depend on that row alone."""

from __future__ import annotations

import copy
import dataclasses
import functools
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from support.byte_decode import SHAPES, ending_model, random_model, rows
from support.ops import DrawnTests, equal
from torch import Tensor

from bgpt_fast import _C, BGPT, BGPTConfig
from bgpt_fast.config import EOP, VOCAB_SIZE
from bgpt_fast.generation.decoders.cpu import CpuDecoder, CpuWeights
from bgpt_fast.generation.decoders.cuda_layers import ByteWeights
from bgpt_fast.kernels.byte_decode.op import ByteDrafter, Decoded, byte_decode, byte_decode_accept
from bgpt_fast.kernels.byte_decode.packed import PRECISIONS, PackedCache, PackedTransformer
from bgpt_fast.kernels.byte_decode.reference import byte_decode_accept_reference
from bgpt_fast.kernels.byte_decode.sampling import Sampling, choose

CONFIG = SHAPES["plain"]
Decode = Callable[..., Decoded]


def packed(config: BGPTConfig, precision: str = "float32", isa: int = 2, seed: int = 0) -> CpuWeights:
    """A random model, packed."""
    model = CpuWeights(random_model(config, seed), precision)
    model.patch_decoder.isa = model.byte_decoder.transformer.isa = isa
    return model


def part(of: dict[str, Tensor], which: Tensor) -> dict[str, Tensor]:
    # uint64 cannot be indexed by a tensor: by way of int64.
    return {
        name: value.view(torch.int64)[which].view(torch.uint64) if value.dtype == torch.uint64 else value[which]
        for name, value in of.items()
    }


def teacher_forced(model: CpuWeights, features: Tensor, patches: Tensor) -> Tensor:
    N, S = patches.shape
    numbers = torch.arange(N).to(torch.uint64)
    max_tokens = torch.full((N,), S)
    decoded = byte_decode(model.byte_decoder, features, patches, max_tokens, numbers, numbers, return_logits=True)
    assert torch.equal(decoded.tokens, patches)
    assert decoded.logits is not None
    return decoded.logits


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_values(name: str, precision: str) -> None:
    """Against the model in float64: fp32 errs no more than twice as much as the model's own fp32, bf16 as its bf16."""
    config = SHAPES[name]
    stream = torch.Generator().manual_seed(1)
    patches = torch.randint(0, config.vocab_size, (7, config.patch_size), generator=stream, dtype=torch.int16)
    model = random_model(config)
    features = torch.randn(7, config.hidden_size, generator=stream)
    logits = teacher_forced(CpuWeights(model, precision), features, patches)
    with torch.no_grad():
        exact = random_model(config).double().byte_level_decoder.logits(features.double(), patches)
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        plain = model.to(dtype).byte_level_decoder.logits(features.to(dtype), patches)
    spread = exact.std()
    allowed = {"float32": 2 * (plain - exact).abs().max() + 1e-6 * spread, "bfloat16": 2 * (plain - exact).abs().max()}
    # Eight bits: a scale for each output, so some 1/254 of the largest weight of a column a weight.
    assert (logits - exact).abs().max() <= allowed.get(precision, 0.1 * spread + 2 * (plain - exact).abs().max())


class TestByteDecode(DrawnTests):
    """Teacher-forced logits in float32 and bfloat16; int8, whose weights have an error of their own, is elsewhere."""

    NAME = "byte_decode"

    @staticmethod
    def function(model: BGPT, precision: str, features: Tensor, patches: Tensor) -> Tensor:
        return teacher_forced(CpuWeights(model, precision), features, patches)

    @staticmethod
    def plain(model: BGPT, precision: str, features: Tensor, patches: Tensor) -> Tensor:
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        dtype = torch.float64 if features.dtype == torch.float64 else dtype
        logits = copy.deepcopy(model).to(dtype).byte_level_decoder.logits(features.to(dtype), patches)
        return logits.to(features.dtype)

    @staticmethod
    def wrong_version(model: BGPT, precision: str, features: Tensor, patches: Tensor) -> Tensor:
        return TestByteDecode.function(model, precision, features.roll(1, -1), patches)

    def draw(self, stream: random.Random) -> list[Any]:
        name, seed = stream.choice(list(SHAPES)), stream.randrange(2**30)
        model, generator = random_model(SHAPES[name], seed), torch.Generator().manual_seed(seed)
        N = stream.choice([1, 2, 7, 16, 17, 33])
        patches = torch.randint(
            0, model.config.vocab_size, (N, model.config.patch_size), generator=generator, dtype=torch.int16
        )
        features = torch.randn(N, model.config.hidden_size, generator=generator)
        return [model, stream.choice(["float32", "bfloat16"]), features, patches]


class TestByteDecodeAccept(DrawnTests):
    NAME = "byte_decode_accept"

    @staticmethod
    def call(accept: Callable[..., None], *arguments: Any) -> list[Tensor]:
        """Returns tokens, counts, next tokens and active rows."""
        inputs, outputs = arguments[:6], [tensor.clone() for tensor in arguments[6:10]]
        accept(*inputs, *outputs, arguments[10])
        return outputs

    function = staticmethod(functools.partial(call, byte_decode_accept))
    plain = staticmethod(functools.partial(call, byte_decode_accept_reference))

    @staticmethod
    def wrong_version(*arguments: Any) -> list[Tensor]:
        return TestByteDecodeAccept.function(-arguments[0], *arguments[1:])

    def draw(self, stream: random.Random) -> list[Any]:
        arguments = accept_arguments(
            stream.choice([1, 2, 16, 17, 257, stream.randint(1, 100)]), stream.randrange(2**30)
        )
        return [*arguments, stream.randrange(16)]

    def check(self, arguments: Sequence[Any], function: Callable[..., Any] | None = None) -> None:
        """The results are whole numbers: equal to the reference's."""
        assert equal((function or self.function)(*arguments), self.plain(*arguments))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_instruction_set_and_number_of_threads_gives_the_same_bits(name: str, precision: str) -> None:
    config, before = SHAPES[name], torch.get_num_threads()
    call = rows(config, 9)
    patches = torch.randint(
        0, config.vocab_size, (19, config.patch_size), dtype=torch.int16, generator=torch.Generator().manual_seed(2)
    )
    results = []
    try:
        for isa, threads in ((0, 1), (1, 3), (2, 2), (2, 1)):
            torch.set_num_threads(threads)
            model = packed(config, precision, isa)
            features = CpuDecoder(model, 1, 20).prefill(patches, torch.zeros(19, dtype=torch.int64), torch.arange(19))
            sampling = Sampling(temperature=0.8, seed=1)
            results.append((features, byte_decode(model.byte_decoder, **call, sampling=sampling, return_logits=True)))
    finally:
        torch.set_num_threads(before)
    for features, decoded in results[1:]:
        torch.testing.assert_close(features, results[0][0], rtol=0, atol=0)
        assert_same(decoded, results[0][1])


def assert_same(decoded: Decoded, expected: Decoded) -> None:
    """The same tokens, counts and bits of logits."""
    assert torch.equal(decoded.tokens, expected.tokens)
    assert torch.equal(decoded.counts, expected.counts)
    torch.testing.assert_close(decoded.logits, expected.logits, rtol=0, atol=0, equal_nan=True)


def rows_are_independent(decode: Decode, sizes: tuple[int, ...], count: int = 64) -> bool:
    """Whether logits and bytes are equal in batches of several sizes, in any order, beside rows that end early."""
    call = rows(CONFIG, count)
    whole = decode(**call)
    assert whole.logits is not None
    same = True
    for size in sizes:
        for seed in (0, 1):
            order = torch.arange(count)
            if seed:
                order = torch.randperm(count, generator=torch.Generator().manual_seed(size))
            parts = [decode(**part(call, which)) for which in order.split(size)]
            same &= torch.equal(torch.cat([decoded.tokens for decoded in parts]), whole.tokens[order])
            same &= torch.equal(torch.cat([decoded.counts for decoded in parts]), whole.counts[order])
            bits = [decoded.logits.view(torch.int32) for decoded in parts if decoded.logits is not None]
            same &= torch.equal(torch.cat(bits), whole.logits.view(torch.int32)[order])
    return same


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_are_independent(precision: str) -> None:
    decode = functools.partial(
        byte_decode,
        packed(CONFIG, precision).byte_decoder,
        sampling=Sampling(temperature=0.9, top_k=100, top_p=0.99, seed=5),
        return_logits=True,
    )
    assert rows_are_independent(decode, (1, 2, 3, 7, 33))
    # More rows than a chunk of the byte decoder has, and than a tile.
    many = rows(CONFIG, 150)
    for which in (torch.arange(150)[3:140], torch.tensor([149])):
        assert torch.equal(decode(**part(many, which)).tokens, decode(**many).tokens[which])


def test_rounding_that_depends_on_the_batch_is_noticed() -> None:
    model = packed(CONFIG)

    def broken(**call: Any) -> Decoded:
        """Changes the last bit of the features where rows are many."""
        if len(call["features"]) > 4:
            call["features"] = call["features"] * (1 + 2e-7)
        return byte_decode(model.byte_decoder, **call, return_logits=True)

    assert not rows_are_independent(broken, (1, 7))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_prefill_equals_patch_by_patch_in_any_slot(precision: str) -> None:
    config = BGPTConfig(patch_length=300, hidden_size=32, patch_num_layers=2, byte_num_layers=1, num_heads=2)
    model, T = packed(config, precision), 281  # more than a chunk has
    patches = torch.randint(0, 257, (T, 16), dtype=torch.int16, generator=torch.Generator().manual_seed(3))
    slots, places = torch.full((T,), 2), torch.arange(T)
    whole = CpuDecoder(model, 3, 288).prefill(patches, slots, places)
    single = CpuDecoder(model, 1, 288)
    one = torch.zeros(1, dtype=torch.int64)
    steps = [single.prefill(patches[t : t + 1], one, places[t : t + 1]) for t in range(T)]
    torch.testing.assert_close(torch.cat(steps), whole, rtol=0, atol=0)
    crowded = CpuDecoder(model, 2, 288)
    both = crowded.prefill(patches.repeat(2, 1), torch.tensor([1, 0]).repeat_interleave(T), places.repeat(2))
    torch.testing.assert_close(both, whole.repeat(2, 1), rtol=0, atol=0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_prefill_in_a_slot_past_any_number_is_that_of_the_first(precision: str) -> None:
    model, count, T = packed(CONFIG, precision), 150, 5
    patches = torch.randint(
        0, 257, (T, CONFIG.patch_size), dtype=torch.int16, generator=torch.Generator().manual_seed(3)
    )
    decoder, slots = CpuDecoder(model, count, 16), torch.arange(count)
    # A patch of each slot a call, as generation does, and all patches of all slots in one.
    steps = [decoder.prefill(patches[t].expand(count, -1), slots, torch.full_like(slots, t)) for t in range(T)]
    features = torch.stack(steps, 1)
    assert torch.equal(features, features[:1].expand_as(features))
    whole = CpuDecoder(model, count, 16).prefill(
        patches.repeat(count, 1), slots.repeat_interleave(T), torch.arange(T).repeat(count)
    )
    assert torch.equal(whole.view_as(features), features)
    assert not torch.equal(features[:, 0], features[:, 1])


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
    """The same tokens as `choose` takes from the same logits."""
    call = rows(CONFIG, 40, seed=4)
    call["prefix_tokens"].fill_(-1)
    sampling = Sampling(**options, seed=2**63 + 1)
    decoded = byte_decode(packed(CONFIG).byte_decoder, **call, sampling=sampling, return_logits=True)
    assert decoded.logits is not None
    for s in range(CONFIG.patch_size):
        open_ = (s < decoded.counts).nonzero().flatten()
        if not len(open_):
            break
        expected = choose(
            decoded.logits[open_, s],
            sampling,
            call["rng_streams"].view(torch.int64)[open_].tolist(),
            (call["byte_offsets"].view(torch.int64)[open_] + s).tolist(),
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
        "prefix_tokens": torch.full((N, 1), -1, dtype=torch.int16),
        "max_tokens": torch.ones(N, dtype=torch.int64),
        "rng_streams": torch.arange(N).to(torch.uint64),
        "byte_offsets": torch.zeros(N, dtype=torch.int64).to(torch.uint64),
    }
    decoded = byte_decode(model.byte_decoder, **call, sampling=Sampling(temperature=1.0, seed=8), return_logits=True)
    assert decoded.logits is not None
    counts = torch.bincount(decoded.tokens.flatten().long(), minlength=257).double()

    def chi_squared(temperature: float) -> float:
        expected = N * (decoded.logits[0, 0].double() / temperature).softmax(0)  # type: ignore[index]
        enough = expected > 5
        return float(((counts - expected)[enough].square() / expected[enough]).sum() / enough.sum())

    assert chi_squared(1.0) < 1.5
    assert chi_squared(0.8) > 1.5  # draws at another temperature are noticed


def test_a_row_ends_at_eop_or_max_tokens_and_never_in_the_prefix() -> None:
    decode = functools.partial(byte_decode, CpuWeights(ending_model(CONFIG), "float32").byte_decoder)
    prefix = torch.full((3, 16), -1, dtype=torch.int16)
    prefix[1, :4] = torch.tensor([5, 256, 7, 8])
    prefix[2, :] = 9
    numbers = torch.arange(3).to(torch.uint64)
    decoded = decode(torch.zeros(3, 64), prefix, torch.tensor([16, 16, 11]), numbers, numbers)
    assert decoded.counts.tolist() == [1, 5, 11]
    assert decoded.tokens[:, :11].tolist() == [[256] * 11, [5, 256, 7, 8] + [256] * 7, [9] * 11]
    none = decode(torch.zeros(0, 64), prefix[:0], torch.zeros(0, dtype=torch.int64), numbers[:0], numbers[:0])
    assert none.tokens.shape == (0, 16)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_damage_is_reported_for_its_row_alone(precision: str) -> None:
    call = rows(CONFIG, 5)
    call["features"][3, 7] = torch.nan
    counts = byte_decode(packed(CONFIG, precision).byte_decoder, **call).counts
    assert (counts < 0).tolist() == [False, False, False, True, False]
    damaged = random_model(CONFIG)
    with torch.no_grad():
        damaged.byte_level_decoder.base.transformer.h[1].mlp.c_fc.weight[3, 5] = torch.inf
    assert (byte_decode(CpuWeights(damaged, precision).byte_decoder, **rows(CONFIG, 5)).counts == -1).all()


def test_wrong_arguments_are_named() -> None:
    model = packed(CONFIG)
    decode, call = functools.partial(byte_decode, model.byte_decoder), rows(CONFIG, 3)
    tokens = torch.zeros(3, 16, dtype=torch.int16)
    for name, value, error, message in (
        ("features", torch.zeros(3, 65), ValueError, r"features: expected shape \[N, 64\], got \[3, 65\]"),
        ("features", torch.zeros(3, 64).double(), TypeError, "features: expected dtype float32, got float64"),
        ("features", torch.zeros(3, 64, device="meta"), ValueError, "prefix_tokens: expected device meta"),
        ("prefix_tokens", torch.zeros(3, 16), TypeError, "prefix_tokens: expected dtype int16"),
        ("prefix_tokens", tokens + 257, ValueError, "prefix_tokens: expected -1 to 256, got 257"),
        ("prefix_tokens", tokens - 2, ValueError, "prefix_tokens: expected -1 to 256, got -2"),
        ("drafts", tokens + 257, ValueError, "drafts: expected -1 to 256, got 257"),
        ("verify", torch.ones(3), TypeError, "verify: expected dtype bool"),
        ("max_tokens", torch.zeros(3, dtype=torch.int64), ValueError, "max_tokens: expected 1 to 16, got 0"),
        ("max_tokens", torch.full((3,), 17), ValueError, "max_tokens: expected 1 to 16, got 17"),
        ("rng_streams", torch.zeros(3, dtype=torch.int64), TypeError, "rng_streams: expected dtype uint64"),
        (
            "byte_offsets",
            torch.zeros(2, dtype=torch.uint64),
            ValueError,
            r"byte_offsets: expected shape \[3\], got \[2\]",
        ),
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
        CpuWeights(random_model(CONFIG), "int4")
    assert decode(**call).counts.min() > 0, "the process goes on"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_defaults_of_torch_do_not_change_results(precision: str) -> None:
    """What C++ writes to has the dtype and the device that C++ expects."""
    decode = functools.partial(byte_decode, packed(CONFIG, precision).byte_decoder, return_logits=True)
    call = rows(CONFIG, 3)
    expected = decode(**call)
    try:
        for dtype, device in ((torch.float64, "cpu"), (torch.bfloat16, "cpu"), (torch.float32, "meta")):
            torch.set_default_dtype(dtype)
            with torch.device(device):
                decoded = decode(**call)
            assert_same(decoded, expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_packed_sizes() -> None:
    assert isinstance(_C.has_bf16_dot(), bool)
    nbytes = {precision: packed(CONFIG, precision).nbytes for precision in PRECISIONS}
    assert nbytes["float32"] == 2 * nbytes["bfloat16"] == 4 * nbytes["int8"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rate", [0.0, 0.2, 1.0])
def test_drafts_change_neither_tokens_nor_logits(precision: str, rate: float) -> None:
    """More rows than a chunk has, with drafts of all lengths of which a share is wrong."""
    call = rows(CONFIG, 140, seed=6)
    decode = functools.partial(
        byte_decode,
        packed(CONFIG, precision).byte_decoder,
        **call,
        sampling=Sampling(temperature=0.9, top_p=0.99, seed=5),
        return_logits=True,
    )
    plain = decode()
    stream = torch.Generator().manual_seed(7)
    wrong = torch.rand(plain.tokens.shape, generator=stream) < rate
    noise = torch.randint(0, 257, plain.tokens.shape, dtype=torch.int16, generator=stream)
    lengths = torch.randint(0, 17, (140, 1), generator=stream)
    drafts = torch.where(wrong, noise, plain.tokens).masked_fill(torch.arange(16) >= lengths, -1)
    assert_same(decode(drafts=drafts), plain)
    # Verified only: the same up to the first wrong draft, or to the token after the last one.
    verified = decode(drafts=drafts, verify=torch.ones(140, dtype=torch.bool))
    expected = torch.where(call["prefix_tokens"] >= 0, call["prefix_tokens"], drafts)
    for n in range(140):
        count = int(plain.counts[n])
        right = next((s for s in range(16) if s >= count or expected[n, s] != plain.tokens[n, s]), 16)
        assert int(verified.counts[n]) == min(count, right + 1)
        assert torch.equal(verified.tokens[n, : verified.counts[n]], plain.tokens[n, : verified.counts[n]])


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.2, top_p=0.99, seed=5)])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_drafter_changes_neither_tokens_nor_logits(precision: str, sampling: Sampling) -> None:
    """More rows than a chunk has, with prefixes of all lengths, beside other drafts, and with a damaged drafter."""
    call, model = rows(CONFIG, 140, seed=6), packed(CONFIG, precision).byte_decoder
    decode = functools.partial(byte_decode, model, **call, sampling=sampling, return_logits=True)
    plain = decode()
    assert plain.drafted is None
    stream = torch.Generator().manual_seed(7)
    drafts = torch.randint(-1, 257, plain.tokens.shape, dtype=torch.int16, generator=stream)
    small = dataclasses.replace(CONFIG, hidden_size=16, num_heads=2, byte_num_layers=1)
    damaged = torch.randn(140, 16, generator=stream).masked_fill(torch.rand(140, 1, generator=stream) < 0.5, torch.nan)
    for drafter in (
        ByteDrafter(model, call["features"]),
        ByteDrafter(model, torch.randn(140, CONFIG.hidden_size, generator=stream)),
        ByteDrafter(packed(small, precision).byte_decoder, damaged),
    ):
        decoded = decode(drafter=drafter)
        assert_same(decoded, plain)
        assert_same(decode(drafter=drafter, drafts=drafts), plain)
        assert decoded.drafted is not None
        proposed, right = decoded.drafted.unbind(1)
        assert bool(((right >= 0) & (right <= proposed)).all())
    # What a model drafts for itself is right.
    itself = decode(drafter=ByteDrafter(model, call["features"])).drafted
    assert itself is not None
    assert torch.equal(itself[:, 0], itself[:, 1])
    assert int(itself[:, 0].sum()) > 20


def test_wrong_drafters_are_named() -> None:
    model, call = packed(CONFIG).byte_decoder, rows(CONFIG, 3)
    other = packed(dataclasses.replace(CONFIG, patch_size=8)).byte_decoder
    with pytest.raises(ValueError, match="drafter: expected patches of 16 bytes and 257 tokens, got 8 and 257"):
        byte_decode(model, **call, drafter=ByteDrafter(other, call["features"]))
    with pytest.raises(ValueError, match=r"drafter\.features: expected shape"):
        byte_decode(model, **call, drafter=ByteDrafter(model, call["features"][:2]))
    plain = ByteWeights(random_model(CONFIG), "float32")
    with pytest.raises(ValueError, match="drafter: expected None, or packed weights"):
        byte_decode(plain, **call, drafter=ByteDrafter(model, call["features"]))


@pytest.mark.parametrize("name", SHAPES)
def test_packed_weights_give_what_the_reference_gives(name: str) -> None:
    """Plain weights on the CPU take the reference; no near tie of these seeds falls within rounding."""
    model, call = random_model(SHAPES[name]), rows(SHAPES[name], 12)
    call["features"][5] = torch.nan
    ours, plain = CpuWeights(model, "float32").byte_decoder, ByteWeights(model, "float32")
    stream = torch.Generator().manual_seed(1)
    drafts = torch.randint(
        -1, SHAPES[name].vocab_size, call["prefix_tokens"].shape, dtype=torch.int16, generator=stream
    )
    for sampling in (Sampling(), Sampling(temperature=0.9, top_k=40, top_p=0.95, seed=2**63 + 7)):
        for options in ({}, {"drafts": drafts, "verify": torch.arange(12) % 2 == 0}):
            arguments = {**call, **options, "sampling": sampling, "return_logits": True}
            decoded, expected = byte_decode(ours, **arguments), byte_decode(plain, **arguments)
            assert torch.equal(decoded.counts, expected.counts)
            for n, count in enumerate(decoded.counts.clamp(min=0).tolist()):
                assert torch.equal(decoded.tokens[n, :count], expected.tokens[n, :count])
                assert decoded.logits is not None
                assert expected.logits is not None
                rtol, atol = 1e-4, 1e-4 * float(expected.logits[n, :count].abs().max() if count else 0)
                torch.testing.assert_close(decoded.logits[n, :count], expected.logits[n, :count], rtol=rtol, atol=atol)
    call["features"] += 0.1
    assert not torch.equal(byte_decode(plain, **call).tokens, byte_decode(ours, **rows(SHAPES[name], 12)).tokens)


def test_strided_arguments() -> None:
    decoder, call = packed(CONFIG).byte_decoder, rows(CONFIG, 6)
    spread = {name: torch.stack([value, value], -1)[..., 0] for name, value in call.items()}
    assert not any(value.is_contiguous() for value in spread.values())
    assert_same(*(byte_decode(decoder, **each, return_logits=True) for each in (call, spread)))


def accept_arguments(count: int, seed: int = 1, V: int = 257) -> list[Tensor]:
    """Arguments of `byte_decode_accept` up to `active`; one row has bad logits, one has ended."""
    call = rows(CONFIG, count)
    logits = 3 * torch.randn(count, V, generator=torch.Generator().manual_seed(seed))
    logits[count // 2 :][:1] = torch.inf
    active = torch.ones(count, dtype=torch.uint8)
    active[:1] = 0
    streams, offsets = (call[name].view(torch.int64) for name in ("rng_streams", "byte_offsets"))
    inputs = [logits, call["prefix_tokens"], call["max_tokens"], streams, offsets]
    sampling = Sampling(temperature=0.8, top_k=50, seed=2**64 - 1).to_tensor()
    results = [torch.full((count, 16), 7, dtype=torch.int16), *(torch.full((count,), 7) for _ in range(2))]
    return [*inputs, sampling, *results, active]


def test_accept_ends_a_row_of_128_symbols_at_its_eop() -> None:
    ours, plain = accept_arguments(9, V=128), accept_arguments(9, V=128)
    for arguments in (ours, plain):
        arguments[0][3] = 0.0
        arguments[0][3, 2], arguments[1][3], arguments[2][3] = 100.0, -1, 16
    byte_decode_accept(*ours, 1, eop=2)
    byte_decode_accept_reference(*plain, 1, eop=2)
    for mine, expected in zip(ours, plain, strict=True):
        assert torch.equal(mine, expected)
    assert ours[6][3, 1] == 2
    assert ours[9][3] == 0


@pytest.mark.parametrize("position", [0, 3, 15])
def test_accept_gives_what_its_reference_gives(position: int) -> None:
    ours, plain = accept_arguments(30), accept_arguments(30)
    byte_decode_accept(*ours, position)
    byte_decode_accept_reference(*plain, position)
    for mine, expected in zip(ours, plain, strict=True):
        assert torch.equal(mine, expected)
    assert ours[7][:2].tolist() == [7, position + 1]
    assert int(ours[7][15]) == -1
    for i, value, error, message in (
        (0, torch.zeros(30, 256), ValueError, r"logits: expected \[N, V\] with V of .*, got 256"),
        (7, torch.zeros(30), TypeError, "counts: expected dtype int64"),
        (9, torch.zeros(30), TypeError, "active: expected dtype uint8"),
        (0, torch.zeros(257, 30).t(), ValueError, "logits: expected a contiguous tensor"),
    ):
        with pytest.raises(error, match=message):
            byte_decode_accept(*ours[:i], value, *ours[i + 1 :], position)
    with pytest.raises(ValueError, match="position: expected 0 to 15, got 16"):
        byte_decode_accept(*ours, 16)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_opcheck(count: int) -> None:
    torch.library.opcheck(torch.ops.bgpt_fast.byte_decode_accept, (*accept_arguments(count), 2, EOP))
    call, model = rows(CONFIG, count), random_model(CONFIG)
    # Every position is computed: opcheck takes NaN for a difference.
    call["prefix_tokens"].clamp_(min=3)
    call["max_tokens"].fill_(16)
    streams, offsets = (call[name].view(torch.int64) for name in ("rng_streams", "byte_offsets"))
    inputs = call["features"], call["prefix_tokens"], call["max_tokens"], streams, offsets, Sampling().to_tensor()
    weights, plain = CpuWeights(model, "float32"), ByteWeights(model, "float32")
    handle = weights.byte_decoder.handle
    drafter = call["features"], handle
    torch.library.opcheck(
        torch.ops.bgpt_fast.byte_decode,
        (*inputs, None, None, [], handle, 4, 0.0, VOCAB_SIZE, EOP, EOP, False, *drafter),
    )
    for weight_arguments in (([], handle, 4, 0.0), (plain.tensors(), 0, plain.heads, plain.eps)):
        for return_logits in (False, True):
            arguments = *inputs, None, None, *weight_arguments, VOCAB_SIZE, EOP, EOP, return_logits
            torch.library.opcheck(torch.ops.bgpt_fast.byte_decode, arguments)


def test_the_handle_of_a_deleted_decoder_is_refused() -> None:
    handle = packed(CONFIG).byte_decoder.handle
    call = rows(CONFIG, 1)
    streams, offsets = (call[name].view(torch.int64) for name in ("rng_streams", "byte_offsets"))
    inputs = call["features"], call["prefix_tokens"], call["max_tokens"], streams, offsets, Sampling().to_tensor()
    with pytest.raises(KeyError):
        torch.ops.bgpt_fast.byte_decode(*inputs, None, None, [], handle, 4, 0.0, VOCAB_SIZE, EOP, EOP, False)
