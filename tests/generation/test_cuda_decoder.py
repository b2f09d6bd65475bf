"""The CUDA decoder on the CPU, its graphs as plain calls; test_byte_decode_on_host.py has the persistent kernel."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from support.byte_decode import SHAPES, random_model, rows
from torch import Tensor

from bgpt_fast import _C, BGPT, BGPTConfig, Generation, Generator, Prompt
from bgpt_fast.device import Replay
from bgpt_fast.generation import generator
from bgpt_fast.generation.decoders import cuda
from bgpt_fast.generation.decoders.cpu import CpuWeights
from bgpt_fast.generation.decoders.cuda import (
    MAX_GRAPH_ROWS,
    MIN_GRAPH_ROWS,
    PERSISTENT_ROWS,
    CudaDecoder,
    CudaWeights,
    GraphBuffers,
    GraphedByteDecoder,
    begin_persistent,
    graph_rows,
)
from bgpt_fast.generation.decoders.cuda_layers import ByteWeights
from bgpt_fast.generation.decoders.eager import EagerDecoder
from bgpt_fast.generation.decoders.request import DecodeRequest, DecodeResult
from bgpt_fast.generation.scoring import _score, context_bytes, score
from bgpt_fast.kernels.byte_decode.op import PERSISTENT_MAX_ROWS, byte_decode, persistent_supports
from bgpt_fast.kernels.byte_decode.sampling import Sampling, choose

GREEDY, SAMPLED = Sampling(), Sampling(temperature=0.9, top_k=40, top_p=0.95, seed=7)
CONFIG = SHAPES["plain"]


def at_once(step: Replay) -> Replay:
    """A `Record` that runs the step once, as recording a graph does."""
    step()
    return step


def decode_on_cpu(model: BGPT, request: DecodeRequest) -> DecodeResult:
    decoded = byte_decode(CpuWeights(model, "float32").byte_decoder, *request)
    return DecodeResult(decoded.tokens, decoded.counts)


def request_of(count: int, sampling: Sampling, name: str = "plain", seed: int = 0) -> DecodeRequest:
    return DecodeRequest(**rows(SHAPES[name], count, seed), sampling=sampling)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_graphs_decode_what_the_cpu_decodes(name: str, sampling: Sampling) -> None:
    """No near tie of these seeds falls within rounding."""
    model = random_model(SHAPES[name])
    engine = GraphedByteDecoder(ByteWeights(model, "float32"), at_once)
    for count in (1, MIN_GRAPH_ROWS + 1, 3):
        request = request_of(count, sampling, name, seed=count)
        with torch.inference_mode():
            assert engine.write(request) == decode_on_cpu(model, request)


def test_a_graph_with_other_weights_is_noticed() -> None:
    model = random_model(CONFIG)
    request = request_of(5, GREEDY)
    with torch.inference_mode():
        other = GraphedByteDecoder(ByteWeights(random_model(CONFIG, 1), "float32"), at_once)
        assert other.write(request) != decode_on_cpu(model, request)


def test_bfloat16_errs_no_more_than_the_model_in_it() -> None:
    model = random_model(CONFIG)
    engine = GraphedByteDecoder(ByteWeights(model, "bfloat16"), at_once)
    stream = torch.Generator().manual_seed(1)
    patches = torch.randint(0, 257, (7, CONFIG.patch_size), generator=stream, dtype=torch.int16)
    features = torch.randn(7, CONFIG.hidden_size, generator=stream)
    with torch.inference_mode():
        logits = engine.logits(features, patches, CONFIG.patch_size)
        exact = random_model(CONFIG).double().byte_level_decoder.logits(features.double(), patches)
        plain = model.bfloat16().byte_level_decoder.logits(features.bfloat16(), patches)
    assert (logits - exact).abs().max() <= 2 * (plain - exact).abs().max()


def test_rows_of_graphs() -> None:
    assert [graph_rows(n) for n in (1, 8, 9, 64, 65, 4096, 9000)] == [8, 8, 16, 64, 80, 4096, 4096]
    for n in range(MIN_GRAPH_ROWS, MAX_GRAPH_ROWS + 1):
        assert n <= graph_rows(n) <= max(n + 7, 1.25 * n)
    assert len({graph_rows(n) for n in range(1, MAX_GRAPH_ROWS + 1)}) == 32
    assert MIN_GRAPH_ROWS <= PERSISTENT_ROWS <= PERSISTENT_MAX_ROWS < MAX_GRAPH_ROWS


def test_more_patches_than_a_graph_has_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "MAX_GRAPH_ROWS", 8)
    model, request = random_model(CONFIG), request_of(19, SAMPLED)
    with torch.inference_mode():
        engine = GraphedByteDecoder(ByteWeights(model, "float32"), at_once)
        assert engine.write(request) == decode_on_cpu(model, request)


def test_more_new_patches_than_a_graph_has_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patches of two sequences, in pieces of 8 rows and at once."""
    stream = torch.Generator().manual_seed(1)
    T = 2 * CONFIG.patch_length
    patches = torch.randint(0, 257, (T, CONFIG.patch_size), generator=stream, dtype=torch.int16)
    slots, positions = torch.arange(T) % 2, torch.arange(T) // 2
    replays: list[int] = []

    def counted(step: Replay) -> Replay:
        def replay() -> None:
            replays.append(1)
            step()

        return replay

    def features(rows: int) -> Tensor:
        monkeypatch.setattr(cuda, "MAX_GRAPH_ROWS", rows)
        decoder = CudaDecoder(CudaWeights(random_model(CONFIG), "float32", counted), 2, CONFIG.patch_length)
        with torch.inference_mode():
            return decoder.prefill(patches, slots, positions)

    torch.testing.assert_close(features(8), features(64), rtol=1e-5, atol=1e-5)
    assert len(replays) == -(-T // 8) + 1


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_logits_are_not_rounded(batch_invariant: bool) -> None:
    model, request = random_model(CONFIG), request_of(3, GREEDY)
    engine = GraphedByteDecoder(ByteWeights(model, "bfloat16"), batch_invariant=batch_invariant)
    with torch.inference_mode():
        logits = engine.logits(request.features, request.prefix_tokens.clamp(min=0), CONFIG.patch_size)
    assert logits.dtype == torch.float32
    assert (logits != logits.bfloat16().float()).float().mean() > 0.9


def test_a_cache_and_its_graphs_outlive_their_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = CudaWeights(random_model(CONFIG), "float32", at_once)
    first = CudaDecoder(weights, 4, 16)
    cache, other = first._cache, CudaDecoder(weights, 4, 16)
    assert other._cache is not cache, "a decoder that still exists has its own"
    del first, other
    assert CudaDecoder(weights, 3, 16)._cache is cache
    assert CudaDecoder(weights, 5, 16)._cache is not cache
    assert CudaDecoder(weights, 5, 32)._cache.length == 32
    monkeypatch.setattr(cuda, "REUSABLE_CACHE_BYTES", 0)
    large = CudaDecoder(weights, 6, 32)._cache
    assert CudaDecoder(weights, 6, 32)._cache is not large


def test_graphs_report_bad_logits_of_active_rows() -> None:
    model, request = random_model(CONFIG), request_of(4, GREEDY)
    request.features[2] = torch.nan
    with torch.inference_mode():
        result = GraphedByteDecoder(ByteWeights(model, "float32"), at_once).write(request)
    assert [count < 0 for count in result.counts] == [False, False, True, False]


def test_which_shapes_the_kernel_takes() -> None:
    def takes(**changes: int) -> bool:
        config = BGPTConfig(**{"patch_length": 4, "patch_num_layers": 1, "byte_num_layers": 1, **changes})
        with torch.device("meta"):
            return persistent_supports(ByteWeights(BGPT(config), "float32"))

    assert takes()
    assert takes(hidden_size=64, num_heads=8)
    assert not takes(hidden_size=36, num_heads=3)  # heads of 12 channels
    assert not takes(hidden_size=1024)
    assert not takes(hidden_size=768, num_heads=2)
    assert not takes(hidden_size=64, patch_size=33)
    assert not takes(hidden_size=64, byte_num_layers=9)
    assert takes(hidden_size=64, patch_size=32, byte_num_layers=8)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "top_k": 50, "seed": 3}], ids=["greedy", "sampled"])
def test_a_generator_with_graphs_gives_the_same_files(
    options: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(CONFIG)
    prompts = [Prompt("bin", bytes(range(n))) for n in (0, 5, 16)]
    options = {**options, "max_new_bytes": 20}
    expected = Generator(model).generate(prompts, **options)
    weights = CudaWeights(random_model(CONFIG, 1), "float32", at_once)

    def make(model: BGPT, slots: int, length: int, **_: object) -> CudaDecoder:
        weights.reload(model)
        return CudaDecoder(weights, slots, length)

    monkeypatch.setattr(generator, "make_decoder", make)
    assert Generator(model).generate(prompts, **options) == expected
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    changed = Generator(model).generate(prompts, **options)
    assert changed != expected
    monkeypatch.setattr(generator, "make_decoder", lambda model, slots, length, **_: EagerDecoder(model, slots, length))
    assert changed == Generator(model).generate(prompts, **options)


def test_batch_invariant_logits_do_not_depend_on_the_batch() -> None:
    model, request = random_model(CONFIG), request_of(40, GREEDY)
    features, patches = request.features, request.prefix_tokens.clamp(min=0)
    with torch.inference_mode():
        for invariant in (True, False):
            engine = GraphedByteDecoder(ByteWeights(model, "float32"), at_once, batch_invariant=invariant)
            together = engine.logits(features, patches, 16)
            alone = [
                torch.cat(
                    [engine.logits(*part, 16) for part in zip(features.split(size), patches.split(size), strict=True)]
                )
                for size in (1, 2, 3, 7)
            ]
            # The library's logits must differ, or the test would prove nothing.
            assert all(torch.equal(one, together) for one in alone) == invariant
            exact = random_model(CONFIG).double().byte_level_decoder.logits(features.double(), patches)
            torch.testing.assert_close(together, exact.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_batch_invariant_graphs_decode_what_the_cpu_decodes(precision: str) -> None:
    model, request = random_model(CONFIG), request_of(9, SAMPLED)
    features, patches = request.features, request.prefix_tokens * 0
    with torch.inference_mode():
        engine = GraphedByteDecoder(ByteWeights(model, precision), at_once, batch_invariant=True)
        if precision == "float32":
            assert engine.write(request) == decode_on_cpu(model, request)
        exact = random_model(CONFIG).double().byte_level_decoder.logits(features.double(), patches)
        plain = GraphedByteDecoder(ByteWeights(model, precision)).logits(features, patches, 16)
        own = engine.logits(features, patches, 16)
    assert (own - exact).abs().max() <= 2 * (plain - exact).abs().max()


def use_invariant_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every Generator use the batch-invariant CUDA decoder."""

    def make(model: BGPT, slots: int, length: int, **_: object) -> CudaDecoder:
        return CudaDecoder(CudaWeights(model, "float32", at_once, batch_invariant=True), slots, length)

    monkeypatch.setattr(generator, "make_decoder", make)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "top_p": 0.9, "seed": 3}], ids=["greedy", "sampled"])
def test_a_file_is_the_same_in_any_batch(options: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also beside files that end sooner: prompts end anywhere in a patch, files where the context does."""
    model = random_model(CONFIG)
    capacity = context_bytes(CONFIG)
    prompts = [Prompt("bin", bytes(value % 256 for value in range(capacity - 1 - n)), n) for n in range(30)]
    expected = Generator(model).generate(prompts, **options)
    use_invariant_decoder(monkeypatch)
    together = Generator(model).generate(prompts, **options)
    assert len({len(file.new_bytes) for file in together}) > 3
    for batch in (1, 3):
        assert Generator(model, max_batch=batch).generate(prompts, **options) == together
    assert Generator(model).generate(prompts[3:4], **options) == together[3:4]
    assert together == expected


def test_scores_have_the_bits_of_batch_invariant_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(CONFIG)
    generated: dict[tuple[int, int], Tensor] = {}
    accept = GraphedByteDecoder._accept

    def recording(self: GraphedByteDecoder, logits: Tensor, buffers: GraphBuffers, s: int) -> None:
        active = buffers.active.bool()
        accept(self, logits, buffers, s)
        for n in active.nonzero().flatten().tolist():
            generated[int(buffers.rng_streams[n]), int(buffers.byte_offsets[n]) + s] = logits[n].clone()

    use_invariant_decoder(monkeypatch)
    prompts = [Prompt("bin", bytes(range(n)), n) for n in range(9)]
    with monkeypatch.context() as patch:
        patch.setattr(GraphedByteDecoder, "_accept", recording)
        files = Generator(model, max_batch=4).generate(prompts, temperature=1.0, max_new_bytes=20)
    documents = [("bin", file.data) for file in files]
    longest = max(len(file.data) for file in files)

    def scored_by(weights: CudaWeights) -> list[Tensor]:
        decoder = CudaDecoder(weights, 5, -(-longest // CONFIG.patch_size) + 1)
        with torch.inference_mode():
            return list(_score(decoder, CONFIG, documents, 5))

    weights = CudaWeights(model, "float32", lambda step: step, batch_invariant=True)
    scored = scored_by(weights)
    assert len(generated) >= sum(len(file.new_bytes) for file in files) > 100
    compared = [(scored[index][i], row) for (index, i), row in generated.items() if i < len(scored[index])]
    assert len(compared) > 100
    assert all(torch.equal(one, other) for one, other in compared)
    library = scored_by(CudaWeights(model, "float32", lambda step: step))
    assert not all(torch.equal(one, other) for one, other in zip(library, scored, strict=True))
    weights.byte.head[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="weights are damaged"):
        scored_by(weights)


def test_what_batch_invariant_may_be() -> None:
    model, prompt = random_model(CONFIG), Prompt("bin", b"ab")
    files = {
        tuple(Generator(model, batch_invariant=each).generate([prompt], max_new_bytes=9))
        for each in (None, True, False)
    }
    assert len(files) == 1
    with pytest.raises(TypeError, match="batch_invariant: expected a bool or None, got int"):
        Generator(model, batch_invariant=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_invariant: expected None or False on meta, got True"):
        Generator(model.to("meta"), batch_invariant=True).generate([prompt])


@pytest.mark.parametrize("with_cuda", [True, False])
def test_a_gpu_has_the_cuda_decoder_where_it_was_built(with_cuda: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_C", SimpleNamespace(with_cuda=with_cuda))
    with nullcontext() if with_cuda else pytest.warns(RuntimeWarning, match="built without CUDA"):
        assert cuda.has_cuda_decoder(torch.device("cuda", 0)) == with_cuda
    assert not cuda.has_cuda_decoder(torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_batch_invariance_on_a_gpu(precision: str) -> None:
    model = random_model(CONFIG).cuda()
    prompts = [Prompt("bin", bytes(range(n % 30)), n) for n in range(100)]

    def generate(batch: int, some: list[Prompt] = prompts) -> list[Generation]:
        generator = Generator(model, max_batch=batch, precision=precision, batch_invariant=True)
        return generator.generate(some, temperature=0.9, seed=3)

    together = generate(128)
    for batch in (1, 2, 3, 7, 64):
        assert generate(batch) == together
    assert [generate(1, [prompt])[0] for prompt in prompts[:5]] == together[:5]
    scored = list(score(model, [("bin", file.data) for file in together], precision=precision))
    for index, (file, rows_) in enumerate(zip(together, scored, strict=True)):
        tokens = [*file.new_bytes, 256] if file.finished else [*file.new_bytes]
        at = range(file.prompt_bytes, file.prompt_bytes + len(tokens))
        chosen = choose(rows_[at.start : at.stop].cpu(), Sampling(temperature=0.9, seed=3), [index] * len(tokens), at)
        assert chosen == tokens


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_both_engines_on_a_gpu(sampling: Sampling) -> None:
    model = random_model(CONFIG)
    weights = CudaWeights(random_model(CONFIG).cuda(), "float32")
    assert weights.has_persistent_kernel
    for count in (1, 2, 3, 9, 65):
        request = request_of(count, sampling, seed=count)
        expected = decode_on_cpu(model, request)
        request = request._replace(features=request.features.cuda())
        with torch.inference_mode():
            assert begin_persistent(weights.byte, request).wait() == expected
            assert weights.graphed.write(request) == expected


def test_the_bindings_refuse_what_does_not_fit() -> None:
    with pytest.raises(TypeError):
        _C.persistent_supports(64, 1)
